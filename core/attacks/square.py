"""Square: a random search that changes square windows and sees nothing but the logits.

Andriushchenko et al. 2020 (arXiv 1912.00049): algorithm 1 is the search, algorithm 2 its moves for linf, algorithm 3
those for l2. For l1 the moves are those of l2 with lengths in l1 and a projection onto ball and box (Croce & Hein 2021,
arXiv 2103.01208). Settings, rounding, and the order in which random numbers are drawn are AutoAttack's: what a point is
moved to depends on every comparison before it, and in l2 and l1 on when its batch-mates fall.

No pass is spent on a point that has fallen, nor on a move that is known not to help: one that leaves the point where it
is, or that has been tried since the point last moved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, RunningResult, State, Steps, frozen
from core.attacks.forward import predict
from core.attacks.rng import Noise
from core.attacks.threat import LpThreat
from core.geometry import length, project, project_by_sorting, rescale
from core.schema.catalog import Norm
from core.schema.protocols import QUERIES

# The share of the image that the first windows cover, and the queries after which it halves.
_SHARE = 0.8
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# What of the points is in a state.
_OWN = ("place", "best", "lead", "tried")


@Attack
def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    queries: int = QUERIES,
) -> Steps:
    """Search for errors from one random start, in at most `queries` + 2 forward passes per point and no backward ones.

    `loss` is the best wrong logit minus the true one. Where a point stands, `adversarial` is where that was highest. A
    step is a query.
    """
    chunk_size, noise = options.chunk_size, options.noise(len(images))
    with frozen(model):
        logits = predict(model, images, chunk_size=chunk_size)
        result = RunningResult(images.clone(), logits.argmax(1) == labels, _lead(logits, labels))
        moves: _Moves = _Blocks(threat.eps) if threat.norm == "linf" else _Bumps(threat.norm, threat.eps)
        if state := options.state:
            result.restore(state)
            noise.restore(state["noise"])
            points, asked = _Points.restored(state, images, labels, noise), int(state["asked"])
        elif not bool(result.robust.any()):
            return result.finish()
        else:
            points, asked = _begin(model, images, labels, moves, result, noise, chunk_size), 0

        def now() -> State:
            counts = {"asked": torch.tensor(asked), "noise": noise.state()}
            return {**result.state(images), **points.state(), **counts}

        behind = asked
        for side, count in _sides(moves.smallest, images.shape[2:], queries):
            if behind >= count:
                behind -= count
                continue
            windows = _Windows(side, images)
            if behind == 0:
                kinds = moves.kinds(windows, images.shape[1])
                # With more kinds of moves than queries, hardly any would come twice.
                points.tried = labels.new_zeros(len(points.place), kinds, dtype=torch.bool) if kinds <= count else None
            for _ in range(behind, count):
                if len(points.place) == 0:
                    return result.finish()
                _query(model, points, moves, windows, result, noise, chunk_size)
                asked += 1
                yield now
            behind = 0
        result.adversarial[points.place] = points.best.clamp(0, 1)
        result.loss[points.place] = points.lead
        return result.finish()


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Subtract the true logit from the best wrong one: (batch, classes) -> (batch,)."""
    index = labels[:, None]
    return (logits.scatter(1, index, -torch.inf).amax(1, keepdim=True) - logits.gather(1, index)).squeeze(1)


def _sides(smallest: int, shape: Sequence[int], queries: int) -> Iterator[tuple[int, int]]:
    """Say how long the sides of the windows are, and for how many queries, one pair after the other."""
    height, width = shape

    def side(query: int) -> int:
        share = _SHARE / 2 ** sum(query > end for end in _HALVINGS)
        wanted = max(round(sqrt(share * height * width)), smallest)
        if smallest > 1 and wanted % 2 == 0:
            wanted += 1
        return min(wanted, height, width)

    for size, same in groupby(range(queries), side):
        yield size, sum(1 for _ in same)


