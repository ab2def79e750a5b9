"""AutoAttack's sanity checks (Croce & Hein 2020, arXiv 2003.01690), whose results are the `flags` of a report."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from core.attacks.forward import loss_and_gradient, predict
from core.attacks.losses import Loss, cross_entropy, dlr
from core.schema.protocols import Protocol
from core.schema.report import AttackRecord, Flag


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


def are_probabilities(logits: Tensor) -> bool:
    """Check whether outputs (batch, classes) are those of a softmax, in half precision or more."""
    outputs = logits.float()
    return bool(outputs.min() > -1e-5 and outputs.max() < 1 + 1e-5 and (outputs.sum(1) - 1).abs().max() < 1e-2)


def _points_without_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> int:
    logits, _, gradient = loss_and_gradient(model, images, loss, labels, labels, chunk_size=chunk_size)
    # Where the model is wrong without an attack, the loss of a sound model may be flat.
    right = logits.argmax(1) == labels
    return int((right & (gradient.flatten(1).abs().sum(1) == 0)).sum())


def flags_of_attacks(records: Iterable[AttackRecord], examples: int) -> Iterator[Flag]:
    """Check whether Square fools points that attacks with gradients do not; examples: points evaluated."""
    for record in records:
        if record.attack == "square" and (record.attacked - record.robust) / examples > 0.002:
            yield Flag(
                code="square_improves",
                message=f"Square, without gradients, fooled {record.attacked - record.robust} points that the "
                "gradient-based attacks did not: their gradients may be masked",
                threat=record.threat,
            )
