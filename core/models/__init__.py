"""Networks by name. Each maps images (batch, channels, height, width) in [0, 1] to logits (batch, classes).

Input normalisation is part of the model, so that every eps means pixel units, whoever calls. A new network is one file
here and one entry in `core.catalog.ARCHITECTURES`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.catalog import ARCHITECTURES
from core.errors import BadInput, DoesNotFit
from core.models.digits_cnn import DigitsCNN
from core.models.preact_resnet import PreActResNet8, PreActResNet18
from core.spec import did_you_mean


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a network again, before its weights are loaded."""

    architecture: str
    """A name in `core.catalog.ARCHITECTURES`."""
    shape: tuple[int, int, int]
    """Channels, height and width of the images it was made for."""
    classes: int
    """How many logits it gives."""
    mean: tuple[float, ...] = ()
    """Per channel, what is subtracted from the images first; empty for nothing."""
    std: tuple[float, ...] = ()
    """Per channel, what they are divided by then; empty for nothing."""


class Normalized(nn.Module):
    """A network with its input normalisation in front."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, then classify."""
        return self.network((images - self.mean) / self.std)


def build(blueprint: Blueprint) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises BadInput for an unknown architecture and DoesNotFit for images that it cannot take.
    """
    entry = ARCHITECTURES.get(blueprint.architecture)
    if entry is None:
        raise BadInput(
            f"there is no architecture {blueprint.architecture!r}",
            hint=did_you_mean(blueprint.architecture, ARCHITECTURES),
            field="architecture",
        )
    if entry.shape and entry.shape != blueprint.shape:
        raise DoesNotFit(
            f"{entry.name} takes images of {describe(entry.shape)}, these are {describe(blueprint.shape)}",
            hint="choose an architecture for this image size, or resize the images",
            field="dataset",
        )
    channels, _, _ = blueprint.shape
    match blueprint.architecture:
        case "digits-cnn":
            network: nn.Module = DigitsCNN(blueprint.classes)
        case "preact-resnet-8":
            network = PreActResNet8(channels, blueprint.classes)
        case "preact-resnet-18":
            network = PreActResNet18(channels, blueprint.classes, nn.ReLU())
        case "preact-resnet-18-softplus":
            network = PreActResNet18(channels, blueprint.classes, nn.Softplus(beta=1))
        case other:
            raise AssertionError(f"{other} is in the catalogue but not built here")
    return Normalized(network, blueprint.mean, blueprint.std) if blueprint.mean else network


def describe(shape: tuple[int, int, int]) -> str:
    """Write an image shape for people: "3 x 32 x 32 (channels x height x width)"."""
    return f"{shape[0]} x {shape[1]} x {shape[2]} (channels x height x width)"
