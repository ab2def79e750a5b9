"""Sparse-RS: a random search that changes few pixels and sees nothing but the logits.

Croce et al. 2022 (arXiv 2006.12834), algorithm 1. `Moves` say where a point starts and how it moves within a threat; a
move is kept where it raises the margin. Changed pixels have corner colours (`core.threats.corner_colours`).

No pass is spent on a point that is fooled, nor on a move that is known not to help: one that does not change the point,
or that was tried since the point last moved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from core.attacks import AttackOptions, RunningResult, State, Steps, begin, frozen
from core.attacks.forward import fools, is_answered, loss_of, predict
from core.attacks.losses import margin
from core.threats.random_numbers import PointNumbers

QUERIES = 5000
"""The default number of queries, as in `core/schema/threats.toml`: RAMP's for l0 (Jiang & Singh 2024, rebuttal)."""

Position = dict[str, Tensor]
"""Where points are, each tensor with a row per point; "perturbed" is (points, channels, height, width)."""

# The schedules are made for this number of queries, and stretched to others.
_SCHEDULED = 10_000
# How the keys of positions begin in a state.
_POSITION = "position."


@dataclass(frozen=True)
class Draws:
    """The random numbers of moves, counted by the query from 1 on."""

    places: PointNumbers
    """They decide which pixels a move changes."""
    colours: PointNumbers

    @classmethod
    def of(cls, own: PointNumbers, options: AttackOptions, *, compat: bool) -> Self:
        """Give them for points with numbers of their own; compat: points of a logical batch share the places."""
        return cls(own.shared(options.batch_sizes) if compat else own, own)

    def pick(self, indices: Tensor) -> "Draws":
        """Give the numbers of some of the points; indices: (n,) or a mask (points,)."""
        return Draws(self.places.pick(indices), self.colours.pick(indices))

    def place(self, query: int, count: int) -> Tensor:
        """Draw (points, count) numbers for places, uniform in [0, 1)."""
        return self.places.uniform(2 * query, count)

    def places_below(self, query: int, bounds: Tensor) -> Tensor:
        """Draw an integer from 0 below each of the bounds (count,), for places: (points, count)."""
        return self.places.integers(2 * query, len(bounds), bounds)

    def colour(self, query: int, count: int) -> Tensor:
        """Draw (points, count) numbers for colours, uniform in [0, 1)."""
        return self.colours.uniform(2 * query + 1, count)


class Moves(Protocol):
    """How points start and move within a threat."""

    @property
    def kinds(self) -> int:
        """How many moves there are that have a number; 0 where none has."""

    def start(self, images: Tensor, numbers: PointNumbers) -> Position:
        """Draw a start for each image, from the steps of the numbers up to 0."""

    def propose(self, images: Tensor, position: Position, query: int, draws: Draws) -> tuple[Position, Tensor | None]:
        """Draw a move for each point in a query from 1 on, and leave `position` as it is.

        Returns the positions after it, and the numbers of the moves (points,), below `kinds`; None where they have
        none. Moves of a point with the same number from the same position lead to the same image.
        """


def rescaled(query: int, queries: int) -> int:
    """Give the query of a search of 10,000 queries that corresponds to one of this search."""
    return int(query / queries * _SCHEDULED)


def single_channels_from(side: Callable[[int], int], queries: int) -> int:
    """Give the query from which moves change a single channel of a pixel: halfway between the first query with windows
    of side 1 and the end. side: maps a query to the side of its windows."""
    first = next((query for query in range(1, queries) if side(query) == 1), queries)
    return (first + queries) // 2


def numbered(kinds: int, queries: int) -> int:
    """Give the number of kinds of moves if their numbers are worth it, otherwise 0.

    With more kinds of moves than queries, few would come twice.
    """
    return kinds if kinds <= queries else 0