@dataclass
class _Points:
    """The points that stand."""

    place: Tensor
    """(points,): which of all points they are."""
    images: Tensor
    labels: Tensor
    best: Tensor
    """Where the lead was highest; inside ball and box but for rounding."""
    lead: Tensor
    """(points,): of the best wrong class over the true one; below 0."""
    counts: list[int]
    """How many of the points lie in each logical batch."""
    tried: Tensor | None
    """(points, kinds) bool: which kinds of moves each point has tried since it last moved, where that is kept."""

    def part(self, standing: Tensor, answers: Tensor, result: RunningResult, noise: Noise) -> None:
        """Keep the points that stand (points,), and enter the others into `result`. answers (points,): the classes."""
        if bool(standing.all()):
            return
        place, fallen = self.place[~standing], ~standing
        result.adversarial[place] = self.best[fallen].clamp(0, 1)
        result.loss[place] = self.lead[fallen]
        # Where two logits are equal, a point of lead 0 need not be an error.
        result.robust[place] = answers[fallen] == self.labels[fallen]
        self.place, self.images, self.labels = self.place[standing], self.images[standing], self.labels[standing]
        self.best, self.lead = self.best[standing], self.lead[standing]
        self.tried = None if self.tried is None else self.tried[standing]
        self.counts = noise.counts(self.place)

    def state(self) -> State:
        """Give what `restored` makes them of again."""
        tried = {} if self.tried is None else {"tried": self.tried}
        return {"place": self.place, "best": self.best, "lead": self.lead, **tried}

    @classmethod
    def restored(cls, state: State, images: Tensor, labels: Tensor, noise: Noise) -> Self:
        """Make them of their state; images and labels are of all points."""
        own = {name: tensor.to(images.device, copy=True) for name, tensor in state.items() if name in _OWN}
        place = own["place"]
        return cls(place, images[place], labels[place], own["best"], own["lead"], noise.counts(place), own.get("tried"))


class _Windows:
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


