"""l0: a number of pixels anywhere in the image, each of which may take any colour.

Sparse-RS (Croce et al. 2022, arXiv 2006.12834, section "L0-RS"): a set of pixels with corner colours, of which some go
back to their clean colours in each query while others enter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, Steps
from core.schema.errors import BadInput
from core.threats.budgets import check_count, in_box
from core.threats.corner_colours import corners, number_of, other_corners
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import QUERIES, Draws, Position, numbered, rescaled, search

# The share of the set that is exchanged at first, and until which query of 10,000 it is divided by what.
_SHARE = 0.3
_DIVISORS = ((0, 1), (50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15))
_LAST_DIVISOR = 20


@dataclass(frozen=True)
class PixelsThreat:
    """At most a number of pixels change, each in any of its channels."""

    pixels: int

    @property
    def id(self) -> str:
        """The key of the row in a report."""
        return "l0"

    def __post_init__(self) -> None:
        check_count(self.pixels, "number of pixels of l0", example=9)

    def check(self, shape: Sequence[int]) -> None:
        """Raise BadInput where every pixel of an image (channels, height, width) could change."""
        _, height, width = shape
        if self.pixels >= height * width:
            raise BadInput(
                f"l0 may change {self.pixels} pixels, and an image of {height} x {width} has {height * width}",
                hint="give a smaller number of pixels: an attacker who may change all can show any image",
                field="evaluation.unseen",
            )

    def contains(self, images: Tensor, perturbed: Tensor) -> Tensor:
        """Count the pixels that differ, and check the box, without tolerance: (batch,) bool."""
        differ = (images != perturbed).any(1).flatten(1).sum(1)
        return (differ <= self.pixels) & in_box(perturbed)


@Attack
def sparse_pixels(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: PixelsThreat,
    options: AttackOptions = DEFAULTS,
    *,
    queries: int = QUERIES,
    compat: bool = False,
) -> Steps:
    """Search for errors in at most `queries` + 1 forward passes per point and no backward ones (`search`).

    compat: in each query the points of a logical batch exchange the same places of their sets, and those that enter
    are at the same places among the other pixels; and a margin of 0 ends the search of a point.
    """
    moves = Exchanges(threat.pixels, images.shape[1:], queries)
    return search(model, images, labels, moves, options, queries=queries, compat=compat)


class Exchanges:
    """Exchange some pixels of the set for others.

    A position also has "pixels" (points, pixels): the set, as indices into the flat image, in any order.
    """

    def __init__(self, pixels: int, shape: Sequence[int], queries: int) -> None:
        self._channels, height, width = shape
        self._pixels, self._area, self._queries = pixels, height * width, queries
        self._others = self._area - pixels
        self.kinds = numbered(pixels * self._area * 2**self._channels, queries)

    def start(self, images: Tensor, numbers: PointNumbers) -> Position:
        """Draw the set, and a colour for each of its pixels."""
        draws = numbers.uniform(0, self._area + self._channels * self._pixels)
        pixels = _choose(draws[:, : self._area], self._pixels)
        colours = corners(draws[:, self._area :], images).unflatten(1, (self._channels, self._pixels))
        return {"perturbed": _paint(images, pixels, colours), "pixels": pixels}

    def propose(self, images: Tensor, position: Position, query: int, draws: Draws) -> tuple[Position, Tensor | None]:
        """Exchange as many pixels as the schedule says; a single one that enters changes its colour."""
        count, pixels = self._count(query), position["pixels"]
        if count == 1:
            bounds = torch.tensor([self._pixels, self._others], device=images.device)
            slots, ranks = draws.places_below(query, bounds).split(1, 1)
        else:
            keys = draws.place(query, self._area)
            slots, ranks = _choose(keys[:, : self._pixels], count), _choose(keys[:, self._pixels :], count)
        entering = _at_ranks(pixels, ranks)
        drawn = draws.colour(query, self._channels * count)
        if count == 1:
            colours = other_corners(_colours(images, entering).squeeze(2), drawn)[:, :, None]
        else:
            colours = corners(drawn, images).unflatten(1, (self._channels, count))
        leaving = pixels.gather(1, slots)
        changed, colours_then = torch.cat([leaving, entering], 1), torch.cat([_colours(images, leaving), colours], 2)
        perturbed = _paint(position["perturbed"], changed, colours_then)
        moved = {"perturbed": perturbed, "pixels": pixels.scatter(1, slots, entering)}
        if not self.kinds or count > 1:
            return moved, None
        places = (slots * self._area + entering).squeeze(1)
        return moved, places * 2**self._channels + number_of(colours[:, :, 0])

    def _count(self, query: int) -> int:
        time = rescaled(query, self._queries)
        divisor = next((divisor for end, divisor in _DIVISORS if time <= end), _LAST_DIVISOR)
        return min(max(int(_SHARE / divisor * self._pixels), 1), self._others)


def _choose(keys: Tensor, count: int) -> Tensor:
    """Choose different columns by keys (points, columns): (points, count)."""
    # A stable sort gives the same for equal keys on any device.
    return keys.argsort(dim=1, stable=True)[:, :count]


def _at_ranks(pixels: Tensor, ranks: Tensor) -> Tensor:
    """Give the pixels that have certain ranks among those outside the set: ranks, from 0 (points, count)."""
    ordered = pixels.sort(1).values
    # How many pixels outside the set lie before each of its pixels.
    before = ordered - torch.arange(pixels.shape[1], device=pixels.device)
    return ranks + torch.searchsorted(before, ranks.contiguous(), right=True)


def _colours(images: Tensor, pixels: Tensor) -> Tensor:
    """Read the colours of pixels (points, count): (points, channels, count)."""
    return images.flatten(2).gather(2, pixels[:, None].expand(-1, images.shape[1], -1))


def _paint(images: Tensor, pixels: Tensor, colours: Tensor) -> Tensor:
    """Give pixels (points, count) colours (points, channels, count), in a copy of the images."""
    return images.flatten(2).scatter(2, pixels[:, None].expand_as(colours), colours).view_as(images)
