"""Auto-PGD: projected gradient ascent that sets its own step sizes.

linf and l2 after Croce & Hein 2020 (arXiv 2003.01690, algorithm 1), l1 after Croce & Hein 2021 (arXiv 2103.01208).
`apgd` is one run. `apgd_ce` and `apgd_t` are the two attacks of AutoAttack: random restarts on the cross-entropy, and
the targeted DLR loss against the likeliest wrong classes; for l1 both shrink the ball from 3 eps over 2 eps to eps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, AttackResult, RunningResult, State, Steps, frozen
from core.attacks.forward import loss_and_gradient, predict
from core.attacks.losses import Loss, cross_entropy, targeted_dlr
from core.attacks.threat import LpThreat
from core.geometry import (
    ascend,
    count_changed,
    per_image,
    project,
    project_as_autoattack,
    project_start_as_autoattack,
    random_start,
)
from core.schema.catalog import Norm
from core.schema.protocols import STEPS, TARGETS, AttackName, apgd_stages

Goal = Literal["loss", "error"]
Projection = Callable[[Tensor, Tensor, Norm, float], Tensor]


class _PerPoint:
    """Tensors with batch first, which can forget points together."""

    def keep(self, index: Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[index])


class _Halving(_PerPoint):
    """linf and l2: halve the step where the loss rose too rarely, or has not improved since a check without halving."""

    inertia = 0.25

    def __init__(self, steps: int, eps: float, first_loss: Tensor) -> None:
        self.size = torch.full_like(first_loss, 2 * eps)
        self.topk_fraction = torch.ones_like(first_loss)
        self._window = max(int(0.22 * steps), 1)
        self._shrink = max(int(0.03 * steps), 1)
        self._shortest = max(int(0.06 * steps), 1)
        self._since_check = 0
        # The first step's loss is compared with 0, as in the reference implementation, not with the starting loss.
        self._last_loss = torch.zeros_like(first_loss)
        self._rises = torch.zeros_like(first_loss)
        self._best_at_check = first_loss
        self._halved = torch.ones_like(first_loss, dtype=torch.bool)

    def observe(self, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        """Take in a step's losses (batch,); at a check, name the points (batch,) that go back to their best."""
        del best_delta
        self._rises = self._rises + (loss > self._last_loss)
        self._last_loss = loss
        self._since_check += 1
        if self._since_check < self._window:
            return None
        stuck = ~self._halved & (self._best_at_check >= best_loss)
        self._halved = (self._rises <= 0.75 * self._window) | stuck
        self.size = torch.where(self._halved, self.size / 2, self.size)
        self._best_at_check = best_loss
        self._rises = torch.zeros_like(loss)
        self._since_check = 0
        self._window = max(self._window - self._shrink, self._shortest)
        return self._halved


class _Sparsifying(_PerPoint):
    """l1: change ever fewer pixels a step; a point whose best change got sparser returns to it with full steps."""

    inertia = 0.0

    def __init__(self, steps: int, eps: float, delta: Tensor, topk_fraction: float | None) -> None:
        self._eps = eps
        self._pixels = prod(delta.shape[1:])
        changed = count_changed(delta)
        self._changed = changed if topk_fraction is None else torch.full_like(changed, self._pixels)
        self.topk_fraction = (
            changed / self._pixels / 1.5 if topk_fraction is None else torch.full_like(changed, topk_fraction)
        )
        self.size = torch.full_like(changed, eps)
        self._every = max(int(0.04 * steps), 1)
        self._since_check = 0

    def observe(self, loss: Tensor, best_loss: Tensor, best_delta: Tensor) -> Tensor | None:
        """As for the other norms; what decides is how many pixels the best perturbation (batch, ...) changes."""
        del loss, best_loss
        self._since_check += 1
        if self._since_check < self._every:
            return None
        self._since_check = 0
        changed = count_changed(best_delta)
        sparser = changed / self._changed < 0.95
        self._changed = changed
        self.topk_fraction = changed / self._pixels / 1.5
        self.size = torch.where(sparser, self._eps, self.size / 1.5).clamp(self._eps / 10, self._eps)
        return sparser


