"""The moves of Square: square windows of an image, and how a move perturbs them in each norm.

Andriushchenko et al. 2020 (arXiv 1912.00049): algorithm 2 for linf, algorithm 3 for l2. For l1 the moves are those of
l2 with lengths in l1 (Croce & Hein 2021, arXiv 2103.01208). Rounding, and the order in which random numbers are drawn,
are AutoAttack's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from core.attacks.rng import Noise
from core.attacks.threat import LpThreat
from core.geometry import l1_correction, length, project, rescale
from core.schema.catalog import Norm


def moves_of(threat: LpThreat) -> "Moves":
    """Give the moves for a threat."""
    return _MOVES[threat.norm](threat.eps)


class Windows:
    """All square windows of one side in images of one size."""

    def __init__(self, side: int, images: Tensor) -> None:
        height, width = images.shape[2:]
        self.side = side
        self._width = width
        # As in AutoAttack, a window never lies at the bottom or right edge unless it fills the image that way.
        self._reach = torch.tensor([height - side, width - side], device=images.device)
        self._columns = max(width - side, 1)
        self.positions = max(height - side, 1) * self._columns
        steps = torch.arange(side, device=images.device)
        self._pixels = (steps[:, None] * width + steps).flatten()

    def choose(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Turn draws (points, 2) into positions (points,) and pixels (points, 1, side * side) of the flat image."""
        rows, columns = (draws * self._reach).long().unbind(1)
        corners = rows * self._width + columns
        return rows * self._columns + columns, (corners[:, None] + self._pixels)[:, None]