def search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    moves: Moves,
    options: AttackOptions,
    *,
    queries: int,
    compat: bool,
) -> Steps:
    """Take the steps of an attack (`core.attacks`), one per query: the start of each point is the first query.

    `loss` is the margin, the best wrong logit minus the true one. For a robust point `adversarial` is where that was
    highest; a move to an equal margin is not kept. compat: points of a logical batch share what decides places,
    and a point leaves the search at a margin of 0 even where the model is right.
    """
    last_tenth = queries - max(queries // 10, 1)
    with frozen(model):
        logits = predict(model, images, chunk_size=options.chunk_size)
        result = begin(images, labels, logits, margin, options)
        draws = Draws.of(PointNumbers(options.seed, images), options, compat=compat)
        if state := options.state:
            result.restore(state)
            points, asked = _Points.restored(state, images, labels, draws), int(state["asked"])
        else:
            points, asked = _Points.begin(images, labels, result, draws, moves), 0

        def state_now() -> State:
            return {**result.state(images), **points.state(), "asked": torch.tensor(asked)}

        for query in range(asked, queries):
            if len(points.indices) == 0:
                break
            _query(model, points, moves, query, result, options, late=query >= last_tenth, compat=compat)
            asked = query + 1
            yield state_now
        points.enter_robust(result)
        return result.finish()


@dataclass
class _Points:
    """The points that are robust."""

    indices: Tensor
    """(points,): among all points."""
    images: Tensor
    labels: Tensor
    draws: Draws
    position: Position
    """Where the margin was highest."""
    margin: Tensor
    """(points,): the best wrong logit minus the true one; -inf before the first query."""
    tried: Tensor | None
    """(points, kinds) bool: the moves that each point tried since it last moved; None where that is not recorded."""

    @classmethod
    def begin(cls, images: Tensor, labels: Tensor, result: RunningResult, draws: Draws, moves: Moves) -> Self:
        """Draw the start of the robust points; the arguments are of all points."""
        indices = result.robust.nonzero().squeeze(1)
        images, draws = images[indices], draws.pick(indices)
        tried = labels.new_zeros(len(indices), moves.kinds, dtype=torch.bool) if moves.kinds else None
        lowest = torch.full_like(result.loss[indices], -torch.inf)
        return cls(indices, images, labels[indices], draws, moves.start(images, draws.colours), lowest, tried)

    @classmethod
    def restored(cls, state: State, images: Tensor, labels: Tensor, draws: Draws) -> Self:
        """Restore them from their state; images, labels and draws are of all points."""
        own = {name: tensor.to(images.device, copy=True) for name, tensor in state.items()}
        position = {name.removeprefix(_POSITION): tensor for name, tensor in own.items() if name.startswith(_POSITION)}
        indices = own["indices"]
        highest, tried = own["margin"], own.get("tried")
        return cls(indices, images[indices], labels[indices], draws.pick(indices), position, highest, tried)

    def state(self) -> State:
        """Give what `restored` needs."""
        position = {_POSITION + name: tensor for name, tensor in self.position.items()}
        tried = {} if self.tried is None else {"tried": self.tried}
        return {"indices": self.indices, "margin": self.margin, **position, **tried}

    def keep(self, kept: Tensor) -> None:
        """Keep some of the points; kept (points,) bool."""
        self.indices, self.images, self.labels = self.indices[kept], self.images[kept], self.labels[kept]
        self.draws, self.margin = self.draws.pick(kept), self.margin[kept]
        self.position = {name: tensor[kept] for name, tensor in self.position.items()}
        self.tried = None if self.tried is None else self.tried[kept]

    def enter_robust(self, result: RunningResult) -> None:
        """Enter the points into `result`, except where the image itself has the higher margin."""
        higher = self.margin > result.loss[self.indices]
        indices = self.indices[higher]
        result.adversarial[indices] = self.position["perturbed"][higher]
        result.loss[indices] = self.margin[higher]


@torch.no_grad()
def _query(
    model: nn.Module,
    points: _Points,
    moves: Moves,
    query: int,
    result: RunningResult,
    options: AttackOptions,
    *,
    late: bool,
    compat: bool,
) -> None:
    """Try the start of each point in the first query, otherwise a move."""
    if query == 0:
        proposed, asked = points.position, torch.arange(len(points.indices), device=points.indices.device)
    else:
        proposed, asked = _propose(points, moves, query)
    if len(asked) == 0:
        return
    perturbed = proposed["perturbed"]
    logits = predict(
        model, perturbed if len(asked) == len(perturbed) else perturbed[asked], chunk_size=options.chunk_size
    )
    labels = points.labels[asked]
    margins = loss_of(margin, logits, labels, labels)
    fooled = fools(logits, labels)
    leaves = margins >= 0 if compat else fooled
    result.not_finite[points.indices[asked]] |= ~is_answered(logits)

    better = ((margins > points.margin[asked]) | leaves).nonzero().squeeze(1)
    if len(better) == 0:
        return
    moved = asked[better]
    for name, tensor in points.position.items():
        tensor[moved] = proposed[name][moved]
    points.margin[moved] = margins[better]
    if points.tried is not None:
        points.tried[moved] = False
    if not bool(leaves.any()):
        return
    gone = asked[leaves]
    indices = points.indices[gone]
    result.adversarial[indices] = perturbed[gone]
    result.loss[indices] = margins[leaves]
    result.robust[indices] = ~fooled[leaves]
    result.late[indices] = fooled[leaves] & late
    points.keep(torch.ones_like(points.indices, dtype=torch.bool).index_fill(0, gone, False))


def _propose(points: _Points, moves: Moves, query: int) -> tuple[Position, Tensor]:
    """Give the positions after a move of each point, and the indices of the points that need to be asked about it."""
    proposed, numbers = moves.propose(points.images, points.position, query, points.draws)
    untried = (proposed["perturbed"] != points.position["perturbed"]).flatten(1).any(1)
    if points.tried is not None and numbers is not None:
        untried &= ~points.tried.gather(1, numbers[:, None]).squeeze(1)
        points.tried.scatter_(1, numbers[:, None], True)
    return proposed, untried.nonzero().squeeze(1)
