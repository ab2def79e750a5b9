"""Compile the attacked network of a training run by torch, for one batch shape; outputs differ by rounding alone.

Compilation is optional: a network that does not compile, or whose compiled form computes something else, is used
uncompiled. So is a batch of another shape, since torch would compile again for it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import frozen

# Tolerances for rounding: of a logit, in units of the largest, and of the direction of the gradient, as a sine.
_TOLERANCE, _SINE = 2e-2, 5e-2

SECONDS = 60.0
"""Approximate time to compile a ResNet, forward and backward."""
SAVED = 0.2
"""Approximate share of a training step that it saves."""


def pays(*, pace: float, steps: int) -> bool:
    """Decide whether compiling now saves more time than it takes. pace: seconds per step; steps: left to do."""
    return pace * steps * SAVED > SECONDS


class Compiled:
    """The compiled form of the attacked network, compiled at the first batch."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        """Why the network is used uncompiled; None where it is not."""
        self._network: nn.Module | None = None
        self._form: nn.Module | None = None
        self._shape: torch.Size | None = None

    def of(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Give the compiled form of the network in eval mode, or the network itself, for images of this shape."""
        if self._network is None:
            self._network, self._shape = network, images.shape
            self._form = self._compile(network, images)
        fits = network is self._network and images.shape == self._shape
        return self._form if fits and self._form is not None else network

    def _compile(self, network: nn.Module, images: Tensor) -> nn.Module | None:
        try:
            form: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
            with frozen(network):
                differs = _differs(network, form, images)
        except Exception as error:
            # Compilers and drivers fail in many ways, and the run does not need them.
            self.refusal = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
            return None
        if differs:
            self.refusal = "its compiled form computes something else"
            return None
        return form


def _differs(network: nn.Module, form: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Compare outputs and gradients, both of which an attack uses."""
    with torch.no_grad():
        expected, found = network(images), form(images)
    scale = expected.abs().amax().clamp(min=1e-6)
    if not bool(((found - expected).abs() <= _TOLERANCE * scale).all()):
        return True
    slope, found_slope = _slope(network, images), _slope(form, images)
    return bool(F.cosine_similarity(slope, found_slope, dim=0) < (1 - _SINE**2) ** 0.5) and bool(slope.any())


def _slope(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    point = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(network(point).square().sum(), point)
    return slope.flatten().double()
