"""Adversarial JPEG: changes of quantised coefficients, at most eps each (Kang et al. 2019, arXiv 1908.08016).

The coefficients are rounded before the change is added, and not again. So gradients flow from the image to the change
through the decoder alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.threats.jpeg_codec import BLOCK, STANDARD, Planes, decode, encode, largest_change, shapes_of
from core.threats.parameter_ascent import STEPS, Distortion, Drawn, climb
from core.threats.parameter_threat import ParameterThreat, lies_between
from core.threats.random_numbers import PointNumbers


@dataclass(frozen=True)
class JpegThreat(ParameterThreat):
    """Images that decode from changed coefficients; `eps` bounds each change in linf, where a step of the quantisation
    table is 1."""

    id: ClassVar[str] = "jpeg"
    least_side: ClassVar[int] = BLOCK

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check the box, and that no pixel is further from the unchanged JPEG than such changes can bring it.

        The coefficients cannot be read from the image, since pixels are clamped. Returns (batch,) bool.
        """
        reach = self.eps * largest_change(images.shape[1] == 3)
        unchanged = decode(encode(images), STANDARD, images.shape[2:])
        return lies_between(perturbed, unchanged - reach, unchanged + reach)


@Attack
def jpeg(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: JpegThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int = STEPS,
    compat: bool = False,
) -> Steps:
    """Search the changes of coefficients for errors, in `steps` sign steps from random ones. `loss` is the
    cross-entropy.

    Quantisation is that of quality 50. compat: the last iterate counts and no point leaves; the changes of the start
    are multiplied by eps once too often, as they are seen, but not as they are changed by the first step; a pixel that
    is NaN is that of the image.

    Costs of a point that is never fooled: steps + 2 forward passes (image, random start, each step) and steps backward.
    """
    eps = threat.eps

    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        coefficients = join_planes(encode(images, STANDARD))
        uniform = numbers.uniform(0, coefficients.shape[1]).to(images)
        return Drawn(_Jpeg(eps, compat, coefficients), (2 * uniform - 1) * eps)

    return (yield from climb(model, images, labels, draw, options, steps=steps, reach=eps, compat=compat))


@dataclass(frozen=True)
class _Jpeg(Distortion):
    """Changes of coefficients by at most `eps`."""

    eps: float
    compat: bool
    coefficients: Tensor
    """(points, coefficients): those of the images."""

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Decode the changed coefficients; parameters (points, coefficients)."""
        change = parameters * self.eps if self.compat and first else parameters
        planes = split_planes(self.coefficients + change, images.shape[1:])
        return decode(planes, STANDARD, images.shape[2:])

    def restrict(self, parameters: Tensor) -> Tensor:
        """Clamp changes to [-eps, eps]."""
        return parameters.clamp(-self.eps, self.eps)


def join_planes(planes: Planes) -> Tensor:
    """Give all coefficients as one row per image, (images, coefficients)."""
    return torch.cat([plane.flatten(1) for plane in planes], 1)


def split_planes(coefficients: Tensor, shape: Sequence[int]) -> Planes:
    """Undo `join_planes` for images of this shape (channels, height, width)."""
    shapes = shapes_of(shape)
    parts = coefficients.split([prod(of_plane) for of_plane in shapes], 1)
    return [part.unflatten(1, of_plane) for part, of_plane in zip(parts, shapes, strict=True)]
