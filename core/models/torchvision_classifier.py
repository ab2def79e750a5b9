"""Classifiers of the torchvision library, by torchvision's own names: resnet18, wide_resnet50_2, vit_b_16 and others.

Only the architecture comes from torchvision. Weights are never downloaded; they are imported from a file.
"""

from typing import Any

import torch
from torch import nn

from core.schema.errors import BadInput, DoesNotFit
from core.schema.suggestions import find_close

# Both have a second classifier half-way, which helps only to train from random weights.
_TWO_HEADS = ("googlenet", "inception_v3")


def torchvision_classifier(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a torchvision classifier for images of `shape` (channels, height, width), with fresh weights.

    Raises BadInput for a name that torchvision does not know and DoesNotFit for images that the network cannot take.
    """
    # Imported here, since torchvision takes a second to load.
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = find_close(name, known)
        guess = f"did you mean 'torchvision/{close}'? " if close else ""
        raise BadInput(
            f"torchvision has no classifier {name!r}",
            hint=f"{guess}torchvision.models.list_models() lists all of them",
            field="architecture",
        )
    channels, height, width = shape
    options: dict[str, Any] = {"num_classes": classes}
    if name in _TWO_HEADS:
        options |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_") and height == width:
        options["image_size"] = height
    elif name.startswith("maxvit_"):
        options["input_size"] = (height, width)
    try:
        network: nn.Module = models.get_model(name, weights=None, **options)
    except NotImplementedError:
        # RegNets calculate their widths with tensors, which have no numbers on the meta device.
        with torch.device("cpu"):
            network = models.get_model(name, weights=None, **options).to("meta")
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise DoesNotFit(
            f"torchvision/{name} cannot be built for {channels} x {height} x {width} images in {classes} classes: "
            f"{str(error).partition(chr(10))[0]}",
            hint="choose another network, or resize the images",
            field="architecture",
        ) from error
    if channels != 3:
        _take_channels(network, channels)
    if name in _TWO_HEADS:
        network.unused = ("aux1.", "aux2.", "AuxLogits.")  # type: ignore[assignment]  # no tensor
    return network


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes images of another number of channels."""
    name, first = next((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d))
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]  # a tuple of two
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    network.set_submodule(name, replacement)
