"""The results per point in the row of a threat, and the rule that decides which points are fooled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from core.attacks import AttackResult
from core.attacks.threat import Threat
from core.evaluation.resume import EvaluationState
from core.schema.report import NO_CLASS, AttackRecord


def find_fooled(
    attack: str, threat: Threat, images: Tensor, labels: Tensor, result: AttackResult, answers: Tensor
) -> Tensor:
    """Mark the points that an attack fooled: (points,) bool.

    answers (points,): the model's classes at the images found, NO_CLASS where its logits are not finite. An image or an
    answer that is not finite proves no error. Raises RuntimeError where the attack left the threat by more than
    rounding.
    """
    finite = result.adversarial.isfinite().flatten(1).all(1)
    fooled = finite & (answers != NO_CLASS) & (answers != labels)
    allowed = threat.contains(images[fooled], result.adversarial[fooled])
    if not bool(allowed.all()):
        raise RuntimeError(f"{attack} left {threat} at {int((~allowed).sum())} points, which is a defect of the attack")
    return fooled


@dataclass
class Row:
    """What is known per point (points,) in the row of a threat."""

    predicted: Tensor
    """The class that fooled the model, else the class of the clean image."""
    not_finite: Tensor
    """bool: whether an attack met an image or logits that are NaN or infinite."""
    nan_gradients: Tensor
    """bool: whether an attack met a gradient with NaN."""
    late: Tensor
    """bool: whether the point was fooled at the end of a search."""
    no_gradient: Tensor
    """bool: whether the gradient of an attack was zero throughout."""
    outside_ball: Tensor
    """bool: whether the point is fooled outside the threat only, by rounding."""

    @classmethod
    def of(cls, clean: Tensor) -> Self:
        """Begin a row with the classes (points,) that the model gives the clean images."""
        return cls(clean.clone(), *(torch.zeros_like(clean, dtype=torch.bool) for _ in range(5)))

    def part(self, points: slice) -> "Row":
        """Give the row of some of the points, as views: a change of them changes this row."""
        return Row(*(column[points] for column in vars(self).values()))

    def columns(self, key: str) -> dict[str, Tensor]:
        """Give the columns under the key of an attack and group, for the state."""
        return {f"{key}/{name}": column for name, column in vars(self).items()}

    def restore(self, state: EvaluationState, key: str) -> bool:
        """Take over the columns under a key from the state, in place; return whether they are there."""
        found = {name: state.get(f"{key}/{name}") for name in vars(self)}
        for name, column in found.items():
            if column is None:
                return False
            getattr(self, name).copy_(column)
        return True

    def enter(
        self, indices: Tensor, result: AttackResult, answers: Tensor, fooled: Tensor, outside_ball: Tensor
    ) -> None:
        """Enter what an attack found for the points at `indices`, which were robust before it.

        answers, fooled (indices,): as for `find_fooled`; outside_ball (indices,) bool: the fooled points whose images,
        projected exactly, do not fool the model.
        """
        lost = (answers == NO_CLASS) | ~result.adversarial.isfinite().flatten(1).all(1)
        self.predicted[indices[fooled]] = answers[fooled]
        self.not_finite[indices] |= lost | result.not_finite
        self.nan_gradients[indices] |= result.nan_gradients
        self.late[indices] |= result.late & fooled
        self.no_gradient[indices] |= result.no_gradient
        self.outside_ball[indices] = outside_ball

    def record(self, labels: Tensor, *, threat: str, attack: str, attacked: int, seconds: float) -> AttackRecord:
        """Record the state after an attack. labels (points,); attacked: points that were robust before it."""
        robust = self.predicted == labels
        return AttackRecord(
            threat=threat,
            attack=attack,
            attacked=attacked,
            robust=int(robust.sum()),
            not_finite=int((robust & self.not_finite).sum()),
            nan_gradients=int(self.nan_gradients.sum()),
            late=int(self.late.sum()),
            no_gradient=int(self.no_gradient.sum()),
            outside_ball=int(self.outside_ball.sum()),
            seconds=seconds,
        )


def sum_records(records: Sequence[AttackRecord]) -> AttackRecord:
    """Add up the records of one attack on the shards of an evaluation."""
    return AttackRecord(
        threat=records[0].threat,
        attack=records[0].attack,
        attacked=sum(record.attacked for record in records),
        robust=sum(record.robust for record in records),
        not_finite=sum(record.not_finite for record in records),
        nan_gradients=sum(record.nan_gradients for record in records),
        late=sum(record.late for record in records),
        no_gradient=sum(record.no_gradient for record in records),
        outside_ball=sum(record.outside_ball for record in records),
        seconds=sum(record.seconds for record in records),
    )
