"""Square: a random search that changes square windows and sees nothing but the logits.

Andriushchenko et al. 2020 (arXiv 1912.00049), algorithm 1; its moves are in `core.attacks.square_moves`. Settings,
rounding, and the order in which random numbers are drawn are AutoAttack's: where a point moves depends on every
comparison before it, and in l2 and l1 on when its batch-mates are fooled.

No pass is spent on a point that is fooled, nor on a move that is known not to help: one that does not change the point,
or that was tried since the point last moved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from typing import Self

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, RunningResult, State, Steps, begin, frozen
from core.attacks.forward import is_answered, loss_of, predict
from core.attacks.losses import margin
from core.attacks.rng import Noise
from core.attacks.square_moves import Moves, Windows, moves_of
from core.attacks.threat import LpThreat
from core.schema.protocols import QUERIES

# The share of the image that the first windows cover, and the queries after which it halves.
_SHARE = 0.8
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The attributes of the points that are part of a state.
_STATE = ("indices", "best", "margin", "tried")


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

    `loss` is the best wrong logit minus the true one. For a robust point `adversarial` is where that was highest. A
    query is a step.
    """
    chunk_size, noise = options.chunk_size, options.noise(len(images))
    with frozen(model):
        logits = predict(model, images, chunk_size=chunk_size)
        result = begin(images, labels, logits, margin, options)
        moves = moves_of(threat)
        if state := options.state:
            result.restore(state)
            noise.restore(state["noise"])
            points, asked = _Points.restored(state, images, labels, noise), int(state["asked"])
        elif not bool(result.robust.any()):
            return result.finish()
        else:
            points, asked = _begin(model, images, labels, moves, result, noise, chunk_size), 0

        def state_now() -> State:
            counts = {"asked": torch.tensor(asked), "noise": noise.state()}
            return {**result.state(images), **points.state(), **counts}

        done = asked
        for side, count in _sides(moves.smallest, images.shape[2:], queries):
            if done >= count:
                done -= count
                continue
            windows = Windows(side, images)
            if done == 0:
                kinds = moves.kinds(windows, images.shape[1])
                # With more kinds of moves than queries, few would come twice.
                points.tried = (
                    labels.new_zeros(len(points.indices), kinds, dtype=torch.bool) if kinds <= count else None
                )
            for _ in range(done, count):
                if len(points.indices) == 0:
                    return result.finish()
                _query(model, points, moves, windows, result, noise, chunk_size)
                asked += 1
                yield state_now
            done = 0
        result.adversarial[points.indices] = points.best.clamp(0, 1)
        result.loss[points.indices] = points.margin
        return result.finish()


def _sides(smallest: int, shape: Sequence[int], queries: int) -> Iterator[tuple[int, int]]:
    """Yield the side of the windows, and for how many queries it stays, in the order of the search."""
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
    """The points that are robust."""

    indices: Tensor
    """(points,): among all points."""
    images: Tensor
    labels: Tensor
    best: Tensor
    """Where the margin was highest; inside ball and box up to rounding."""
    margin: Tensor
    """(points,): the best wrong logit minus the true one; below 0."""
    counts: list[int]
    """Points in each logical batch."""
    tried: Tensor | None
    """(points, kinds) bool: the moves that each point tried since it last moved; None where that is not recorded."""

    def keep(self, robust: Tensor, answers: Tensor, result: RunningResult, noise: Noise) -> None:
        """Keep the robust points (points,), enter the others into `result`. answers (points,): predicted classes."""
        if bool(robust.all()):
            return
        indices, fooled = self.indices[~robust], ~robust
        result.adversarial[indices] = self.best[fooled].clamp(0, 1)
        result.loss[indices] = self.margin[fooled]
        # Where two logits are equal, a point of margin 0 need not be misclassified.
        result.robust[indices] = answers[fooled] == self.labels[fooled]
        self.indices, self.images, self.labels = self.indices[robust], self.images[robust], self.labels[robust]
        self.best, self.margin = self.best[robust], self.margin[robust]
        self.tried = None if self.tried is None else self.tried[robust]
        self.counts = noise.counts(self.indices)

    def state(self) -> State:
        """Give what `restored` needs."""
        tried = {} if self.tried is None else {"tried": self.tried}
        return {"indices": self.indices, "best": self.best, "margin": self.margin, **tried}

    @classmethod
    def restored(cls, state: State, images: Tensor, labels: Tensor, noise: Noise) -> Self:
        """Restore them from their state; images and labels are of all points."""
        own = {name: tensor.to(images.device, copy=True) for name, tensor in state.items() if name in _STATE}
        indices, counts = own["indices"], noise.counts(own["indices"])
        return cls(indices, images[indices], labels[indices], own["best"], own["margin"], counts, own.get("tried"))


@torch.no_grad()
def _begin(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    moves: Moves,
    result: RunningResult,
    noise: Noise,
    chunk_size: int | None,
) -> _Points:
    """Classify a starting point of each image that the model is right on."""
    indices = result.robust.nonzero().squeeze(1)
    images, labels, counts = images[indices], labels[indices], noise.counts(indices)
    start = moves.start(images, noise, counts)
    logits = predict(model, start, chunk_size=chunk_size)
    result.not_finite[indices] |= ~is_answered(logits)
    points = _Points(indices, images, labels, start, loss_of(margin, logits, labels, labels), counts, tried=None)
    points.keep(points.margin < 0, logits.argmax(1), result, noise)
    return points


@torch.no_grad()
def _query(
    model: nn.Module,
    points: _Points,
    moves: Moves,
    windows: Windows,
    result: RunningResult,
    noise: Noise,
    chunk_size: int | None,
) -> None:
    """Try a move with windows of one side for each point, and keep those that raise the margin."""
    candidates, kinds = moves.propose(points.images, points.best, points.counts, windows, noise)
    untried = (candidates != points.best).flatten(1).any(1)
    if points.tried is not None:
        untried &= ~points.tried.gather(1, kinds[:, None]).squeeze(1)
        points.tried.scatter_(1, kinds[:, None], True)
    asked = untried.nonzero().squeeze(1)
    if len(asked) == 0:
        return
    if len(asked) < len(candidates):
        candidates = candidates[asked]
    logits = predict(model, candidates, chunk_size=chunk_size)
    labels = points.labels[asked]
    margins = loss_of(margin, logits, labels, labels)
    result.not_finite[points.indices[asked]] |= ~is_answered(logits)
    better = (margins > points.margin[asked]).nonzero().squeeze(1)
    if len(better) == 0:
        return
    improved = asked[better]
    points.best[improved] = candidates[better]
    points.margin[improved] = margins[better]
    if points.tried is not None:
        points.tried[improved] = False
    answers = points.labels.index_put((asked,), logits.argmax(1))
    points.keep(points.margin < 0, answers, result, noise)
