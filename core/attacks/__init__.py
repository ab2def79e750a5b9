"""Attacks: pure functions with one contract.

    attack(model, images, labels, norm, eps, *, noise, at_once, ...) -> AttackResult

model       maps images to logits (batch, classes); it is attacked in eval mode and handed back in the mode it was in,
            with its parameters' gradients and `requires_grad` untouched
images      (batch, channels, height, width) in [0, 1]
labels      (batch,) class indices
norm, eps   the ball: "linf", "l2" or "l1", and its radius in pixel units of images in [0, 1]
noise       the only source of randomness, a stream per logical batch (`core.attacks.noise`): the global random state is
            neither read nor changed
at_once     how many points go through the model together; changes time and memory, not the verdicts
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, per point."""

    adversarial: Tensor
    """(batch, channels, height, width): the point found, inside ball and box."""
    robust: Tensor
    """(batch,) bool: whether the model stayed right at every point that the attack looked at."""
    loss: Tensor
    """(batch,): the loss at `adversarial`; the attack says which loss."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode without parameter gradients, and put back every flag as it was."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
