"""Reasons to doubt an evaluation, or to know more about it, as AutoAttack's checks look for them.

Croce & Hein 2020 (arXiv 2003.01690) run such checks beside AutoAttack; here they are `flags` of the report.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from core.attacks.forward import loss_and_gradient, predict
from core.attacks.losses import Loss, cross_entropy, dlr
from core.schema.events import AttackRecord, Flag
from core.schema.protocols import Protocol


def doubts_about(
    model: nn.Module, images: Tensor, labels: Tensor, protocol: Protocol, *, targets: int, chunk_size: int | None = None
) -> Iterator[Flag]:
    """Look at a model in eval mode on some points. targets: wrong classes that the protocol's attacks move towards."""
    answers = [predict(model, images, chunk_size=chunk_size) for _ in range(5)]
    logits = answers[0]
    directions = [answer / (answer.norm(dim=1, keepdim=True) + 1e-10) for answer in answers]
    if any((direction - directions[0]).norm(dim=1).max() > 1e-4 for direction in directions):
        yield Flag(
            code="randomized",
            message="the model answers differently each time; attacks that expect one answer overrate it",
        )
    if are_probabilities(logits):
        yield Flag(
            code="probabilities", message="the model returns probabilities; attacks need logits, before the softmax"
        )
    if still := _points_without_gradient(model, images, labels, dlr, chunk_size):
        yield Flag(
            code="zero_gradients",
            message=f"{still} of {len(labels)} points have no gradient; gradient-based attacks cannot move them",
        )
    elif (saturated := _points_without_gradient(model, images, labels, cross_entropy, chunk_size)) > len(labels) / 10:
        # Of a sound model that is very sure of some points the rest tells enough.
        blind = "it is all that this protocol attacks with" if protocol == "fast" else "other attacks have to find them"
        yield Flag(
            code="saturated",
            message=f"the logits are so large that the cross-entropy of {saturated} of {len(labels)} points has no "
            f"gradient: APGD on it cannot move them, and {blind}",
        )
    classes = logits.shape[1]
    if protocol != "fast" and classes <= targets:
        scale = "" if classes > 3 else "; the DLR loss, defined for four classes, uses the logits there are"
        yield Flag(
            code="few_classes",
            message=f"with {classes} classes, targeted attacks have {classes - 1} targets, not {targets}{scale}",
        )


def are_probabilities(logits: Tensor) -> bool:
    """Say whether answers (batch, classes) are those of a softmax, of half precision or more."""
    answers = logits.float()
    return bool(answers.min() > -1e-5 and answers.max() < 1 + 1e-5 and (answers.sum(1) - 1).abs().max() < 1e-2)


def _points_without_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> int:
    logits, _, gradient = loss_and_gradient(model, images, loss, labels, labels, chunk_size=chunk_size)
    # Where the model is wrong to begin with, this loss may be flat and nothing is amiss.
    right = logits.argmax(1) == labels
    return int((right & (gradient.flatten(1).abs().sum(1) == 0)).sum())


def doubts_from_square(records: Iterable[AttackRecord], examples: int) -> Iterator[Flag]:
    """Doubt gradients that find less than Square does without them; examples: points evaluated."""
    for record in records:
        if record.attack == "square" and (record.attacked - record.robust) / examples > 0.002:
            yield Flag(
                code="square_improves",
                message=f"Square, without gradients, fooled {record.attacked - record.robust} points that the "
                "gradient-based attacks did not: their gradients may be masked",
                norm=record.norm,
            )
