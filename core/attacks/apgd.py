"""Auto-PGD: projected gradient ascent with adaptive step sizes.

linf and l2 after Croce & Hein 2020 (arXiv 2003.01690, algorithm 1), l1 after Croce & Hein 2021 (arXiv 2103.01208).
`apgd` is one run. `apgd_ce` and `apgd_t` are the two attacks of AutoAttack: random restarts on the cross-entropy, and
the targeted DLR loss against the likeliest wrong classes; for l1 both shrink the ball from 3 eps over 2 eps to eps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, AttackResult, RunningResult, State, Steps, begin, frozen
from core.attacks.arguments import with_check
from core.attacks.forward import classify, fools, is_answered, loss_and_gradient, loss_of, predict
from core.attacks.losses import Loss, cross_entropy, targeted_dlr
from core.attacks.threat import LpThreat, Threat
from core.data.points import check_points
from core.geometry import Rounding, ascend, count_changed, into_ball, per_image, project, random_start
from core.schema.protocols import STEPS, TARGETS, apgd_stages

Goal = Literal["loss", "error"]


class _PerPoint:
    """An object whose tensors have the points as first dimension."""

    def keep(self, index: Tensor) -> None:
        """Drop all points but those at `index`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[index])


@dataclass
class _Points(_PerPoint):
    """The points under attack: where each is, where it was before, and the best point so far."""

    indices: Tensor
    """(points,): among all points."""
    images: Tensor
    labels: Tensor
    targets: Tensor
    current: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor

    def move(self, rule: "_StepRule", threat: LpThreat, *, inertia: float, rounding: Rounding) -> None:
        """Take a step uphill inside ball and box, with some of the step before it added."""
        step = ascend(self.gradient, threat.norm, rule.size, topk_fraction=rule.topk_fraction)
        aim = project(self.images, self.current + step, threat.norm, threat.eps, rounding=rounding)
        if rule.inertia:
            carried = self.current + (aim - self.current) * (1 - inertia) + (self.current - self.previous) * inertia
            aim = project(self.images, carried, threat.norm, threat.eps, rounding=rounding)
        self.previous, self.current = self.current, aim

    def update(self, loss: Tensor) -> None:
        """Take in the losses (points,) at the current points, which become the best ones where they are the highest."""
        self.loss = loss
        better = loss > self.best_loss
        mask = per_image(better, self.images)
        self.best = torch.where(mask, self.current, self.best)
        self.best_gradient = torch.where(mask, self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def go_back(self, which: Tensor) -> None:
        """Return the points marked in `which` (points,) to their best."""
        mask = per_image(which, self.images)
        self.current = torch.where(mask, self.best, self.current)
        self.gradient = torch.where(mask, self.best_gradient, self.gradient)


class _StepRule(_PerPoint, ABC):
    """The size of the next step of each point."""

    inertia: float
    """Weight of the previous step in the next."""
    size: Tensor
    """(points,): length of the step."""
    topk_fraction: Tensor
    """(points,): share of pixels that an l1 step changes."""

    @abstractmethod
    def observe(self, points: _Points) -> Tensor | None:
        """Take in the losses after a step; at a checkpoint, mark the points (points,) that return to their best."""


class _Halving(_StepRule):
    """linf and l2: halve the step where the loss rose too rarely, or has not improved since a checkpoint without
    halving."""

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

    def observe(self, points: _Points) -> Tensor | None:
        """Count the rises of the loss, and decide by them at a checkpoint."""
        self._rises = self._rises + (points.loss > self._last_loss)
        self._last_loss = points.loss
        self._since_check += 1
        if self._since_check < self._window:
            return None
        stuck = ~self._halved & (self._best_at_check >= points.best_loss)
        self._halved = (self._rises <= 0.75 * self._window) | stuck
        self.size = torch.where(self._halved, self.size / 2, self.size)
        self._best_at_check = points.best_loss
        self._rises = torch.zeros_like(points.loss)
        self._since_check = 0
        self._window = max(self._window - self._shrink, self._shortest)
        return self._halved


class _Sparsifying(_StepRule):
    """l1: change fewer pixels at each checkpoint; a point whose best perturbation got sparser returns to it, with steps
    of full length."""

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

    def observe(self, points: _Points) -> Tensor | None:
        """Decide at a checkpoint by the number of pixels that the best perturbation changes."""
        self._since_check += 1
        if self._since_check < self._every:
            return None
        self._since_check = 0
        changed = count_changed(points.best - points.images)
        sparser = changed / self._changed < 0.95
        self._changed = changed
        self.topk_fraction = changed / self._pixels / 1.5
        self.size = torch.where(sparser, self._eps, self.size / 1.5).clamp(self._eps / 10, self._eps)
        return sparser


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
    rounding: Rounding = "exact",
) -> AttackResult:
    """Search the ball for points of high loss in one run of `steps` gradient steps from `start` (default: the images).

    start (batch, channels, height, width); targets (batch,), or whatever the loss takes as such. With goal "loss",
    for adversarial training, `adversarial` is the iterate of highest loss after all steps, at steps + 1 forward and
    `steps` backward passes. With goal "error", for evaluation, it is the first misclassified iterate (the last one
    where there is none), and a point that has one costs no further passes. `robust` tells whether every iterate, the
    start included, was right; `loss` is the highest so far. topk_fraction is the share of pixels that the first l1 step
    changes; given a `start`, the start's own sparsity decides. Nothing is drawn at random.
    """
    if not options.checked:
        check_points(images, labels)
        threat.check(images.shape[1:])
    targets = labels if targets is None else targets
    chunk_size = options.chunk_size
    with frozen(model), torch.no_grad():
        current = (images if start is None else start).clamp(0, 1)
        logits, first_loss, gradient, nan_gradients = loss_and_gradient(
            model, current, loss if options.checked else with_check(loss), labels, targets, chunk_size=chunk_size
        )
        right = (classify(logits) == labels) if start is None else ~fools(logits, labels)
        result = RunningResult(adversarial=current.clone(), robust=right.clone(), loss=first_loss.clone())
        result.not_finite |= ~is_answered(logits)
        result.nan_gradients |= nan_gradients
        points = _Points(
            indices=torch.arange(len(images), device=images.device),
            images=images,
            labels=labels,
            targets=targets,
            current=current,
            previous=current,
            gradient=gradient,
            loss=first_loss,
            best=current,
            best_gradient=gradient,
            best_loss=first_loss,
        )
        rule: _StepRule
        if threat.is_sparse:
            rule = _Sparsifying(steps, threat.eps, current - images, topk_fraction if start is None else None)
        else:
            rule = _Halving(steps, threat.eps, first_loss)
        for step in range(steps):
            if goal == "error" and not bool(right.all()):
                robust = right.nonzero().squeeze(1)
                points.keep(robust)
                rule.keep(robust)
            if len(points.indices) == 0:
                break
            points.move(rule, threat, inertia=rule.inertia if step else 0.0, rounding=rounding)
            aims = points.labels, points.targets
            if step < steps - 1:
                logits, values, points.gradient, nan_gradients = loss_and_gradient(
                    model, points.current, loss, *aims, chunk_size=chunk_size
                )
                result.nan_gradients[points.indices] |= nan_gradients
            else:
                logits = predict(model, points.current, chunk_size=chunk_size)
                values = loss_of(loss, logits, *aims)
            right = ~fools(logits, points.labels)
            points.update(values)
            result.robust[points.indices] &= right
            result.not_finite[points.indices] |= ~is_answered(logits)
            result.loss[points.indices] = points.best_loss
            result.adversarial[points.indices] = points.best if goal == "loss" else points.current
            back = rule.observe(points)
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
    """Attack the cross-entropy from `restarts` random starts, each on the points that are still robust. A restart is a
    step."""
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
    """Attack the targeted DLR loss towards the `targets` likeliest wrong classes, or all where there are fewer. A class
    is a step."""
    runs = _Runs(model, images, labels, threat, options, steps=steps)
    likeliest = runs.logits.argsort(1)
    ranks = range(2, min(targets + 1, likeliest.shape[1]) + 1)
    return (yield from runs.take(targeted_dlr, [likeliest[:, -rank] for rank in ranks]))


