"""Checks of images with labels that a user gives as tensors, before anything is computed. Each check waits for the
device once."""

import torch
from torch import Tensor

from core.schema.errors import BadInput

_FLOATS = (torch.float32, torch.float64)


def check_points(images: Tensor, labels: Tensor, *, or_bytes: bool = False) -> None:
    """Raise BadInput unless images are (examples, channels, height, width) in [0, 1] and labels (examples,) class
    indices from 0 on, of one example or more. or_bytes: whether uint8 images, from 0 to 255, are right as well."""
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise BadInput(
            f"the images are {_describe(images)}, not (examples, channels, height, width)",
            hint="give one tensor of four dimensions; images[None] makes a set of a single image",
            field="images",
        )
    if images.dtype not in _FLOATS and not (or_bytes and images.dtype == torch.uint8):
        raise BadInput(
            f"the images are {_describe(images)}, not float32 in [0, 1]" + (" or uint8" if or_bytes else ""),
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
    if images.dtype != torch.uint8 and not 0 <= low <= high <= 1:
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


def _describe(given: object) -> str:
    if isinstance(given, Tensor):
        return f"a tensor {tuple(given.shape)} of {str(given.dtype).removeprefix('torch.')}"
    return f"of the type {type(given).__name__}"