@dataclass
class _Points(_PerPoint):
    """The points under attack and what is remembered of each."""

    place: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor
    current: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor

    def move(
        self, rule: _Halving | _Sparsifying, norm: Norm, eps: float, *, inertia: float, projection: Projection
    ) -> None:
        """Take one step uphill inside ball and box, carried on a little in the direction of the step before."""
        step = ascend(self.gradient, norm, rule.size, topk_fraction=rule.topk_fraction)
        aim = projection(self.images, self.current + step, norm, eps)
        if rule.inertia:
            carried = self.current + (aim - self.current) * (1 - inertia) + (self.current - self.previous) * inertia
            aim = projection(self.images, carried, norm, eps)
        self.previous, self.current = self.current, aim

    def remember(self, loss: Tensor) -> None:
        """Keep the current point where its loss is the highest so far."""
        better = loss > self.best_loss
        mask = per_image(better, self.images)
        self.best = torch.where(mask, self.current, self.best)
        self.best_gradient = torch.where(mask, self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def go_back(self, which: Tensor) -> None:
        """Return these points (batch,) to their best."""
        mask = per_image(which, self.images)
        self.current = torch.where(mask, self.best, self.current)
        self.gradient = torch.where(mask, self.best_gradient, self.gradient)


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: int,
    start: Tensor | None = None,
    targets: Tensor | None = None,
    loss: Loss = cross_entropy,
    topk_fraction: float = 0.2,
    goal: Goal = "loss",
    projection: Projection = project,
) -> AttackResult:
    """Search the ball for points of high loss in one run of `steps` gradient steps from `start` (default: the images).

    With goal "loss" `adversarial` is the highest-loss iterate after all steps, as adversarial training wants it, at
    steps + 1 forward and `steps` backward passes. With goal "error" it is the first misclassified iterate (the last one
    where there is none), and a point that has one costs no further passes, as an evaluation wants it.
    `robust` says whether every iterate, the start included, was right; `loss` is the highest seen. topk_fraction is
    the share of pixels that the first l1 step changes; given a `start`, the start's own sparsity decides.
    projection: how points are brought into ball and box.
    """
    targets = labels if targets is None else targets
    norm, eps, chunk_size = threat.norm, threat.eps, options.chunk_size
    with frozen(model), torch.no_grad():
        current = (images if start is None else start).clamp(0, 1)
        logits, first_loss, gradient = loss_and_gradient(model, current, loss, labels, targets, chunk_size=chunk_size)
        right = logits.argmax(1) == labels
        result = RunningResult(adversarial=current.clone(), robust=right.clone(), loss=first_loss.clone())
        place = torch.arange(len(images), device=images.device)
        points = _Points(place, images, labels, targets, current, current, gradient, current, gradient, first_loss)
        rule: _Halving | _Sparsifying
        if norm == "l1":
            rule = _Sparsifying(steps, eps, current - images, topk_fraction if start is None else None)
        else:
            rule = _Halving(steps, eps, first_loss)
        for step in range(steps):
            if goal == "error" and not bool(right.all()):
                standing = right.nonzero().squeeze(1)
                points.keep(standing)
                rule.keep(standing)
            if len(points.place) == 0:
                break
            points.move(rule, norm, eps, inertia=rule.inertia if step else 0.0, projection=projection)
            aims = points.labels, points.targets
            if step < steps - 1:
                logits, values, points.gradient = loss_and_gradient(
                    model, points.current, loss, *aims, chunk_size=chunk_size
                )
            else:
                logits = predict(model, points.current, chunk_size=chunk_size)
                values = loss(logits, *aims)
            right = logits.argmax(1) == points.labels
            points.remember(values)
            result.robust[points.place] &= right
            result.loss[points.place] = points.best_loss
            result.adversarial[points.place] = points.best if goal == "loss" else points.current
            back = rule.observe(values, points.best_loss, points.best - points.images)
            if back is not None:
                points.go_back(back)
        return result.finish()


