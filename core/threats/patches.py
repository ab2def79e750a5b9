"""patch: one square of the image, which may lie anywhere and show anything.

Sparse-RS (Croce et al. 2022, arXiv 2006.12834, section "Patch-RS", a patch for each image): a patch of corner colours
that moves, and whose windows are recoloured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.schema.errors import BadInput
from core.threats.budgets import check_count, in_box
from core.threats.corner_colours import corners, number_of, other_corners
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import QUERIES, Draws, Position, numbered, rescaled, search, single_channels_from

# The share of the patch that the first windows cover, and the queries of 10,000 after which it halves.
_SHARE = 0.4
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# One query of this number moves the patch, at first by this share of the image at most.
_MOVES_EVERY = 4
_REACH = 0.75
# A start is made of this number of one-coloured squares at most.
_SQUARES = 1000


@dataclass(frozen=True)
class PatchThreat:
    """One square changes, which lies inside the image."""

    side: int
    """The side of the square in pixels."""

    @property
    def id(self) -> str:
        """The key of the row in a report."""
        return "patch"

    def __post_init__(self) -> None:
        check_count(self.side, "side of the patch", example=5)

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput where the patch is larger than an image (channels, height, width), or covers all of it."""
        _, height, width = shape
        largest = min(height, width) - (height == width)
        if self.side > largest:
            problem = "covers all of" if self.side == height == width else "is larger than"
            raise BadInput(
                f"a patch of {self.side} x {self.side} {problem} an image of {height} x {width}",
                hint=f"give a side of at most {largest}"
                if largest
                else "leave patch out, or evaluate on images of 2 x 2 or larger",
                field="evaluation.unseen",
            )

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Check that one square contains all pixels that differ, and the box, without tolerance: (batch,) bool."""
        differ = (images != perturbed).any(1)
        return (_extent(differ.any(2)) <= self.side) & (_extent(differ.any(1)) <= self.side) & in_box(perturbed)


def _extent(differ: Tensor) -> Tensor:
    """Count the lines from the first to the last that differs: (points, lines) bool to (points,); 0 where none does."""
    lines = torch.arange(1, differ.shape[1] + 1, device=differ.device)
    last = (differ * lines).amax(1)
    from_end = (differ * lines.flip(0)).amax(1)
    return (last + from_end - differ.shape[1]).clamp(min=0)


@Attack
def patch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: PatchThreat,
    options: AttackOptions = DEFAULTS,
    *,
    queries: int = QUERIES,
    compat: bool = False,
) -> Steps:
    """Search for errors in at most `queries` + 1 forward passes per point and no backward ones (`search`).

    compat: in each query the points of a logical batch move their patches by the same distance, or recolour the same
    window or channel of their patches; no patch starts in the last row or column that it could, nor moves at the end
    of the search, when the schedule rounds the distance to 0; and a margin of 0 ends the search of a point.
    """
    moves = PatchMoves(threat.side, images.shape[1:], queries, compat=compat)
    return search(model, images, labels, moves, options, queries=queries, compat=compat)


class PatchMoves:
    """Move the patch, or recolour a window of it.

    A position also has "corner" (points, 2): row and column of the patch's first pixel.
    """

    def __init__(self, side: int, shape: Sequence[int], queries: int, *, compat: bool) -> None:
        self._channels, *size = shape
        self._side, self._size, self._queries = side, size, queries
        self._last = [length - side for length in size]
        self._compat = compat
        self._single_channels_from = single_channels_from(self._window, queries)
        self._corners = (self._last[0] + 1) * (self._last[1] + 1)
        self.kinds = numbered(self._corners + side**2 * 2**self._channels, queries)

    def start(self, images: Tensor, numbers: PointNumbers) -> Position:
        """Draw where the patch lies, and one-coloured squares, of which later ones cover earlier ones."""
        last = torch.tensor(self._last, device=images.device)
        corner = numbers.integers(0, 2, last.clamp(min=1) if self._compat else last + 1)
        content = images.new_zeros(len(images), self._channels, self._side, self._side)
        free = torch.ones_like(content[:, 0], dtype=torch.bool)
        lines = torch.arange(self._side, device=images.device)
        largest = max(ceil(sqrt(self._side)) - 1, 1)
        for square in range(_SQUARES):
            # From the last square to the first, so that the others need not be drawn once all pixels are covered.
            draws = numbers.uniform(-1 - square, 3 + self._channels)
            sides = (draws[:, 0] * largest).long() + 1
            first = (draws[:, 1:3] * (self._side - sides + 1)[:, None]).long()
            inside = (lines >= first[..., None]) & (lines < (first + sides[:, None])[..., None])
            covers = inside[:, 0, :, None] & inside[:, 1, None, :] & free
            content = torch.where(covers[:, None], corners(draws[:, 3:], images)[..., None, None], content)
            free &= ~covers
            if not bool(free.any()):
                break
        return {"perturbed": _write(images, corner, content), "corner": corner}

    def propose(self, images: Tensor, position: Position, query: int, draws: Draws) -> tuple[Position, Tensor | None]:
        """Move the patch in every fourth query; else recolour a window, later a pixel, in the end a single channel."""
        if query % _MOVES_EVERY == 0:
            return self._shift(images, position, query, draws)
        perturbed, corner, window = position["perturbed"], position["corner"], self._window(query)
        single_channel = query >= self._single_channels_from
        places = self._side - window + 1
        bounds = torch.tensor([places, places, self._channels], device=images.device)
        row, column, channel = draws.places_below(query, bounds).split(1, 1)
        place = corner + torch.cat([row, column], 1)
        if window > 1:
            colours = corners(draws.colour(query, self._channels), images)
        else:
            present = _read(perturbed, place, 1).flatten(1)
            if single_channel:
                colours = present.scatter(1, channel, 1 - present.gather(1, channel))
            else:
                colours = other_corners(present, draws.colour(query, self._channels))
        block = colours[:, :, None, None].expand(-1, -1, window, window)
        moved = {"perturbed": _write(perturbed, place, block), "corner": corner}
        if not self.kinds or window > 1:
            return moved, None
        pixel = (row * self._side + column).squeeze(1)
        return moved, self._corners + pixel * 2**self._channels + number_of(colours)

    def _shift(self, images: Tensor, position: Position, query: int, draws: Draws) -> tuple[Position, Tensor | None]:
        """Move the patch with its colours, inside the image."""
        shortest = 0 if self._compat else 1
        time = _REACH * (1 - query / self._queries)
        reach = torch.tensor([max(int(time * length), shortest) for length in self._size], device=images.device)
        last = torch.tensor(self._last, device=images.device)
        shift = draws.places_below(query, 2 * reach + 1) - reach
        corner = (position["corner"] + shift).clamp(min=torch.zeros_like(last), max=last)
        content = _read(position["perturbed"], position["corner"], self._side)
        moved = {"perturbed": _write(images, corner, content), "corner": corner}
        return moved, corner[:, 0] * (self._last[1] + 1) + corner[:, 1] if self.kinds else None

    def _window(self, query: int) -> int:
        """Give the side of the windows that are recoloured."""
        time = rescaled(query, self._queries)
        share = _SHARE / 2 ** sum(time > end for end in _HALVINGS)
        return int(max(sqrt(share) * self._side, 1))


def _index(corner: Tensor, channels: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index the squares whose first pixels are given by row and column: corner (points, 2)."""
    points = torch.arange(len(corner), device=corner.device)[:, None, None, None]
    channel = torch.arange(channels, device=corner.device)[:, None, None]
    lines = torch.arange(side, device=corner.device)
    rows, columns = (corner[:, :, None] + lines).unbind(1)
    return points, channel, rows[:, None, :, None], columns[:, None, None, :]


def _read(images: Tensor, corner: Tensor, side: int) -> Tensor:
    """Read a square of each image: (points, channels, side, side)."""
    return images[_index(corner, images.shape[1], side)]


def _write(images: Tensor, corner: Tensor, content: Tensor) -> Tensor:
    """Write content (points, channels, side, side) into a square of each image, in a copy."""
    return images.index_put(_index(corner, images.shape[1], content.shape[2]), content)
