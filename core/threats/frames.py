"""frame: the border of the image, which may show anything.

Sparse-RS (Croce et al. 2022, arXiv 2006.12834, section "Frame-RS", a frame for each image): windows that begin at a
pixel of the border are recoloured where they lie on the border.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.schema.errors import BadInput
from core.threats.budgets import check_count, in_box
from core.threats.corner_colours import corners, number_of, other_corners
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import QUERIES, Draws, Position, numbered, search, single_channels_from

# How large the first windows are, relative to a square of the border's width.
_SHARE = 0.5


@dataclass(frozen=True)
class FrameThreat:
    """The pixels change whose distance to an edge is below a width."""

    width: int
    """In pixels."""

    @property
    def id(self) -> str:
        """The key of the row in a report."""
        return "frame"

    def __post_init__(self) -> None:
        check_count(self.width, "width of the frame", example=1)

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput where the frame covers an image (channels, height, width)."""
        _, height, width = shape
        largest = (min(height, width) - 1) // 2
        if self.width > largest:
            raise BadInput(
                f"a frame of width {self.width} covers all of an image of {height} x {width}",
                hint=f"give a width of at most {largest}" if largest else "give images of 3 x 3 pixels or more",
                field="evaluation.unseen",
            )

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check that only pixels of the border differ, and the box, without tolerance: (batch,) bool."""
        inner = ~_border(self.width, images)
        return ~((images != perturbed) & inner).flatten(1).any(1) & in_box(perturbed)


def _border(thickness: int, images: Tensor) -> Tensor:
    """Give the border of images (..., height, width): (height, width) bool."""
    border = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    border[thickness:-thickness, thickness:-thickness] = False
    return border


@Attack
def frame(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: FrameThreat,
    options: AttackOptions = DEFAULTS,
    *,
    queries: int = QUERIES,
    compat: bool = False,
) -> Steps:
    """Search for errors in at most `queries` + 1 forward passes per point and no backward ones (`search`).

    compat: in each query the points of a logical batch recolour the same window or channel; and a margin of 0 ends the
    search of a point.
    """
    moves = FrameMoves(threat.width, images, queries)
    return search(model, images, labels, moves, options, queries=queries, compat=compat)


class FrameMoves:
    """Recolour a window of the border."""

    def __init__(self, thickness: int, images: Tensor, queries: int) -> None:
        self._channels = images.shape[1]
        self._thickness, self._queries = thickness, queries
        self._border = _border(thickness, images)
        self._pixels = self._border.nonzero()
        self._single_channels_from = single_channels_from(self._window, queries)
        self.kinds = numbered(len(self._pixels) * 2**self._channels, queries)

    def start(self, images: Tensor, numbers: PointNumbers) -> Position:
        """Draw a colour for each pixel of the border."""
        colours = corners(numbers.uniform(0, self._channels * len(self._pixels)), images)
        rows, columns = self._pixels.unbind(1)
        perturbed = images.clone()
        perturbed[:, :, rows, columns] = colours.unflatten(1, (self._channels, len(self._pixels)))
        return {"perturbed": perturbed}

    def propose(self, images: Tensor, position: Position, query: int, draws: Draws) -> tuple[Position, Tensor | None]:
        """Recolour the part of a window that lies on the border, later a pixel, in the end one of its channels."""
        perturbed, window = position["perturbed"], self._window(query)
        bounds = torch.tensor([len(self._pixels), 2, 2, self._channels], device=images.device)
        pixel, *directions, channel = draws.places_below(query, bounds).split(1, 1)
        place = self._pixels[pixel.squeeze(1)]
        if window > 1:
            colours = corners(draws.colour(query, self._channels), images)
            first = place - (window - 1) * torch.cat(directions, 1)
            inside = [_lines(first[:, axis], window, images.shape[2 + axis]) for axis in (0, 1)]
            covers = inside[0][:, :, None] & inside[1][:, None, :] & self._border
            return {"perturbed": torch.where(covers[:, None], colours[:, :, None, None], perturbed)}, None
        points = torch.arange(len(images), device=images.device)
        index = (points[:, None], torch.arange(self._channels, device=images.device), place[:, :1], place[:, 1:])
        present = perturbed[index]
        if query >= self._single_channels_from:
            colours = present.scatter(1, channel, 1 - present.gather(1, channel))
        else:
            colours = other_corners(present, draws.colour(query, self._channels))
        moved = {"perturbed": perturbed.index_put(index, colours)}
        return moved, pixel.squeeze(1) * 2**self._channels + number_of(colours) if self.kinds else None

    def _window(self, query: int) -> int:
        """Give the side of the windows that are recoloured: a multiple of 3, and 1 in the second half of the search."""
        left = (self._queries - query) / self._queries - 0.5
        return max(3 * ceil(max(left * _SHARE * self._thickness**2, 0)), 1)


def _lines(first: Tensor, count: int, length: int) -> Tensor:
    """Mark a number of lines from the first on (points,), of those that an image has: (points, length) bool."""
    lines = torch.arange(length, device=first.device)
    return (lines >= first[:, None]) & (lines < first[:, None] + count)
