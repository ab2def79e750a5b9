"""Adversarial Gabor noise: sparse impulses, chosen by the attacker, through a random Gabor filter.

Kang et al. 2019 (arXiv 1908.08016); the noise is that of Lagae et al. 2009 (SIGGRAPH), and its contrast is equalised
after Neyret & Heitz 2016 (hal-01349134).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.threats.parameter_ascent import STEPS, Distortion, Drawn, climb
from core.threats.parameter_threat import ParameterThreat, lies_between
from core.threats.random_numbers import PointNumbers

# The share of the pixels that get an impulse.
_DENSITY = 1 / 14
# Half of a filter of 23 x 23.
_HALF = 11
# The ranges of the Gaussian window's bandwidth, per pixel, and of the length of the waves, in pixels.
_BANDWIDTHS = (0.1, 0.4)
_WAVELENGTHS = (3.0, 23 / 4)
# The highest number of waves.
_MOST_SIDES = 10
# How far a low contrast is raised: a place with none is amplified by its inverse.
_LEAST_CONTRAST = 1e-3
_TINY = 1e-12


@dataclass(frozen=True)
class GaborThreat(ParameterThreat):
    """Gabor noise; `eps` is how much it brightens a pixel at most, in grey levels of 255."""

    id: ClassVar[str] = "gabor"
    # One wave of the longest.
    least_side: ClassVar[int] = 6

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check the box, and that pixels are brighter by at most eps and no darker; not what the noise looks like.

        Returns (batch,) bool.
        """
        return lies_between(perturbed, images, images + self.eps / 255)


@Attack
def gabor(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: GaborThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int = STEPS,
    compat: bool = False,
) -> Steps:
    """Search the impulses of Gabor noise for errors, in `steps` sign steps from random ones. `loss` is the
    cross-entropy.

    compat: the last iterate counts and no point leaves; a fourteenth of the sites of the whole logical batch get an
    impulse, however many of them an image gets; after the first step these sites are zero and all others free; a
    step is eps / sqrt(steps) with eps in grey levels, on impulses in [-1, 1]; a pixel that is NaN is that of the image.

    Costs of a point that is never fooled: steps + 2 forward passes (image, random start, each step) and steps backward.
    """

    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        points, _, height, width = images.shape
        sites = height * width
        ranks = numbers.uniform(0, sites)
        ranks = ranks.view(1, -1) if compat else ranks
        count = max(round(_DENSITY * ranks.shape[1]), 1)
        chosen = torch.zeros_like(ranks, dtype=torch.bool).scatter_(1, ranks.topk(count, 1).indices, True)
        chosen = chosen.view(points, 1, height, width)
        impulses = (2 * numbers.uniform(1, sites) - 1).to(images).view_as(chosen) * chosen
        free = impulses == 0 if compat else chosen
        return Drawn(_Gabor(threat.eps / 255, draw_filters(numbers).to(images), free), impulses)

    reach = threat.eps if compat else 1.0
    return (yield from climb(model, images, labels, draw, options, steps=steps, reach=reach, compat=compat))


@dataclass(frozen=True)
class _Gabor(Distortion):
    """Gabor noise of some height, in pixel units."""

    height: float
    filters: Tensor
    """(points, 23, 23)."""
    free: Tensor
    """(points, 1, height, width) bool: where there may be an impulse."""

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Add noise; parameters (points, 1, height, width)."""
        del first
        return (images + self.height * gabor_noise(parameters, self.filters)).clamp(0, 1)

    def restrict(self, parameters: Tensor) -> Tensor:
        """Clamp impulses to [-1, 1], and to zero where there may be none."""
        return parameters.clamp(-1, 1) * self.free


def draw_filters(numbers: PointNumbers) -> Tensor:
    """Draw a Gabor filter (points, 23, 23) for each point: the mean of 1 to 10 plane waves of one length, turned evenly
    from a random direction, in a Gaussian window."""

    def uniform(step: int, low: float, high: float) -> Tensor:
        return low + (high - low) * numbers.uniform(step, 1)[:, :, None, None]

    bandwidth, wavelength = uniform(2, *_BANDWIDTHS), uniform(3, *_WAVELENGTHS)
    sides = 1 + numbers.integers(4, 1, _MOST_SIDES)[:, :, None, None]
    side = torch.arange(_MOST_SIDES, device=sides.device).view(1, -1, 1, 1)
    angles = (uniform(5, 0, 1) + side / sides) * torch.pi
    offsets = torch.arange(-_HALF, _HALF + 1, device=sides.device).float()
    down, across = offsets[:, None], offsets
    waves = (2 * torch.pi / wavelength * (across * angles.cos() + down * angles.sin())).cos() * (side < sides)
    window = (-torch.pi * bandwidth**2 * (across**2 + down**2)).exp()
    return (waves.sum(1, keepdim=True) / sides * window).squeeze(1)


def gabor_noise(impulses: Tensor, filters: Tensor) -> Tensor:
    """Filter impulses (points, 1, height, width), equalise the contrast, and scale to [0, 1]; zero where it is flat.

    filters (points, 23, 23). Contrast is the deviation in a Gaussian window of a filter's size, and a place of low
    contrast is raised towards the highest (Neyret & Heitz: the variance is read from its low frequencies).
    """
    noise = _convolve(impulses[:, 0], filters)
    deviation = noise - noise.mean((1, 2), keepdim=True)
    contrast = (_blur(deviation**2) + _TINY).sqrt()
    contrast = contrast / contrast.amax((1, 2), keepdim=True)
    noise = deviation * (1 + _LEAST_CONTRAST) / (contrast + _LEAST_CONTRAST)
    low, high = noise.amin((1, 2), keepdim=True), noise.amax((1, 2), keepdim=True)
    return ((noise - low) / (high - low).clamp(min=_TINY))[:, None]


def _convolve(planes: Tensor, filters: Tensor) -> Tensor:
    """Filter planes (points, height, width), surrounded by zeros, each with its own symmetric filter."""
    return F.conv2d(planes[None], filters[:, None], padding=_HALF, groups=len(planes))[0]


def _blur(planes: Tensor) -> Tensor:
    """Average planes (points, height, width) in a Gaussian window, over what lies in the image."""
    offsets = torch.arange(-_HALF, _HALF + 1, device=planes.device, dtype=planes.dtype)
    window = (-torch.pi * _BANDWIDTHS[0] ** 2 * offsets**2).exp()

    def sums(of: Tensor) -> Tensor:
        down = F.conv2d(of[:, None], window.view(1, 1, -1, 1), padding=(_HALF, 0))
        return F.conv2d(down, window.view(1, 1, 1, -1), padding=(0, _HALF)).squeeze(1)

    return sums(planes) / sums(torch.ones_like(planes[:1]))
