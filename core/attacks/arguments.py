"""Checks of the arguments of attacks and evaluations, before anything is computed.

Each check waits for the device once. A caller that has made sure of its images, as a training run has, leaves the
checks out with `AttackOptions(checked=True)`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from core.attacks.forward import predict
from core.attacks.losses import Loss
from core.attacks.threat import LpThreat
from core.models.memory import ChunkSizer, is_out_of_memory
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput, UserError

_FLOATS = (torch.float32, torch.float64)


def check_points(images: Tensor, labels: Tensor) -> None:
    """Raise BadInput unless images are (examples, channels, height, width) in [0, 1] and labels (examples,) class
    indices from 0 on, of one example or more."""
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise BadInput(
            f"the images are {_describe(images)}, not (examples, channels, height, width)",
            hint="give one tensor of four dimensions; images[None] makes a set of a single image",
            field="images",
        )
    if images.dtype not in _FLOATS:
        raise BadInput(
            f"the images are {_describe(images)}, not float32 in [0, 1]",
            hint="convert them with images.float()" + ("" if images.is_floating_point() else " / 255"),
            field="images",
        )
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype != torch.int64:
        raise BadInput(
            f"the labels are {_describe(labels)}, not class indices (examples,) of int64",
            hint="turn one-hot labels into indices with labels.argmax(1), and other integers with labels.long()",
            field="labels",
        )
    if len(images) != len(labels):
        raise BadInput(
            f"there are {len(images)} images and {len(labels)} labels", hint="give one label per image", field="labels"
        )
    if len(images) == 0 or images[0].numel() == 0:
        raise BadInput(
            f"the images are {_describe(images)}: there is nothing to attack",
            hint="give one image or more",
            field="images",
        )
    if images.device != labels.device:
        raise BadInput(
            f"the images are on {images.device}, the labels on {labels.device}",
            hint="move all to the device of the model, such as labels.to(images.device)",
            field="labels",
        )
    lowest_pixel, highest_pixel = images.detach().aminmax()
    low, high, lowest = torch.stack([lowest_pixel.double(), highest_pixel.double(), labels.min().double()]).tolist()
    if not 0 <= low <= high <= 1:
        raise _outside_box(low, high)
    if lowest < 0:
        raise BadInput(
            f"a label is {lowest:.0f}", hint="give class indices, which count from 0, for all images", field="labels"
        )


def _outside_box(low: float, high: float) -> BadInput:
    if not low <= high:
        return BadInput("the images contain NaN", hint="leave out or repair these images", field="images")
    if low >= 0 and 2 < high <= 255:
        hint = "divide them by 255"
    elif -1 <= low < 0 and high <= 1:
        hint = "undo their scaling with (images + 1) / 2, and let the first layer of the model scale instead"
    elif low >= -1e-3 and high <= 1 + 1e-3:
        hint = "remove the rounding errors with images.clamp(0, 1)"
    else:
        hint = "undo their normalisation, and let the first layer of the model normalise instead"
    return BadInput(f"the images have values from {low:.8g} to {high:.8g}, not in [0, 1]", hint=hint, field="images")


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


def _describe(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor {tuple(given.shape)} of {str(given.dtype).removeprefix('torch.')}"
    return f"of the type {type(given).__name__}"
