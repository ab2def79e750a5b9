"""Adversarial fog: a diamond-square map (Fournier et al. 1982) whose random offsets the attacker chooses.

Kang et al. 2019 (arXiv 1908.08016); how the fog is laid over an image is from Hendrycks & Dietterich 2019 (arXiv
1903.12261).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.threats.diamond_square import diamond_square
from core.threats.parameter_ascent import STEPS, Distortion, Drawn, climb
from core.threats.parameter_threat import ParameterThreat, lies_between
from core.threats.random_numbers import PointNumbers

# The largest offset at the first level; it halves from level to level.
_WIBBLE = 100.0
_TINY = 1e-12


@dataclass(frozen=True)
class FogThreat(ParameterThreat):
    """A fog of any shape; `eps` is its density, in grey levels of 255."""

    id: ClassVar[str] = "fog"
    least_side: ClassVar[int] = 2

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check the box, and for each pixel the range from no fog to full fog, as the default or compat lays it.

        Whether one map explains all pixels is not checked. Returns (batch,) bool.
        """
        brightest, eps = images.amax((2, 3), keepdim=True), self.eps / 255
        scale = 1 / (brightest + eps)
        return lies_between(perturbed, images * brightest * scale, (images + eps) * scale)


@Attack
def fog(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: FogThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int = STEPS,
    compat: bool = False,
) -> Steps:
    """Search the offsets of a fog map for errors, in `steps` sign steps from random ones. `loss` is the cross-entropy.

    compat: the last iterate counts and no point leaves; a map is scaled by the least and the largest value in its
    logical batch; the second half of the diamonds takes a neighbour that is two columns away in place of one (the
    card does not say which of the four sums it is); the fogged image is divided by its brightest value and not
    multiplied with it, so that density zero is not the identity; a step is eps / sqrt(steps) with eps in grey levels,
    on offsets in [0, 1], so that offsets jump from end to end; a pixel that is NaN is that of the image.

    Costs of a point that is never fooled: steps + 2 forward passes (image, random start, each step) and steps backward.
    """

    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        side = map_side(images.shape[2:])
        return Drawn(_Fog(threat.eps / 255, compat), numbers.uniform(0, side**2 - 1).to(images))

    reach = threat.eps if compat else 0.5
    return (yield from climb(model, images, labels, draw, options, steps=steps, reach=reach, compat=compat))


@dataclass(frozen=True)
class _Fog(Distortion):
    """A fog of some density, in pixel units."""

    density: float
    compat: bool

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Lay fog over images; parameters (points, side² - 1)."""
        del first
        shape = images.shape[2:]
        field = diamond_square(parameters, map_side(shape), amplitude=_WIBBLE, falloff=2, shift=2 if self.compat else 1)
        if self.compat:
            low, high = field.min(), field.max()
            field = (field - low) / (high - low)
        else:
            low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
            field = (field - low) / (high - low).clamp(min=_TINY)
        top, left = ((len_map - len_image) // 2 for len_map, len_image in zip(field.shape[1:], shape, strict=True))
        field = field[:, None, top : top + shape[0], left : left + shape[1]]
        return lay_fog(images, field, self.density, brightest=1.0 if self.compat else None)

    def restrict(self, parameters: Tensor) -> Tensor:
        """Clamp offsets to [0, 1]."""
        return parameters.clamp(0, 1)


def lay_fog(images: Tensor, field: Tensor, density: float, *, brightest: float | None = None) -> Tensor:
    """Lay fog over images (points, channels, height, width): (x + density * field) * brightest / (brightest + density).

    field (points, 1, height, width): in [0, 1]. The brightest value is that of each channel; `brightest`, if given,
    takes its place above the fraction bar alone, as in Kang et al. Density zero changes nothing by default.
    """
    own = images.amax((2, 3), keepdim=True)
    scale = (own if brightest is None else brightest) / (own + density)
    # A black channel without fog has no scale, and stays black.
    scale = scale if brightest is not None else scale.nan_to_num(nan=1.0)
    return ((images + density * field) * scale).clamp(0, 1)


def map_side(size: Sequence[int]) -> int:
    """Give the side of the fog map for images of this size (height, width): the next power of two above the longer."""
    return 1 << int(max(size)).bit_length()