@Attack
def apgd_ce(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    restarts: int = 1,
    steps: int = STEPS,
) -> Steps:
    """Attack the cross-entropy from `restarts` random starts, each on the points that withstood those before: a step
    each."""
    runs = _Runs(model, images, labels, threat, options, steps=steps)
    return (yield from runs.take(cross_entropy, [labels] * restarts))


@Attack
def apgd_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    targets: int = TARGETS,
    steps: int = STEPS,
) -> Steps:
    """Attack towards the `targets` likeliest classes after the first, a step each, on the targeted DLR loss.

    With fewer classes than that, all of them are tried.
    """
    runs = _Runs(model, images, labels, threat, options, steps=steps)
    likeliest = runs.logits.argsort(1)
    ranks = range(2, min(targets + 1, likeliest.shape[1]) + 1)
    return (yield from runs.take(targeted_dlr, [likeliest[:, -rank] for rank in ranks]))


def depends_on_last_bit(name: AttackName, threat: LpThreat) -> bool:
    """Tell whether an attack must see the very model, not one that differs from it by rounding, for AutoAttack's
    verdicts.

    It is APGD in l1, where the last bit decides which pixels count as changed: 4 of 200 verdicts would differ.
    """
    return name.startswith("apgd") and threat.norm == "l1"


class _Runs:
    """Runs from random starts, one after the other, each on the points that withstood those before."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: LpThreat,
        options: AttackOptions,
        *,
        steps: int,
    ) -> None:
        with frozen(model):
            self.logits = predict(model, images, chunk_size=options.chunk_size)
        self.result = RunningResult(
            adversarial=images.clone(),
            robust=self.logits.argmax(1) == labels,
            loss=cross_entropy(self.logits, labels, labels),
        )
        self._model, self._images, self._labels, self._threat, self._options = model, images, labels, threat, options
        self._noise, self._steps = options.noise(len(images)), steps

    def take(self, loss: Loss, targets: Sequence[Tensor]) -> Steps:
        """Run once for each of the targets (batch,)."""
        done = 0
        if state := self._options.state:
            done = int(state["done"])
            self.result.restore(state)
            self._noise.restore(state["noise"])
        for number, its in enumerate(targets[done:], start=done + 1):
            self._run(loss, its)
            yield partial(self._state, number)
        return self.result.finish()

    def _state(self, done: int) -> State:
        return {**self.result.state(self._images), "done": torch.tensor(done), "noise": self._noise.state()}

    def _run(self, loss: Loss, targets: Tensor) -> None:
        """Run on the points that still stand, and enter those that fall into the result; targets (batch,)."""
        standing = self.result.robust.nonzero().squeeze(1)
        if len(standing) == 0:
            return
        found = self._search(standing, loss, targets[standing])
        fallen = standing[~found.robust]
        self.result.robust[fallen] = False
        # AutoAttack's projection in l1 may leave the box by rounding.
        self.result.adversarial[fallen] = found.adversarial[~found.robust].clamp(0, 1)
        self.result.loss[fallen] = found.loss[~found.robust]

    def _search(self, places: Tensor, loss: Loss, targets: Tensor) -> AttackResult:
        """Run from a random start; for l1 in balls of 3 eps, 2 eps, eps, each from the best point of the one before."""
        images, labels = self._images[places], self._labels[places]
        norm, eps = self._threat.norm, self._threat.eps
        stages = apgd_stages(norm, self._steps)
        best = random_start(images, norm, stages[0].scale * eps, self._noise, places)
        for scale, steps in stages:
            ball, goal = LpThreat(norm, scale * eps), "error" if scale == 1 else "loss"
            if norm == "l1":
                # The reference draws a start at every stage and does not use it; drawing it too keeps the streams in
                # step.
                self._noise.normal(places, images.shape[1:])
                best = project_start_as_autoattack(images, best, norm, ball.eps)
            settings: dict[str, Any] = {"steps": steps, "start": best, "targets": targets, "loss": loss, "goal": goal}
            settings["projection"] = project_as_autoattack
            result = apgd(self._model, images, labels, ball, self._options, **settings)
            best = result.adversarial
        return result
