"""Threats: what an attacker may do to an image. An attack searches a threat, an evaluation reports a row for each.

Here are the l_p balls, their union and LPIPS. A threat of another kind is a class beside its attack; no signature
changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from core.geometry import is_sparse, length, project_inside
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput
from core.schema.radius import largest_radius
from core.schema.suggestions import did_you_mean


class Threat(Protocol):
    """What every threat has."""

    @property
    def id(self) -> str:
        """The key of the threat's row in a report."""

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput where the threat makes no sense for images of this shape (channels, height, width)."""

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check for each point whether the attacker may turn the image into the perturbed one.

        images, perturbed (batch, channels, height, width); returns (batch,) bool. Rounding errors are tolerated.
        """


@dataclass(frozen=True)
class LpThreat:
    """An l_p ball around the image, intersected with the box [0, 1]."""

    norm: Norm
    eps: float
    """The radius, in pixel units of images in [0, 1]."""

    @property
    def id(self) -> str:
        """The norm, which is the key of the row in a report."""
        return self.norm

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise BadInput(
                f"there is no norm {self.norm!r}", hint=did_you_mean(str(self.norm), NORMS), field=f"eps.{self.norm}"
            )
        number = isinstance(self.eps, Real) and not isinstance(self.eps, bool)
        if not (number and isfinite(self.eps) and self.eps > 0):
            raise BadInput(
                f"the radius of {self.norm} is {self.eps!r}, not a finite number above 0",
                hint="give it in pixel units of images in [0, 1], such as 8 / 255",
                field=f"eps.{self.norm}",
            )

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput for a radius at which no classifier can be robust to images of this shape."""
        limit = largest_radius(self.norm, shape)
        if limit is None or self.eps < limit:
            return
        divided = self.eps / 255
        raise BadInput(
            f"the radius {self.eps:g} is not below {limit:g}, where every image can be turned into the same grey one",
            hint=f"did you mean {self.eps:g} / 255?"
            if divided < limit
            else "give a smaller radius, in pixel units of images in [0, 1]",
            field=f"eps.{self.norm}",
        )

    @property
    def is_sparse(self) -> bool:
        """Whether the strongest perturbations change few pixels only."""
        return is_sparse(self.norm)

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check ball and box: (batch,) bool."""
        # A pixel is rounded to its own last bit, which is not small beside a small radius.
        rounding = length(torch.full_like(images[:1], torch.finfo(images.dtype).eps), self.norm)
        outside_ball = length(perturbed - images, self.norm) - self.eps > 1e-4 * self.eps + rounding
        outside_box = ((perturbed < 0) | (perturbed > 1)).flatten(1).any(1)
        return ~(outside_ball | outside_box)

    def contains_exactly(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check ball and box without tolerance but a millionth of the radius, in float64: (batch,) bool."""
        outside_ball = length(perturbed.double() - images.double(), self.norm) > (1 + 1e-6) * self.eps
        outside_box = ((perturbed < 0) | (perturbed > 1)).flatten(1).any(1)
        return ~(outside_ball | outside_box)

    def project(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Bring perturbed images into ball and box, which they do not leave even by rounding.

        images, perturbed (batch, channels, height, width); returns the same shape.
        """
        return project_inside(images, perturbed, self.norm, self.eps)


@dataclass(frozen=True)
class UnionThreat:
    """Several l_p balls: the attacker chooses one of them for each image."""

    balls: tuple[LpThreat, ...]

    @classmethod
    def of(cls, eps: Mapping[Norm, float]) -> "UnionThreat":
        """Build it from a radius per norm."""
        return cls(tuple(LpThreat(norm, radius) for norm, radius in eps.items()))

    def __iter__(self) -> Iterator[LpThreat]:
        return iter(self.balls)

    @property
    def id(self) -> str:
        """The row of a report that counts points robust to every ball."""
        return "union"

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput for a radius at which no classifier can be robust to images of this shape."""
        for ball in self.balls:
            ball.check(shape)

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check for a ball that contains the point: (batch,) bool."""
        return torch.stack([ball.contains(images, perturbed) for ball in self.balls]).any(0)


@dataclass(frozen=True)
class PerceptualThreat:
    """Images within a distance by LPIPS, in the features of the attacked model.

    For training alone: the attack penalises a larger distance and does not forbid it, so there is no check.
    """

    bound: float
    """The largest LPIPS distance from the image."""

    @property
    def id(self) -> str:
        """The name of the distance."""
        return "lpips"

    def __post_init__(self) -> None:
        number = isinstance(self.bound, Real) and not isinstance(self.bound, bool)
        if not (number and isfinite(self.bound) and self.bound > 0):
            raise BadInput(
                f"the bound is {self.bound!r}, not a finite LPIPS distance above 0",
                hint="give a distance such as 0.5",
                field="method.bound",
            )