class Moves(Protocol):
    """How points move in a norm."""

    smallest: int
    """The shortest side of a window."""

    def start(self, images: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
        """Draw a starting point for each image; counts: points in each logical batch."""

    def kinds(self, windows: Windows, channels: int) -> int:
        """Count the different moves of a point with these windows."""

    def propose(
        self, images: Tensor, best: Tensor, counts: Sequence[int], windows: Windows, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Draw a move for each point, from its best perturbed image so far.

        images, best (points, channels, height, width); counts: points in each logical batch. Returns the perturbed
        images after the move, and the number of each move (points,), below `kinds`.
        """


class BlockMoves:
    """linf: one window, moved to one face of the ball or the opposite in each channel."""

    smallest = 1

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def start(self, images: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
        """Draw vertical stripes."""
        channels, _, width = images.shape[1:]
        _, draws = noise.shared_and_own(counts, 0, channels * width)
        stripes = _signs(draws.to(images)).view(-1, channels, 1, width)
        return (images + self._eps * stripes).clamp(0, 1)

    def kinds(self, windows: Windows, channels: int) -> int:
        """Count windows and signs."""
        return windows.positions * 3**channels

    def propose(
        self, images: Tensor, best: Tensor, counts: Sequence[int], windows: Windows, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Draw a window and a sign per channel for each batch."""
        channels = images.shape[1]
        draws = noise.shared_and_own(counts, 2 + channels, 0)[0].to(images)
        positions, pixels = windows.choose(draws[:, :2])
        pixels = pixels.expand(-1, channels, -1)
        signs = _signs(draws[:, 2:])
        flat = best.flatten(2)
        moved = flat.gather(2, pixels) + 2 * self._eps * signs[:, :, None]
        moved = project(images.flatten(2).gather(2, pixels), moved, "linf", self._eps)
        candidates = flat.scatter(2, pixels, moved).view_as(best)
        return candidates, positions * 3**channels + _number(signs)


class BumpMoves(ABC):
    """l2 and l1: one window gets a bump beside a dent, and another loses its perturbation to make up for the length."""

    smallest = 3
    norm: Norm
    steepness: int
    """The power of its number by which a terrace of a bump is lower than the one inside it."""

    def __init__(self, eps: float) -> None:
        self._eps = eps
        self._bumps: dict[int, Tensor] = {}

    @abstractmethod
    def fill(self, content: Tensor, whole: Tensor, windows: Tensor) -> Tensor:
        """Rescale each channel of a window to the length of both windows together and a share of the rest of the ball.

        content (points, channels, pixels); whole: the length of the perturbation (points, 1, 1); windows: of its part
        in the windows (points, channels, 1).
        """

    @abstractmethod
    def into_ball(self, images: Tensor, delta: Tensor) -> Tensor:
        """Add perturbations to images and bring them into ball and box; all (points, channels, height, width)."""

    def start(self, images: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
        """Tile the image with bumps."""
        channels, height, width = images.shape[1:]
        shorter = min(height, width)
        side = max(shorter // 5, 1)
        edge = max((shorter - 5 * side) // 2, 0)
        delta = torch.zeros_like(images)
        for top in range(edge, edge + height // side * side, side):
            for left in range(edge, edge + width // side * side, side):
                turned, own = noise.shared_and_own(counts, 1, channels)
                bumps = self._draw(side, turned[:, 0].to(images), _signs(own.to(images)))
                part = delta[:, :, top : top + side, left : left + side]
                # The last tiles may reach over the edge.
                part += bumps.unflatten(2, (side, side))[:, :, : part.shape[2], : part.shape[3]]
        return self.into_ball(images, delta)

    def kinds(self, windows: Windows, channels: int) -> int:
        """Count pairs of windows, orientations of the bump, and signs."""
        return windows.positions**2 * 2 * 3**channels

    def propose(
        self, images: Tensor, best: Tensor, counts: Sequence[int], windows: Windows, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Draw two windows and an orientation of the bump for each batch, and a sign per channel for each point."""
        channels = images.shape[1]
        shared, own = noise.shared_and_own(counts, 5, channels)
        shared, signs = shared.to(images), _signs(own.to(images))
        positions, pixels = windows.choose(shared[:, :2])
        other_positions, other_pixels = windows.choose(shared[:, 2:4])
        pixels, other_pixels = pixels.expand(-1, channels, -1), other_pixels.expand(-1, channels, -1)

        delta = (best - images).flatten(2)
        held = delta.gather(2, pixels)
        rest = delta.scatter(2, pixels, 0)
        rest = rest.scatter_(2, other_pixels, 0)
        content = self._draw(windows.side, shared[:, 4], signs) + self.rescale(held)
        content = self.fill(content, length(delta, self.norm)[:, None, None], self._size(delta - rest))
        delta = rest.scatter_(2, pixels, content).view_as(images)

        kinds = ((positions * windows.positions + other_positions) * 2 + (shared[:, 4] > 0.5)) * 3**channels
        return self.into_ball(images, delta), kinds + _number(signs)

    def _draw(self, side: int, turned: Tensor, signs: Tensor) -> Tensor:
        """Build the bumps that were drawn; turned (points,), signs (points, channels): (points, channels, pixels)."""
        if side not in self._bumps:
            bump = _bump(side, self.norm, self.steepness).to(signs)
            self._bumps[side] = torch.stack([bump.flatten(), bump.T.flatten()])
        return self._bumps[side][(turned > 0.5).long()][:, None] * signs[:, :, None]

    def _size(self, content: Tensor) -> Tensor:
        """Measure each channel: (points, channels, pixels) -> (points, channels, 1)."""
        return length(content.flatten(0, 1), self.norm).view(*content.shape[:2], 1)

    def rescale(self, content: Tensor) -> Tensor:
        """Give each channel length one."""
        return rescale(content.flatten(0, 1), self.norm).view_as(content)


class L2Moves(BumpMoves):
    """Bumps measured in l2; a move rescales the perturbation to the radius and clips it to the box."""

    norm: Norm = "l2"
    steepness = 2

    def fill(self, content: Tensor, whole: Tensor, windows: Tensor) -> Tensor:
        """Add the squares of the lengths: (points, channels, pixels)."""
        left = (torch.full_like(whole, self._eps).square() - whole.square()).clamp(min=0)
        return self.rescale(content) * (left / content.shape[1] + windows.square()).sqrt()

    def into_ball(self, images: Tensor, delta: Tensor) -> Tensor:
        """Rescale perturbations (points, channels, height, width) to the radius, add them to images, then clip."""
        return (images + rescale(delta, self.norm) * self._eps).clamp(0, 1)


class L1Moves(BumpMoves):
    """Bumps measured in l1; a move projects the perturbation onto ball and box."""

    norm: Norm = "l1"
    steepness = 4

    def fill(self, content: Tensor, whole: Tensor, windows: Tensor) -> Tensor:
        """Add the lengths: (points, channels, pixels). With several channels the result leaves the ball: the projection
        shortens it."""
        channels = content.shape[1]
        left = (torch.full_like(whole, self._eps) - whole).clamp(min=0)
        return self.rescale(content) * (left / channels + windows) * channels

    def into_ball(self, images: Tensor, delta: Tensor) -> Tensor:
        """Add perturbations (points, channels, height, width); project onto a slightly smaller ball, as AutoAttack."""
        return images + delta + l1_correction(images, delta, self._eps * (1 - 1e-6))


_MOVES: Mapping[Norm, Callable[[float], Moves]] = {"linf": BlockMoves, "l2": L2Moves, "l1": L1Moves}


def _bump(side: int, norm: Norm, steepness: int) -> Tensor:
    """Build a bump over a dent, (side, side), of length one."""
    upper = side // 2
    halves = _hill(upper, side, norm, steepness), -_hill(side - upper, side, norm, steepness)
    return rescale(torch.cat(halves)[None], norm)[0]


def _hill(height: int, width: int, norm: Norm, steepness: int) -> Tensor:
    """Build a hill of terraces (height, width) of length one, steeper towards its middle."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    from_middle = torch.maximum(rows[:, None], columns)
    hill = torch.zeros(height, width)
    for terrace in range(max(height, width) // 2 + 1):
        hill += (from_middle <= terrace) / (terrace + 1) ** steepness
    return rescale(hill[None], norm)[0]


def _signs(draws: Tensor) -> Tensor:
    """Turn draws from [0, 1) into signs; one in sixteen million is 0."""
    return (2 * draws - 1).sign()


def _number(signs: Tensor) -> Tensor:
    """Number signs (points, channels) from 0 on."""
    number = torch.zeros_like(signs[:, 0])
    for sign in signs.unbind(1):
        number = number * 3 + sign + 1
    return number.long()
