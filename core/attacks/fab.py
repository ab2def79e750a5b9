"""FAB-T: walk to the closest decision boundary, towards one likely wrong class after another.

Fast Adaptive Boundary attack (Croce & Hein 2020, arXiv 1907.02044, algorithm 1) in the targeted form of AutoAttack
(arXiv 2003.01690, section 5). Each step linearises the difference of two logits and moves onto the plane where it is
zero; a walk that has crossed the boundary turns back towards the image and tries to cross closer to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, RunningResult, State, Steps, begin, frozen
from core.attacks.forward import classify, fools, is_answered, loss_and_gradient, predict
from core.attacks.losses import cross_entropy
from core.attacks.planes import step_onto_plane
from core.attacks.threat import LpThreat
from core.geometry import length, per_image
from core.schema.catalog import Norm
from core.schema.protocols import STEPS, TARGETS

# AutoAttack's constants: how far a step goes beyond the plane, how much of it may start from the image instead of the
# current point, and which part of the perturbation remains after turning back.
_OVERSHOOT = 1.05
_MOST_FROM_IMAGE = 0.1
_TURN_BACK = 0.9


@dataclass
class _Walks:
    """Walks under way, a row each; several may start from one image, each towards a class of its own."""

    indices: Tensor
    """(rows,): of the image that each walk starts from, among all images."""
    images: Tensor
    labels: Tensor
    targets: Tensor
    current: Tensor

    def step(self, height: Tensor, slope: Tensor, norm: Norm) -> None:
        """Cross the plane where a linear function is zero, given its height (rows,) at the current points and its slope
        (rows, channels, height, width)."""
        points = torch.stack([self.current, self.images])
        # AutoAttack computes both heights from the constant of the linear function, and rounds accordingly.
        products = (slope * points).flatten(2).sum(2)
        steps = step_onto_plane(points, slope, products - (products[0] - height), norm)
        near, far = length(steps.flatten(0, 1), norm).clamp(min=1e-8).chunk(2)
        share = per_image((near / (near + far)).clamp(max=_MOST_FROM_IMAGE), slope)
        from_here, from_image = _OVERSHOOT * steps
        self.current = ((self.current + from_here) * (1 - share) + (self.images + from_image) * share).clamp(0, 1)

    def turn_back(self, which: Tensor) -> None:
        """Move the walks marked in `which` (rows,) towards their image."""
        nearer = self.images + (self.current - self.images) * _TURN_BACK
        self.current = torch.where(per_image(which, nearer), nearer, self.current)

    def keep(self, which: Tensor) -> None:
        """Drop all walks but those marked in `which` (rows,)."""
        rows = which.nonzero().squeeze(1)
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


@Attack
def fab_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    targets: int = TARGETS,
    steps: int = STEPS,
) -> Steps:
    """Walk from each image to the boundary of each of the `targets` likeliest wrong classes, or all if there are fewer.

    A point is fooled once a walk is at a misclassified point no farther than eps, and then costs no further passes.
    `adversarial` is that point, or the image where there is none;
    `loss` is the cross-entropy at it. Nothing is drawn at random: a single walk per class starts at the image itself.

    Walks towards several classes go side by side as far as `options.chunk_size` has room for them: a step. No verdict
    changes, since each walk starts from the image itself.
    """
    chunk_size = options.chunk_size
    with frozen(model):
        logits = predict(model, images, chunk_size=chunk_size)
        result = begin(images, labels, logits, cross_entropy, options)
        # Of equal logits AutoAttack takes the last class for the likeliest. It then passes over that class where the
        # model answers with the first of them, and walks towards the label: a walk that stays where it is.
        wrong_classes = logits.argsort(1).flip(1)[:, 1 : targets + 1]
        # Side by side, a point that is fooled by its first walk costs the steps of several: on 100 digits in l1, where
        # two in three are fooled, a tenth more passes. Fuller batches make up for it: a tenth less time there, and less
        # than half the time on 10 points.
        rows = chunk_size or len(images) * targets
        tried = 0

        def state_now() -> State:
            return {**result.state(images), "tried": torch.tensor(tried)}

        if state := options.state:
            tried = int(state["tried"])
            result.restore(state)
        while tried < wrong_classes.shape[1] and bool(result.robust.any()):
            robust = result.robust.nonzero().squeeze(1)
            side_by_side = wrong_classes[robust, tried : tried + max(1, rows // len(robust))]
            tried += side_by_side.shape[1]
            indices = robust.repeat(side_by_side.shape[1])
            walks = _Walks(indices, images[indices], labels[indices], side_by_side.T.flatten(), images[indices])
            _walk(model, walks, threat, result, steps=steps, chunk_size=chunk_size)
            yield state_now
        return result.finish()


@torch.no_grad()
def _walk(
    model: nn.Module, walks: _Walks, threat: LpThreat, result: RunningResult, *, steps: int, chunk_size: int | None
) -> None:
    """Take the steps, and enter into `result` the points that are fooled."""
    for _ in range(steps):
        # Unlike APGD, the pass that judges a step does not compute the gradient for the next one: on the digits base in
        # half (l1) to five in six (l2) of these passes the walk has crossed the boundary, turns back, and needs the
        # gradient of another point. The wasted backward passes would cost more than the forward passes saved.
        _, height, slope, nan_gradients = loss_and_gradient(
            model, walks.current, _target_margin, walks.labels, walks.targets, chunk_size=chunk_size
        )
        walks.step(height, slope, threat.norm)
        logits = predict(model, walks.current, chunk_size=chunk_size)
        near = length(walks.current - walks.images, threat.norm) <= threat.eps
        fooled = fools(logits, walks.labels) & near
        # A walk that has left the points where the model has an answer turns back, too.
        wrong = classify(logits) != walks.labels
        # Several walks may be of one point.
        result.nan_gradients[walks.indices[nan_gradients]] = True
        result.not_finite[walks.indices[near & ~is_answered(logits)]] = True
        if bool(fooled.any()):
            _enter(walks, fooled, logits, result)
            robust = result.robust[walks.indices]
            walks.keep(robust)
            wrong = wrong[robust]
            if len(wrong) == 0:
                return
        walks.turn_back(wrong)


def _enter(walks: _Walks, fooled: Tensor, logits: Tensor, result: RunningResult) -> None:
    """Enter the successful walks (rows,) into the result; of two from one image, that towards the likelier class."""
    rows = fooled.nonzero().squeeze(1)
    first = rows.new_full((len(result.robust),), len(fooled))
    first = first.scatter_reduce(0, walks.indices[rows], rows, "amin")
    rows = first[first < len(fooled)]
    indices = walks.indices[rows]
    result.robust[indices] = False
    result.adversarial[indices] = walks.current[rows]
    result.loss[indices] = cross_entropy(logits[rows], walks.labels[rows], walks.labels[rows])


def _target_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
