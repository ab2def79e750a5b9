"""FAB-T: walk to the closest decision boundary, towards one likely wrong class after the other.

Fast Adaptive Boundary attack (Croce & Hein 2020, arXiv 1907.02044, algorithm 1) in the targeted form of AutoAttack
(arXiv 2003.01690, section 5). Each step takes the difference of two logits for a linear function and steps onto the
plane where that is zero; a walk that has crossed the boundary turns back towards the image and tries to cross closer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, RunningResult, State, Steps, frozen
from core.attacks.forward import loss_and_gradient, predict
from core.attacks.losses import cross_entropy
from core.attacks.threat import LpThreat
from core.geometry import length, per_image, step_onto_plane
from core.schema.catalog import Norm
from core.schema.protocols import STEPS, TARGETS

# AutoAttack's constants: how far a step goes beyond the plane, how much of it may start from the image rather than from
# where the walk is, and what is left of the perturbation after turning back.
_OVERSHOOT = 1.05
_MOST_FROM_IMAGE = 0.1
_TURN_BACK = 0.9


@dataclass
class _Walks:
    """Walks under way, a row each; several may start from one image, each towards a class of its own."""

    place: Tensor
    images: Tensor
    labels: Tensor
    targets: Tensor
    current: Tensor

    def step(self, height: Tensor, slope: Tensor, norm: Norm) -> None:
        """Cross the plane where the linear function of these slopes, this high at the current points, is zero."""
        height_at_image = height + (slope * (self.images - self.current)).flatten(1).sum(1)
        steps = step_onto_plane(
            torch.stack([self.current, self.images]), slope, torch.stack([height, height_at_image]), norm
        )
        near, far = length(steps.flatten(0, 1), norm).clamp(min=1e-8).chunk(2)
        share = per_image((near / (near + far)).clamp(max=_MOST_FROM_IMAGE), slope)
        from_here, from_image = _OVERSHOOT * steps
        self.current = ((self.current + from_here) * (1 - share) + (self.images + from_image) * share).clamp(0, 1)

    def turn_back(self, which: Tensor) -> None:
        """Pull these walks (rows,) towards their image."""
        nearer = self.images + (self.current - self.images) * _TURN_BACK
        self.current = torch.where(per_image(which, nearer), nearer, self.current)

    def keep(self, which: Tensor) -> None:
        """Forget all but these rows (rows,)."""
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
    """Walk from each image to the boundary of each of the `targets` likeliest classes after the first.

    With fewer classes than that, all of them are tried. A point has fallen once a walk is at a misclassified point no
    farther than eps, and then costs no further passes. `adversarial` is that point, or the image where there is none;
    `loss` is the cross-entropy at it. Nothing is drawn at random: a single walk per class starts at the image itself.

    Walks towards several classes go side by side as far as `options.chunk_size` has room for them: a step. No verdict
    changes, since each walk starts from the image itself.
    """
    chunk_size = options.chunk_size
    with frozen(model):
        logits = predict(model, images, chunk_size=chunk_size)
        result = RunningResult(
            adversarial=images.clone(),
            robust=logits.argmax(1) == labels,
            loss=cross_entropy(logits, labels, labels),
        )
        wrong_classes = logits.argsort(1, descending=True)[:, 1 : targets + 1]
        # Side by side, a point that would fall on its first walk costs the steps of several: on 100 digits in l1, where
        # two in three fall, a tenth more passes. Fuller batches take that back: a tenth less time there, and less than
        # half the time on 10 points.
        room = chunk_size or len(images) * targets
        tried = 0

        def now() -> State:
            return {**result.state(images), "tried": torch.tensor(tried)}

        if state := options.state:
            tried = int(state["tried"])
            result.restore(state)
        while tried < wrong_classes.shape[1] and bool(result.robust.any()):
            standing = result.robust.nonzero().squeeze(1)
            side_by_side = wrong_classes[standing, tried : tried + max(1, room // len(standing))]
            tried += side_by_side.shape[1]
            place = standing.repeat(side_by_side.shape[1])
            walks = _Walks(place, images[place], labels[place], side_by_side.T.flatten(), images[place])
            _walk(model, walks, threat, result, steps=steps, chunk_size=chunk_size)
            yield now
        return result.finish()


@torch.no_grad()
def _walk(
    model: nn.Module, walks: _Walks, threat: LpThreat, result: RunningResult, *, steps: int, chunk_size: int | None
) -> None:
    """Take the steps, and enter into `result` the points that fall."""
    for _ in range(steps):
        # The gradient is not taken along with the look that judges a step, as in APGD: on the digits base half (l1) to
        # five in six (l2) of those looks find the walk across the boundary, where it turns back and needs the gradient
        # of another point. The wasted backward passes would cost more than the looks saved.
        _, height, slope = loss_and_gradient(
            model, walks.current, _lead_of_target, walks.labels, walks.targets, chunk_size=chunk_size
        )
        walks.step(height, slope, threat.norm)
        logits = predict(model, walks.current, chunk_size=chunk_size)
        wrong = logits.argmax(1) != walks.labels
        fallen = wrong & (length(walks.current - walks.images, threat.norm) <= threat.eps)
        if bool(fallen.any()):
            _enter(walks, fallen, logits, result)
            standing = result.robust[walks.place]
            walks.keep(standing)
            wrong = wrong[standing]
            if len(wrong) == 0:
                return
        walks.turn_back(wrong)


def _enter(walks: _Walks, fallen: Tensor, logits: Tensor, result: RunningResult) -> None:
    """Enter the walks (rows,) that reached their goal; where two from one image did, the likelier class speaks."""
    rows = fallen.nonzero().squeeze(1)
    first = rows.new_full((len(result.robust),), len(fallen))
    first = first.scatter_reduce(0, walks.place[rows], rows, "amin")
    rows = first[first < len(fallen)]
    place = walks.place[rows]
    result.robust[place] = False
    result.adversarial[place] = walks.current[rows]
    result.loss[place] = cross_entropy(logits[rows], walks.labels[rows], walks.labels[rows])


def _lead_of_target(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
