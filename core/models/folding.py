"""Fold batch norm into the convolution before it: the same function up to rounding, in fewer passes over memory.

A batch norm in eval mode only scales and shifts each channel, which the weights and the bias of a convolution can do as
well. Attacks call a model so often that the time saved is worth a second set of convolutions.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.models.outputs import logits_of
from core.models.precision import Bfloat16

# Tolerance for rounding of a logit, in units of the largest.
_TOLERANCE = 1e-4


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a model that computes the same as this one in eval mode, with batch norms folded where possible.

    Where the model cannot be traced, or the folded model's logits on `images` (batch, channels, height, width) differ,
    it is the model itself.
    """
    twin = Twin(model)
    return twin.of(model, images)


class Twin:
    """A folded twin of a model, which shares all modules with it except convolutions that a batch norm follows.

    For a model that computes its network in bfloat16, the network is folded, and computes in bfloat16, too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # The conversion to bfloat16 cannot be traced.
        self._network: nn.Module = model.network if isinstance(model, Bfloat16) else model
        self._graph: fx.GraphModule | None = None
        self._double: nn.Module | None = None
        self._pairs: list[_Pair] = []
        self._trusted: bool | None = None

    def of(self, model: nn.Module, images: Tensor) -> nn.Module:
        """Give the twin with the model's current weights, or the model itself where it has no twin.

        images (batch, channels, height, width): to check a new twin on. The model must be in eval mode.
        """
        if model is not self._model or self._trusted is False:
            return model
        if self._trusted is None:
            self._trusted = self._fold() and self._agrees(images[:8])
            if not self._trusted:
                self._graph, self._pairs = None, []
                return model
            assert self._graph is not None
            self._double = self._graph if self._network is self._model else Bfloat16(self._graph)
        else:
            for pair in self._pairs:
                pair.refresh()
        assert self._double is not None
        return self._double

    def _fold(self) -> bool:
        """Trace the network and remove batch norms; return False where it cannot be traced or has none to remove."""
        graph = _trace(self._network)
        if graph is None:
            return False
        modules = dict(graph.named_modules())
        for node in list(graph.graph.nodes):
            before = node.args[0] if node.args else None
            norm = modules.get(node.target) if node.op == "call_module" else None
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None or not isinstance(before, fx.Node):
                continue
            name = str(before.target)
            convolution = modules.get(name) if before.op == "call_module" else None
            if type(convolution) is not nn.Conv2d or len(before.users) > 1 or _has_hooks(convolution, norm):
                continue
            pair = _Pair.of(convolution, norm)
            self._pairs.append(pair)
            graph.set_submodule(name, pair.both)
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
        graph.delete_all_unused_submodules()
        graph.recompile()
        self._graph = graph
        return bool(self._pairs)

    @torch.no_grad()
    def _agrees(self, images: Tensor) -> bool:
        assert self._graph is not None
        # In float32 for both: bfloat16 rounds more than folding may change.
        expected = logits_of(self._network(images), len(images))
        try:
            found = logits_of(self._graph(images), len(images))
        except Exception:
            # A graph can hold what was true for one number of images, or of the copy that was traced.
            return False
        scale = expected.abs().amax().clamp(min=1e-6)
        return bool(((found - expected).abs() <= _TOLERANCE * scale).all())


def _trace(network: nn.Module) -> fx.GraphModule | None:
    """Trace a network into a graph that shares its modules and parameters; None where that is not possible.

    Tracing runs the network's own code on stand-ins for tensors, which the code may keep in attributes. So a copy is
    traced, which shares nothing with the network but its parameters.
    """
    if any(_has_hooks(module) for name, module in network.named_modules() if name and not _is_leaf(module)):
        # Their hooks would run on the stand-ins, and keep them wherever they like.
        return None
    try:
        copy = deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
        return fx.GraphModule(_Root(network, copy), fx.Tracer().trace(copy))
    except Exception:
        # Tracing fails in many ways, and folding only saves time.
        return None


class _Root(nn.Module):
    """A network's attributes, and the constants that tracing added to its copy."""

    def __init__(self, network: nn.Module, copy: nn.Module) -> None:
        super().__init__()
        self.__dict__["sources"] = (network, copy)
        self.training = network.training

    def __getattr__(self, name: str) -> Any:
        network, copy = self.__dict__["sources"]
        return getattr(network if hasattr(network, name) else copy, name)


def _is_leaf(module: nn.Module) -> bool:
    """Return whether tracing calls a module as a whole."""
    return fx.Tracer().is_leaf_module(module, "")


def _has_hooks(*modules: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@dataclass(frozen=True)
class _Pair:
    """A convolution, the batch norm after it, and the convolution that replaces both."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    both: nn.Conv2d

    @classmethod
    def of(cls, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> "_Pair":
        both = nn.utils.skip_init(
            nn.Conv2d,
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,
            stride=convolution.stride,
            padding=convolution.padding,
            dilation=convolution.dilation,
            groups=convolution.groups,
            padding_mode=convolution.padding_mode,
        )
        # A clone keeps the memory format.
        both.weight = nn.Parameter(convolution.weight.detach().clone(), requires_grad=False)
        both.bias = nn.Parameter(both.weight.new_empty(convolution.out_channels), requires_grad=False)
        pair = cls(convolution, norm, both)
        pair.refresh()
        return pair

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the weights from the current weights of the two.

        Not by torch's `fuse_conv_bn_weights`, which multiplies the bias in another order and so rounds differently.
        """
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert self.both.bias is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        torch.mul(self.convolution.weight, scale[:, None, None, None], out=self.both.weight)
        shift = -norm.running_mean if self.convolution.bias is None else self.convolution.bias - norm.running_mean
        self.both.bias.copy_(shift * scale if norm.bias is None else shift * scale + norm.bias)
