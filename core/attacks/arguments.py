"""Checks of the arguments of attacks and evaluations, before anything is computed.

Each check waits for the device once. A caller that has made sure of its images, as a training run has, leaves the
checks out with `AttackOptions(checked=True)`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from core.attacks.forward import predict
from core.attacks.losses import Loss
from core.attacks.threat import LpThreat
from core.models.memory import ChunkSizer, is_out_of_memory
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput, UserError


def count_classes(model: nn.Module, image: Tensor) -> int:
    """Count the classes of a model in eval mode by its answer to an image (1, channels, height, width).

    Raises BadInput where the model does not take such an image, or answers with anything but logits, and OutOfMemory.
    """
    try:
        return predict(model, image).shape[1]
    except UserError:
        raise
    except Exception as error:
        # A network says in many ways that it does not take an image.
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            ChunkSizer(1, image.device).check(error)
        reason = str(error).strip().partition("\n")[0][:300]
        raise BadInput(
            f"the model does not take images of {' x '.join(map(str, image.shape[1:]))}: {reason}",
            hint="give images with the channels and the size that the model was made for, on its device",
            field="images",
        ) from error


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise BadInput where a label (examples,) is no class of a model."""
    highest = int(labels.max())
    if highest >= classes:
        raise BadInput(
            f"a label is {highest}, but the model has {classes} classes, numbered from 0",
            hint="give labels of the model's classes, or a model for these labels",
            field="labels",
        )


def with_check(loss: Loss) -> Loss:
    """Give the loss with `check_labels` before it, for the first pass of an attack through a model."""

    def checked(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        check_labels(labels, logits.shape[1])
        return loss(logits, labels, targets)

    return checked


def balls_of(eps: Mapping[Norm, float], shape: Sequence[int]) -> list[LpThreat]:
    """Give the balls of an evaluation, in the order of NORMS.

    eps: a radius per norm; shape: of an image. Raises BadInput where there is none, a norm is not known, or a radius
    makes no sense.
    """
    if not isinstance(eps, Mapping) or not eps:
        raise BadInput(
            "no radius is given", hint='give one per norm, such as {"linf": 8 / 255, "l2": 0.5}', field="eps"
        )
    balls = {norm: LpThreat(norm, radius) for norm, radius in eps.items()}
    for ball in balls.values():
        ball.check(shape)
    return [balls[norm] for norm in NORMS if norm in balls]
