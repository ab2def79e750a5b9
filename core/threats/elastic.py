"""Adversarial elastic deformation: a smooth field that shifts each pixel (Kang et al. 2019, arXiv 1908.08016)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.schema.errors import BadInput
from core.threats.parameter_ascent import STEPS, Distortion, Drawn, climb
from core.threats.parameter_threat import ParameterThreat, lies_between
from core.threats.random_numbers import PointNumbers

# The deviation of the smoothing window as a share of the shorter side, and where the window ends, in deviations. Both
# settings of the authors follow: 5 pixels with deviation 0.43 at 32 x 32, 25 pixels with deviation 3 at 224 x 224.
_DEVIATION = 3 / 224
_WINDOW = 4


@dataclass(frozen=True)
class ElasticThreat(ParameterThreat):
    """A smooth shift of the pixels; `eps` is the longest shift in each direction, in pixels."""

    id: ClassVar[str] = "elastic"
    least_side: ClassVar[int] = 2

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput for images that are too small, or shifts that leave them; shape (channels, height, width)."""
        super().check(shape)
        shorter = min(shape[1:])
        if self.eps >= shorter:
            raise BadInput(
                f"elastic may shift pixels by {self.eps:g}, out of an image whose shorter side is {shorter}",
                hint=f"give a budget below {shorter} pixels",
                field="evaluation.unseen",
            )

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check the box, and that no pixel is darker or brighter than all within eps of its place.

        Whether one smooth field explains all pixels is not checked. Returns (batch,) bool.
        """
        reach = ceil(self.eps)
        # Outside the image it is black, as compat sees it.
        around = F.pad(images, [reach] * 4)
        high = F.max_pool2d(around, 2 * reach + 1, stride=1)
        low = -F.max_pool2d(-around, 2 * reach + 1, stride=1)
        return lies_between(perturbed, low, high)


@Attack
def elastic(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ElasticThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int = STEPS,
    compat: bool = False,
) -> Steps:
    """Search the fields of shifts for errors, in `steps` sign steps from a random field. `loss` is the cross-entropy.

    compat: the last iterate counts and no point leaves; what is shifted in from outside the image is black, where the
    default repeats the edge; a pixel that is NaN is that of the image.

    Costs of a point that is never fooled: steps + 2 forward passes (image, random start, each step) and steps backward.
    """
    eps = threat.eps

    def draw(images: Tensor, numbers: PointNumbers) -> Drawn:
        _, _, height, width = images.shape
        uniform = numbers.uniform(0, 2 * height * width).to(images).view(-1, 2, height, width)
        return Drawn(_Elastic(eps, compat), (2 * uniform - 1) * eps)

    return (yield from climb(model, images, labels, draw, options, steps=steps, reach=eps, compat=compat))


@dataclass(frozen=True)
class _Elastic(Distortion):
    """Shifts by at most `eps` pixels."""

    eps: float
    compat: bool

    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Shift the pixels; parameters (points, 2, height, width), in pixels."""
        del first
        return shift_pixels(images, smooth(parameters), outside="zeros" if self.compat else "border").clamp(0, 1)

    def restrict(self, parameters: Tensor) -> Tensor:
        """Clamp shifts to [-eps, eps]."""
        return parameters.clamp(-self.eps, self.eps)


def smooth(field: Tensor) -> Tensor:
    """Smooth a field (points, 2, height, width) with a Gaussian window that suits its size; the edge is repeated."""
    deviation = _DEVIATION * min(field.shape[2:])
    half = ceil(_WINDOW * deviation)
    offsets = torch.arange(-half, half + 1, device=field.device, dtype=field.dtype)
    window = (-((offsets / deviation) ** 2) / 2).exp()
    window = window / window.sum()
    planes = F.pad(field.flatten(0, 1)[:, None], [half] * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view_as(field)


def shift_pixels(images: Tensor, field: Tensor, *, outside: str = "border") -> Tensor:
    """Take each pixel from its place plus the field there, interpolated linearly.

    images (points, channels, height, width); field (points, 2, height, width): shifts to the right and down, in pixels.
    outside: what lies there, as `torch.nn.functional.grid_sample` calls it. A field of zeros changes nothing beyond
    rounding.
    """
    height, width = images.shape[2:]
    across, down = (torch.arange(size, device=field.device, dtype=field.dtype) for size in (width, height))
    columns = (2 * (across + field[:, 0]) + 1) / width - 1
    rows = (2 * (down[:, None] + field[:, 1]) + 1) / height - 1
    grid = torch.stack([columns, rows], 3)
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=False)
