"""The head of a classifier: the layer that makes the logits. Find it in any network, and replace it.

A network of timm's says by itself which layer that is. In all others it is the last `nn.Linear` whose output is what
the network returns.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.models.outputs import logits_of
from core.schema.errors import DoesNotFit


def find_head(model: nn.Module, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the names of the modules that make up the head; empty where it is not recognised.

    shape: channels, height and width of an image, by which a network that is not timm's is tried out. The model and the
    global random state stay as they are.
    """
    for path, network in _with_wrapped(model):
        if ask := _classifier_of(network):
            found = ask()
            layers = tuple(found) if isinstance(found, (tuple, list, nn.ModuleList)) else (found,)
            named = [
                f"{path}{name}"
                for name, module in network.named_modules()
                if any(module is layer for layer in layers) and any(True for _ in module.parameters())
            ]
            return tuple(named)
    return _find_by_trying(model, shape)


def renew_head(model: nn.Module, shape: tuple[int, int, int], classes: int, *, seed: int, name: str) -> None:
    """Replace the head of a model by a new one for this number of classes, initialised from the seed, in place.

    The layer gets torch's own initial weights, as a new network's. name: of the network, for errors. Raises DoesNotFit
    where no head is recognised, or the network with its new head does not answer with one logit per class.
    """
    names = find_head(model, shape)
    if not names:
        raise DoesNotFit(
            f"no head was recognised in {name}: its logits are not the output of an nn.Linear",
            hint="give a network whose last layer is an nn.Linear that makes its logits, or one made for "
            f"{classes} classes",
            field="head",
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        timm: list[Any] = [network for _, network in _with_wrapped(model) if _classifier_of(network)]
        if timm:
            timm[0].reset_classifier(classes)
        else:
            (place,) = names
            old = model.get_submodule(place)
            assert isinstance(old, nn.Linear)
            new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
            model.set_submodule(place, new.to(old.weight.device, old.weight.dtype).train(old.training))
    answer = _answer(model, shape)
    if answer.shape[1] != classes:
        raise DoesNotFit(
            f"{name} answers with {answer.shape[1]} logits after its last layer was made for {classes} classes",
            hint="give a network whose number of logits its last layer alone decides",
            field="head",
        )


def _with_wrapped(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield a model, and the network inside its normalisation, each with the prefix of its parameters' names."""
    yield "", model
    if isinstance(inner := getattr(model, "network", None), nn.Module):
        yield "network.", inner


def _classifier_of(network: nn.Module) -> Callable[[], object] | None:
    """Return timm's way to ask a network for its head; None for a network that is not timm's."""
    ask, reset = (getattr(network, name, None) for name in ("get_classifier", "reset_classifier"))
    return ask if callable(ask) and callable(reset) else None


def _find_by_trying(model: nn.Module, shape: tuple[int, int, int]) -> tuple[str, ...]:
    calls: list[tuple[str, Tensor]] = []

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            del module, given
            calls.append((name, output))

        return hook

    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    hooks = [module.register_forward_hook(record(name)) for name, module in layers]
    try:
        logits = _answer(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return next(((name,) for name, output in reversed(calls) if _is_same(output, logits)), ())


def _is_same(output: Tensor, logits: Tensor) -> bool:
    # The values of tensors on the meta device cannot be compared.
    return output is logits or (output.shape == logits.shape and not logits.is_meta and torch.equal(output, logits))


@torch.no_grad()
def _answer(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Return the logits for two images of noise, from the model in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    some = next(model.parameters(), torch.empty(0))
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            images = torch.rand(2, *shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
            images = images.to(some)
            return logits_of(model(images), 2)
    finally:
        for module, training in modes:
            module.training = training