def depends_on_last_bit(name: str, threat: Threat) -> bool:
    """Tell whether an attack must see the very model, not one that differs from it by rounding, for AutoAttack's
    verdicts.

    It is APGD in l1, where the last bit decides which pixels count as changed: 4 of 200 verdicts would differ.
    """
    return isinstance(threat, LpThreat) and threat.is_sparse and name.startswith("apgd")


class _Runs:
    """Runs from random starts, one after the other, each on the points that are still robust."""

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
        self.result = begin(images, labels, self.logits, cross_entropy, options)
        options = replace(options, checked=True)
        self._model, self._images, self._labels, self._threat, self._options = model, images, labels, threat, options
        self._noise, self._steps = options.noise(len(images)), steps

    def take(self, loss: Loss, targets: Sequence[Tensor]) -> Steps:
        """Run once for each of the targets (batch,)."""
        done = 0
        if state := self._options.state:
            done = int(state["done"])
            self.result.restore(state)
            self._noise.restore(state["noise"])
        for number, targets_of_run in enumerate(targets[done:], start=done + 1):
            self._run(loss, targets_of_run)
            yield partial(self._state, number)
        return self.result.finish()

    def _state(self, done: int) -> State:
        return {**self.result.state(self._images), "done": torch.tensor(done), "noise": self._noise.state()}

    def _run(self, loss: Loss, targets: Tensor) -> None:
        """Run on the points that are robust, and enter those that it fools into the result; targets (batch,)."""
        indices = self.result.robust.nonzero().squeeze(1)
        if len(indices) == 0:
            return
        found = self._search(indices, loss, targets[indices])
        self.result.not_finite[indices] |= found.not_finite
        self.result.nan_gradients[indices] |= found.nan_gradients
        fooled = indices[~found.robust]
        self.result.robust[fooled] = False
        # AutoAttack's projection in l1 may leave the box by rounding.
        self.result.adversarial[fooled] = found.adversarial[~found.robust].clamp(0, 1)
        self.result.loss[fooled] = found.loss[~found.robust]

    def _search(self, indices: Tensor, loss: Loss, targets: Tensor) -> AttackResult:
        """Run from a random start, in each stage from the best point of the stage before."""
        images, labels = self._images[indices], self._labels[indices]
        norm, eps = self._threat.norm, self._threat.eps
        stages = apgd_stages(norm, self._steps)
        best = random_start(images, norm, stages[0].scale * eps, self._noise, indices)
        nan_gradients = torch.zeros_like(indices, dtype=torch.bool)
        for scale, steps in stages:
            ball = LpThreat(norm, scale * eps)
            if len(stages) > 1:
                # AutoAttack draws a start in every stage and does not use it; so are these drawn, for the same stream.
                self._noise.normal(indices, images.shape[1:])
                best = into_ball(images, best, norm, ball.eps)
            goal: Goal = "error" if scale == 1 else "loss"
            settings: dict[str, Any] = {"steps": steps, "start": best, "targets": targets, "loss": loss, "goal": goal}
            result = apgd(self._model, images, labels, ball, self._options, rounding="autoattack", **settings)
            best = result.adversarial
            nan_gradients |= result.nan_gradients
        # Of points where the model has no answer, those in larger balls do not count.
        return replace(result, nan_gradients=nan_gradients)
