"""Adversarial snow: flakes on grids, drawn out to streaks, whose brightness the attacker chooses.

Kang et al. 2019 (arXiv 1908.08016); the paler image under the snow is that of Hendrycks & Dietterich 2019 (arXiv
1903.12261).
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

_LAYERS = 7
# Pixels between the flakes of a layer.
_PITCH = 4
# Half of a streak's window of 13 x 13.
_HALF = 6
# The deviations of the Gaussian that blurs a streak, in pixels.
_BLURS = (0.41, 0.6)
# The share of the image itself under the snow.
_PALE = 0.75
# ITU-R BT.709, as in Kang et al.; the common corruptions take BT.601 (`corruptions.grey`).
_LUMA = (0.2126, 0.7152, 0.0722)
# The highest mean brightness of the flakes in a block of a layer, and the side of the block in flakes.
_MOST_SNOW = 0.2
_BLOCK = 8
# Where a flake is zero, it has no slope and would never come back.
_FAINTEST = 1e-9


@dataclass(frozen=True)
class SnowThreat(ParameterThreat):
    """Snow over a paler image; `eps` is the brightness of a flake, where white is 1."""

    id: ClassVar[str] = "snow"
    # One flake per layer.
    least_side: ClassVar[int] = 4

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check the box, and that no pixel is darker than without snow; not whether streaks explain the rest.

        Returns (batch,) bool.
        """
        return lies_between(perturbed, pale(images).clamp(0, 1), torch.ones_like(images))


@Attack
def snow(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: SnowThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int = STEPS,
    compat: bool = False,
) -> Steps:
    """Search the brightness of snowflakes for errors, in `steps` sign steps from random ones. `loss` is the
    cross-entropy.

    Each image has streaks of its own, in seven random directions. compat: the last iterate counts and no point leaves;
    a logical batch shares its streaks; a step is eps / sqrt(steps), on flakes in [0, 1]; a pixel that is NaN is that of
    the image.

    Costs of a point that is never fooled: steps + 2 forward passes (image, random start, each step) and steps backward.
    """

    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        height, width = (-(-size // _PITCH) for size in images.shape[2:])
        uniform = numbers.uniform(0, _LAYERS * height * width).to(images).view(-1, _LAYERS, height, width)
        streaks = draw_streaks(numbers.shared(None) if compat else numbers).to(images)
        return Drawn(_Snow(threat.eps, streaks), limit_snow((-uniform / _MOST_SNOW).exp()))

    reach = threat.eps if compat else 0.5
    return (yield from climb(model, images, labels, draw, options, steps=steps, reach=reach, compat=compat))


@dataclass(frozen=True)
class _Snow(Distortion):
    """Snow whose flakes have at most a brightness of `eps`."""

    eps: float
    streaks: Tensor
    """(points, 7, 16, 16)."""

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Let it snow on images; parameters (points, 7, height / 4, width / 4)."""
        del first
        height, width = images.shape[2:]
        fallen = snow_field(parameters, self.streaks)[:, :, :height, :width]
        return (pale(images) + self.eps * fallen).clamp(0, 1)

    def restrict(self, parameters: Tensor) -> Tensor:
        """Clamp flakes to their range, and dim those of a block that has too much snow."""
        return limit_snow(parameters)


def pale(images: Tensor) -> Tensor:
    """Mix images (points, channels, height, width) with their brightened grey, where that is brighter; not clamped."""
    if images.shape[1] == len(_LUMA):
        luma = torch.tensor(_LUMA, device=images.device, dtype=images.dtype)
        grey = (images * luma[:, None, None]).sum(1, keepdim=True)
    else:
        grey = images.mean(1, keepdim=True)
    return _PALE * images + (1 - _PALE) * torch.maximum(images, 1.5 * grey + 0.5)


def limit_snow(flakes: Tensor) -> Tensor:
    """Clamp flakes (points, 7, rows, columns) to [1e-9, 1], and rescale each block of 8 x 8 whose mean is above 0.2.

    Blocks at the right and at the bottom edge may be smaller.
    """
    flakes = flakes.clamp(_FAINTEST, 1)
    means = F.avg_pool2d(flakes, _BLOCK, ceil_mode=True, count_include_pad=False)
    factors = (_MOST_SNOW / means).clamp(max=1)
    factors = factors.repeat_interleave(_BLOCK, 2).repeat_interleave(_BLOCK, 3)
    return flakes * factors[:, :, : flakes.shape[2], : flakes.shape[3]]


def draw_streaks(numbers: PointNumbers) -> Tensor:
    """Draw what a flake of each layer looks like, (points, 7, 16, 16): a line of 13 pixels in a random direction,
    blurred, at a random place in the 4 x 4 pixels that a flake stands for."""
    angles = torch.pi * numbers.uniform(1, _LAYERS)[:, :, None, None]
    least, most = _BLURS
    blurs = least + (most - least) * numbers.uniform(2, _LAYERS)[:, :, None, None]
    down, across = numbers.integers(3, 2 * _LAYERS, _PITCH).view(-1, 2, _LAYERS, 1, 1).unbind(1)
    pixels = torch.arange(2 * _HALF + _PITCH, device=angles.device).float()
    rows, columns = pixels[:, None] - _HALF - down, pixels - _HALF - across
    along = columns * angles.cos() + rows * angles.sin()
    beside = rows * angles.cos() - columns * angles.sin()
    # A line of brightness 1 per pixel of its length, in a Gaussian blur.
    reach = (2**0.5) * blurs
    drawn_out = torch.erf((along + _HALF) / reach) - torch.erf((along - _HALF) / reach)
    streaks = drawn_out / 2 * (-((beside / reach) ** 2)).exp() / (blurs * (2 * torch.pi) ** 0.5)
    return streaks * ((rows.abs() <= _HALF) & (columns.abs() <= _HALF))


def snow_field(flakes: Tensor, streaks: Tensor) -> Tensor:
    """Draw the streaks of all layers, (points, 1, 4 rows, 4 columns), each as bright as its flake to the fourth power.

    flakes (points, 7, rows, columns); streaks (points, 7, 16, 16). A flake lies every 4 pixels.
    """
    rows, columns = flakes.shape[2:]
    patches = streaks.flatten(2).mT @ flakes.pow(4).flatten(2)
    # Patches overlap. The first one starts where its streak may be centred at the first pixel.
    return F.fold(patches, (_PITCH * rows, _PITCH * columns), streaks.shape[2:], padding=_HALF, stride=_PITCH)
