"""A network compiled by torch for one size of batch, for the attacks of a training run: the same but for rounding.

Never needed: where it cannot be compiled, or computes something else, the network stays as it is. A batch of another
size goes through the network as it is too, since a new size would be compiled anew.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import frozen

# What rounding may change of a logit, in units of the largest, and of the slope's direction, as its sine.
_TOLERANCE, _SINE = 2e-2, 5e-2

SECONDS = 60.0
"""About what compiling a ResNet costs, both directions."""
SAVED = 0.2
"""About the part of a step that it saves."""


def pays(*, pace: float, steps: int) -> bool:
    """Say whether compiling now wins back its time: pace in seconds per step, for the steps that are left."""
    return pace * steps * SAVED > SECONDS


class Compiled:
    """The compiled form of the network that a run attacks, made at the first batch it is asked for."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        """Why the network stays as it is, if it does."""
        self._network: nn.Module | None = None
        self._form: nn.Module | None = None
        self._shape: torch.Size | None = None

    def of(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Give the network's compiled form, in eval mode, for batches like these (batch, channels, height, width)."""
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
            # Compilers and drivers fail in ways of their own, and the run can do without.
            self.refusal = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
            return None
        if differs:
            self.refusal = "its compiled form computes something else"
            return None
        return form


def _differs(network: nn.Module, form: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Compare answers and slopes, both of which an attack asks for."""
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
