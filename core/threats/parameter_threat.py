"""What the threats share that are a distortion with parameters: a budget, and a least size of the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import ClassVar

from torch import Tensor

from core.schema.errors import BadInput

# A pixel of an image in [0, 1], computed in float32, may be off by this.
ROUNDING = 1e-5


@dataclass(frozen=True)
class ParameterThreat:
    """Images that a differentiable distortion makes of an image, with any parameters in their range."""

    eps: float
    """How strong the distortion is; `core/schema/threats.toml` has the unit."""

    id: ClassVar[str]
    least_side: ClassVar[int]
    """The shortest side of an image, in pixels, for which the threat makes sense."""

    def __post_init__(self) -> None:
        number = isinstance(self.eps, Real) and not isinstance(self.eps, bool)
        if not (number and isfinite(self.eps) and self.eps > 0):
            raise BadInput(
                f"the budget of {self.id} is {self.eps!r}, not a finite number above 0",
                hint="give a number above 0",
                field="evaluation.unseen",
            )

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput for images that are too small; shape (channels, height, width)."""
        _, height, width = shape
        if min(height, width) < self.least_side:
            least = f"{self.least_side} x {self.least_side}"
            raise BadInput(
                f"images of {height} x {width} pixels are too small for {self.id}: the least size is {least}",
                hint=f"leave {self.id} out, or evaluate on images of {least} or larger",
                field="evaluation.unseen",
            )


def lies_between(perturbed: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Check (batch,) that all pixels lie in the box [0, 1] and, up to rounding, between two images.

    All are (batch, channels, height, width).
    """
    outside = (perturbed < 0) | (perturbed > 1) | (perturbed < low - ROUNDING) | (perturbed > high + ROUNDING)
    return ~(outside | perturbed.isnan()).flatten(1).any(1)