class _Moves(Protocol):
    """How the search goes in a norm."""

    smallest: int
    """The shortest side of its windows."""

    def start(self, images: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
        """Draw a first point for each image."""

    def kinds(self, windows: _Windows, channels: int) -> int:
        """Count the moves that a point can make with these windows."""

    def propose(self, points: _Points, windows: _Windows, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw a move per point: return where it leads (points, ...), and its kind (points,)."""


@torch.no_grad()
def _begin(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    moves: _Moves,
    result: RunningResult,
    noise: Noise,
    chunk_size: int | None,
) -> _Points:
    """Look at a first point for each image that the model is right on."""
    place = result.robust.nonzero().squeeze(1)
    images, labels, counts = images[place], labels[place], noise.counts(place)
    start = moves.start(images, noise, counts)
    logits = predict(model, start, chunk_size=chunk_size)
    points = _Points(place, images, labels, start, _lead(logits, labels), counts, tried=None)
    points.part(points.lead < 0, logits.argmax(1), result, noise)
    return points


@torch.no_grad()
def _query(
    model: nn.Module,
    points: _Points,
    moves: _Moves,
    windows: _Windows,
    result: RunningResult,
    noise: Noise,
    chunk_size: int | None,
) -> None:
    """Make a move with windows of one side for each point, keeping those that raise the lead."""
    candidates, kinds = moves.propose(points, windows, noise)
    open_ = (candidates != points.best).flatten(1).any(1)
    if points.tried is not None:
        open_ &= ~points.tried.gather(1, kinds[:, None]).squeeze(1)
        points.tried.scatter_(1, kinds[:, None], True)
    asked = open_.nonzero().squeeze(1)
    if len(asked) == 0:
        return
    if len(asked) < len(candidates):
        candidates = candidates[asked]
    logits = predict(model, candidates, chunk_size=chunk_size)
    lead = _lead(logits, points.labels[asked])
    better = (lead > points.lead[asked]).nonzero().squeeze(1)
    if len(better) == 0:
        return
    risen = asked[better]
    points.best[risen] = candidates[better]
    points.lead[risen] = lead[better]
    if points.tried is not None:
        points.tried[risen] = False
    answers = points.labels.index_put((asked,), logits.argmax(1))
    points.part(points.lead < 0, answers, result, noise)


class _Blocks:
    """linf: one window, moved to one side of the ball or the other in each channel."""

    smallest = 1

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def start(self, images: Tensor, noise: Noise, counts: Sequence[int]) -> Tensor:
        """Draw vertical stripes."""
        channels, _, width = images.shape[1:]
        _, draws = noise.shared_and_own(counts, 0, channels * width)
        stripes = _signs(draws.to(images)).view(-1, channels, 1, width)
        return (images + self._eps * stripes).clamp(0, 1)

    def kinds(self, windows: _Windows, channels: int) -> int:
        """Count windows and signs."""
        return windows.positions * 3**channels

    def propose(self, points: _Points, windows: _Windows, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw a window and a sign per channel for each batch."""
        channels = points.images.shape[1]
        draws = noise.shared_and_own(points.counts, 2 + channels, 0)[0].to(points.images)
        positions, pixels = windows.choose(draws[:, :2])
        pixels = pixels.expand(-1, channels, -1)
        signs = _signs(draws[:, 2:])
        best = points.best.flatten(2)
        moved = best.gather(2, pixels) + 2 * self._eps * signs[:, :, None]
        moved = project(points.images.flatten(2).gather(2, pixels), moved, "linf", self._eps)
        candidates = best.scatter(2, pixels, moved).view_as(points.best)
        return candidates, positions * 3**channels + _number(signs)


class _Bumps:
    """l2 and l1: one window gets a bump beside a dent, and another is emptied to make room for it in the ball."""

    smallest = 3

    def __init__(self, norm: Norm, eps: float) -> None:
        self._norm: Norm = norm
        self._eps = eps
        self._bumps: dict[int, Tensor] = {}

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
        return self._into_ball(images, delta)

    def kinds(self, windows: _Windows, channels: int) -> int:
        """Count pairs of windows, ways to turn the bump, and signs."""
        return windows.positions**2 * 2 * 3**channels

    def propose(self, points: _Points, windows: _Windows, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw two windows and a way to turn the bump for each batch, and a sign per channel for each point."""
        channels = points.images.shape[1]
        shared, own = noise.shared_and_own(points.counts, 5, channels)
        shared, signs = shared.to(points.images), _signs(own.to(points.images))
        positions, pixels = windows.choose(shared[:, :2])
        other_positions, other_pixels = windows.choose(shared[:, 2:4])
        pixels, other_pixels = pixels.expand(-1, channels, -1), other_pixels.expand(-1, channels, -1)

        delta = (points.best - points.images).flatten(2)
        held = delta.gather(2, pixels)
        rest = delta.scatter(2, pixels, 0)
        rest = rest.scatter_(2, other_pixels, 0)
        content = self._draw(windows.side, shared[:, 4], signs) + self._rescale(held)
        content = self._fill(content, length(delta, self._norm)[:, None, None], self._size(delta - rest))
        delta = rest.scatter_(2, pixels, content).view_as(points.images)

        kinds = ((positions * windows.positions + other_positions) * 2 + (shared[:, 4] > 0.5)) * 3**channels
        return self._into_ball(points.images, delta), kinds + _number(signs)

    def _draw(self, side: int, turned: Tensor, signs: Tensor) -> Tensor:
        """Make the bumps that were drawn; turned (points,), signs (points, channels): (points, channels, pixels)."""
        if side not in self._bumps:
            bump = _bump(side, self._norm).to(signs)
            self._bumps[side] = torch.stack([bump.flatten(), bump.T.flatten()])
        return self._bumps[side][(turned > 0.5).long()][:, None] * signs[:, :, None]

    def _size(self, content: Tensor) -> Tensor:
        """Measure each channel: (points, channels, pixels) -> (points, channels, 1)."""
        return length(content.flatten(0, 1), self._norm).view(*content.shape[:2], 1)

    def _rescale(self, content: Tensor) -> Tensor:
        """Give each channel length one."""
        return rescale(content.flatten(0, 1), self._norm).view_as(content)

    def _fill(self, content: Tensor, whole: Tensor, windows: Tensor) -> Tensor:
        """Make each channel of a window as long as both windows were together, with its share of what the ball leaves.

        whole: the length of the perturbation (points, 1, 1); windows: of its part in the windows (points, channels, 1).
        """
        channels = content.shape[1]
        radius = torch.full_like(whole, self._eps)
        if self._norm == "l1":
            # Longer than fits, with several channels: the projection shortens it.
            return self._rescale(content) * ((radius - whole).clamp(min=0) / channels + windows) * channels
        left = (radius.square() - whole.square()).clamp(min=0)
        return self._rescale(content) * (left / channels + windows.square()).sqrt()

    def _into_ball(self, images: Tensor, delta: Tensor) -> Tensor:
        """Bring perturbations into ball and box; for l2, after making them as long as the ball allows."""
        if self._norm == "l1":
            return project_by_sorting(images, delta, self._eps * (1 - 1e-6))
        return (images + rescale(delta, "l2") * self._eps).clamp(0, 1)


def _bump(side: int, norm: Norm) -> Tensor:
    """Build a bump over a dent, (side, side), of length one."""
    upper = side // 2
    return rescale(torch.cat([_hill(upper, side, norm), -_hill(side - upper, side, norm)])[None], norm)[0]


def _hill(height: int, width: int, norm: Norm) -> Tensor:
    """Build a hill of terraces (height, width) of length one, ever steeper towards its middle."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    from_middle = torch.maximum(rows[:, None], columns)
    power = 4 if norm == "l1" else 2
    hill = torch.zeros(height, width)
    for terrace in range(max(height, width) // 2 + 1):
        hill += (from_middle <= terrace) / (terrace + 1) ** power
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
