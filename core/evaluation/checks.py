"""Sanity checks, whose results are the `flags` of a report: those of AutoAttack (Croce & Hein 2020, arXiv 2003.01690),
and of answers that are NaN or infinite.

What concerns the model is checked on the first logical batch, what concerns the results on all points.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.attacks.forward import classify, loss_and_gradient, predict
from core.attacks.losses import Loss, cross_entropy, dlr
from core.schema.progress import Flag
from core.schema.protocols import Protocol
from core.schema.report import NO_CLASS, AttackRecord, Points, UnseenReport

_NOTICEABLE = 0.002
"""The share of points from which on AutoAttack warns of Square's gain; a number in which more points have no answer is
not reliable."""


def flags_of_model(
    model: nn.Module, images: Tensor, labels: Tensor, protocol: Protocol, *, targets: int, chunk_size: int | None = None
) -> Iterator[Flag]:
    """Check a model in eval mode on some points.

    images (batch, channels, height, width), labels (batch,). targets: wrong classes that the protocol's attacks try.
    """
    outputs = [predict(model, images, chunk_size=chunk_size) for _ in range(5)]
    logits = outputs[0]
    directions = [output / (output.norm(dim=1, keepdim=True) + 1e-10) for output in outputs]
    if any((direction - directions[0]).norm(dim=1).max() > 1e-4 for direction in directions):
        yield Flag(
            code="randomized",
            message="the model's output changes from call to call; attacks that expect one output overrate it",
        )
    elif depends_on_batch(model, images, chunk_size):
        yield Flag(
            code="batch_dependent",
            message="the model's answer to an image depends on the images beside it, as with batch norm without "
            "running statistics: no robust accuracy is its own, and verdicts change with what is computed together",
        )
    if are_probabilities(logits):
        yield Flag(
            code="probabilities", message="the model returns probabilities; attacks need logits, before the softmax"
        )
    if flat := _points_without_gradient(model, images, labels, dlr, chunk_size):
        yield Flag(
            code="zero_gradients",
            message=f"{flat} of {len(labels)} points have no gradient; gradient-based attacks cannot move them",
        )
    elif (saturated := _points_without_gradient(model, images, labels, cross_entropy, chunk_size)) > len(labels) / 10:
        # A sound model may be very sure of some points; that leaves enough points with a gradient.
        others = "this protocol has no other attack" if protocol == "fast" else "only the other attacks can"
        yield Flag(
            code="saturated",
            message=f"the logits are so large that the cross-entropy of {saturated} of {len(labels)} points has no "
            f"gradient: APGD on it cannot move them, and {others}",
        )
    classes = logits.shape[1]
    if protocol != "fast" and classes <= targets:
        scale = "" if classes > 3 else "; the DLR loss, defined for four classes, uses the logits there are"
        yield Flag(
            code="few_classes",
            message=f"with {classes} classes, targeted attacks have {classes - 1} targets, not {targets}{scale}",
        )


def depends_on_batch(model: nn.Module, images: Tensor, chunk_size: int | None = None) -> bool:
    """Check whether a model in eval mode answers images (batch, channels, height, width) otherwise beside others."""
    few = images[: max(min(4, (chunk_size or 8) // 2), 1)]
    beside = torch.cat([few, 1 - few])
    alone, together = (predict(model, points, chunk_size=chunk_size)[: len(few)] for points in (few, beside))
    return bool((together - alone).abs().max() > 1e-3 * alone.abs().max().clamp(min=1e-6))


def are_probabilities(logits: Tensor) -> bool:
    """Check whether outputs (batch, classes) are those of a softmax, in half precision or more."""
    outputs = logits.float()
    return bool(outputs.min() > -1e-5 and outputs.max() < 1 + 1e-5 and (outputs.sum(1) - 1).abs().max() < 1e-2)


def _points_without_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> int:
    found = loss_and_gradient(model, images, loss, labels, labels, chunk_size=chunk_size)
    # Where the model is wrong without an attack, the loss of a sound model may be flat.
    right = classify(found.logits) == labels
    return int((right & (found.gradient.flatten(1).abs().sum(1) == 0)).sum())


class Finding(NamedTuple):
    """A flag that results give reason for, and whether it makes the number of its row unreliable."""

    flag: Flag
    unreliable: bool = False


def flags_of_results(points: Points, records: Sequence[AttackRecord]) -> Iterator[Finding]:
    """Check what is known per point, and after each attack. The flags of shards follow from their results together."""
    examples = len(points.labels)
    if lost := points.predicted["clean"].count(NO_CLASS):
        unreliable = lost / examples > _NOTICEABLE
        yield Finding(
            Flag(
                code="not_finite",
                message=f"at {lost} of {examples} points the logits are NaN or infinite without an attack; these count "
                f"as wrong{_NOT_RELIABLE if unreliable else ''}",
            ),
            unreliable,
        )
    for record in {record.threat: record for record in records}.values():
        yield from _flags_of_threat(record, examples)
    for record in records:
        gain = record.attacked - record.robust
        if record.attack == "square" and gain / examples > _NOTICEABLE:
            yield Finding(
                Flag(
                    code="square_improves",
                    message=f"Square, without gradients, fooled {gain} points that the gradient-based attacks did not: "
                    "their gradients may be masked",
                    threat=record.threat,
                )
            )


_NOT_RELIABLE = ", and the number is not reliable"


def _flags_of_threat(last: AttackRecord, examples: int) -> Iterator[Finding]:
    """Check what the attacks of a threat met, given the record of the last of them."""
    if last.not_finite:
        unreliable = last.not_finite / examples > _NOTICEABLE
        message = (
            f"at {last.not_finite} of {examples} points attacks met an image or logits that are NaN or infinite, and "
            f"no error: these count as robust for lack of an answer{_NOT_RELIABLE if unreliable else ''}; find the "
            "operation that overflows or divides by zero, and evaluate again"
        )
        yield Finding(Flag(code="not_finite", message=message, threat=last.threat), unreliable)
    if last.nan_gradients:
        message = (
            f"at {last.nan_gradients} of {examples} points a gradient contains NaN, as that of sqrt(x) or x / x.norm() "
            "does at 0: attacks take it as zero, and may overrate the model; add a small constant inside such an "
            "operation, and evaluate again"
        )
        yield Finding(Flag(code="nan_gradients", message=message, threat=last.threat))
    if last.outside_ball:
        message = (
            f"{last.outside_ball} of {examples} points are fooled at images that AutoAttack's rounding leaves outside "
            "the ball, and are not fooled at their exact projections: they count as fooled, as in AutoAttack"
        )
        yield Finding(Flag(code="outside_ball", message=message, threat=last.threat))


def flags_of_unseen(unseen: UnseenReport, examples: int) -> Iterator[Flag]:
    """Check what the attacks of other threats met: where they may be weak on this model."""
    for record in unseen.attacks:
        yield from (finding.flag for finding in _flags_of_threat(record, examples))
        if record.late > _WEAK * examples:
            yield Flag(
                code="not_converged",
                message=f"{record.late} of {examples} points were fooled in the last tenth of the search: a longer one "
                "would probably fool more; raise its queries or steps",
                threat=record.threat,
            )
        if record.no_gradient > _WEAK * examples:
            yield Flag(
                code="vanished_gradients",
                message=f"at {record.no_gradient} of {examples} points the gradient was zero throughout the attack, "
                "which then found no direction: the number may be too high",
                threat=record.threat,
            )


_WEAK = 0.01
"""The share of points from which on an attack that has not converged, or has no gradient, is flagged."""

OF_RESULTS = frozenset(
    {"not_finite", "nan_gradients", "outside_ball", "square_improves", "not_converged", "vanished_gradients"}
)
"""The codes of flags that results give reason for."""
