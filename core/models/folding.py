"""Batch norm folded into the convolution before it: the same function of the images, in fewer passes over memory."""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What rounding may change of a logit, in units of the largest.
_TOLERANCE = 1e-4


@torch.no_grad()
def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy of a model in eval mode in which batch norms are part of the convolutions that they follow.

    It shares nothing with the model and cannot be trained. Where the model cannot be read as a graph, or the copy does
    not give the model's logits on `images` (batch, channels, height, width), the model itself is returned.
    """
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model))
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        # The model decides by its values what to compute, so there is no one graph.
        return model
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.args else None
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        name = str(before.target)
        convolution = modules.get(name)
        if before.op != "call_module" or not isinstance(convolution, nn.Conv2d):
            continue
        graph.set_submodule(name, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    expected, found = model(images), graph(images)
    scale = expected.abs().amax().clamp(min=1e-6)
    return graph if bool(((found - expected).abs() <= _TOLERANCE * scale).all()) else model
