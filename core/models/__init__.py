"""Networks by name. Each maps images (batch, channels, height, width) in [0, 1] to logits (batch, classes).

Input normalisation is part of the model, so that every eps is in pixel units. A new network is one file here and one
entry in the catalogue of architectures.
"""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from core.models.activations import ACTIVATIONS
from core.models.conv_stem import convnext_with_conv_stem, vit_with_conv_stem
from core.models.digits_cnn import DigitsCNN
from core.models.dm_preact_resnet import DMPreActResNet18
from core.models.dm_wide_resnet import DMWideResNet
from core.models.imagenet_resnet import imagenet_resnet_50
from core.models.normalisation import Normalized
from core.models.own import build_packaged
from core.models.preact_resnet import FastATResNet18, PreActResNet8, PreActResNet18
from core.models.ra_imagenet_resnet import RaImageNetResNet
from core.models.ra_wide_resnet import RaWideResNet
from core.models.resnest import resnest_152
from core.models.resnet import resnet_18, resnet_50
from core.models.staged_wide_resnet import WRN34R, WRNA4
from core.models.swin import mimir_swin
from core.models.timm_classifier import timm_classifier
from core.models.torchvision_classifier import torchvision_classifier
from core.models.wide_resnet import WideResNet
from core.models.wide_resnet_variants import HypersphereWideResNet, PSSiLUWideResNet, StandardisedWideResNet
from core.models.xcit import xcit
from core.schema.catalog import ARCHITECTURES, OWN_CLASS, PACKAGED, TIMM, TORCHVISION, find_architecture
from core.schema.errors import BadInput, DoesNotFit
from core.schema.preprocessing import Preprocessing
from core.schema.suggestions import did_you_mean

# The exceptions that networks raise for images that they cannot take.
_CANNOT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError, AttributeError)


@dataclass(frozen=True)
class Blueprint:
    """The description of a network, from which it is built before its weights are loaded."""

    architecture: str
    """A name that `core.schema.catalog.find_architecture` finds. A class of the user's own cannot be built by it."""
    shape: tuple[int, int, int]
    """Channels, height and width of its images."""
    classes: int
    """Number of classes."""
    mean: tuple[float, ...] = ()
    """Per channel, the mean subtracted from images in [0, 1]; empty for no normalisation."""
    std: tuple[float, ...] = ()
    """Per channel, the standard deviation that they are divided by; empty for no normalisation."""
    preprocessing: Preprocessing | None = None
    """How the images that it was made for were brought to their size; None where that is not known."""


def build(blueprint: Blueprint) -> nn.Module:
    """Build a network with random weights, drawn from torch's global generator, on torch's default device.

    Raises BadInput for an unknown architecture and DoesNotFit for images or classes that it cannot take.
    """
    entry = find_architecture(blueprint.architecture)
    if entry is None:
        raise BadInput(
            f"there is no architecture {blueprint.architecture!r}",
            hint=did_you_mean(blueprint.architecture, ARCHITECTURES),
            field="architecture",
        )
    if blueprint.architecture.startswith(OWN_CLASS):
        factory = blueprint.architecture.removeprefix(OWN_CLASS)
        raise BadInput(
            f"{factory} is a class of the user's own, which Temper cannot build",
            hint=f"give the network itself: model={factory.rpartition(':')[2]}() in Python, --model {factory} on a "
            "command line",
            field="model",
        )
    if entry.shape and entry.shape != blueprint.shape:
        raise DoesNotFit(
            f"{entry.name} takes images of {describe(entry.shape)}, but these are {describe(blueprint.shape)}",
            hint="choose an architecture for this image size, or resize the images",
            field="dataset",
        )
    if blueprint.classes < 2:
        raise DoesNotFit(
            f"a classifier needs at least 2 classes, not {blueprint.classes}",
            hint="give a data set, or weights, with 2 classes or more",
            field="dataset",
        )
    network = _network(blueprint)
    _try_out(network, blueprint)
    if isinstance(network, DMWideResNet):
        return network  # it normalises inside, after its padding
    return Normalized(network, blueprint.mean, blueprint.std) if blueprint.mean else network


def _network(blueprint: Blueprint) -> nn.Module:
    shape, classes = blueprint.shape, blueprint.classes
    channels, _, _ = shape
    match blueprint.architecture.split("-"):
        case ["digits", "cnn"]:
            return DigitsCNN(classes)
        case ["preact", "resnet", "8"]:
            return PreActResNet8(channels, classes)
        case ["preact", "resnet", "18"]:
            return PreActResNet18(channels, classes, nn.ReLU())
        case ["preact", "resnet", "18", "softplus"]:
            return PreActResNet18(channels, classes, nn.Softplus(beta=1))
        case ["preact", "resnet", "18", "fast", "at"]:
            return FastATResNet18(channels, classes)
        case ["dm", "preact", "resnet", "18"]:
            return DMPreActResNet18(channels, classes)
        case ["resnet", "18"]:
            return resnet_18(channels, classes)
        case ["resnet", "50"]:
            return resnet_50(channels, classes)
        case ["wide", "resnet", depth, width, *variant]:
            return _wide_resnet(int(depth), int(width), variant, channels, classes)
        case ["dm", "wide", "resnet", depth, width, *variant]:
            return DMWideResNet(
                int(depth),
                int(width),
                channels=channels,
                classes=classes,
                mean=blueprint.mean,
                std=blueprint.std,
                activation=ACTIVATIONS[variant[0] if variant else "silu"],
            )
        case ["wrn", "34", "r"]:
            return WRN34R(channels, classes)
        case ["wrn", "a4"]:
            return WRNA4(channels, classes)
        case ["ra", "wide", "resnet", "70", "16"]:
            return RaWideResNet(channels, classes)
        case ["ra", "wide", "resnet", "101", "2"]:
            return RaImageNetResNet(channels, classes)
        case ["resnest", "152"]:
            return resnest_152(channels, classes)
        case ["imagenet", "resnet", "50"]:
            return imagenet_resnet_50(channels, classes, nn.ReLU)
        case ["imagenet", "resnet", "50", "gelu"]:
            return imagenet_resnet_50(channels, classes, nn.GELU)
        case ["deit", "s"]:
            return timm_classifier("deit_small_patch16_224", shape, classes)
        case ["xcit", "s12"]:
            return timm_classifier("xcit_small_12_p16_224", shape, classes)
        case ["xcit", size]:
            return xcit(size, shape, classes, patch=16)
        case ["xcit", size, "p4"]:
            return xcit(size, shape, classes, patch=4)
        case ["convnext", size, "convstem"]:
            return convnext_with_conv_stem(size, shape, classes)
        case ["vit", size, "convstem"]:
            return vit_with_conv_stem(size, shape, classes)
        case ["mimir", "swin", size]:
            return mimir_swin(size, shape, classes)
    name = blueprint.architecture
    if name.startswith(PACKAGED):
        return build_packaged(name, shape, classes)
    if name.startswith(TORCHVISION):
        return torchvision_classifier(name.removeprefix(TORCHVISION), shape, classes)
    if name.startswith(TIMM):
        return timm_classifier(name.removeprefix(TIMM), shape, classes)
    raise NotImplementedError(f"{name} is in the catalogue but is not built here")


def _wide_resnet(depth: int, width: int, variant: list[str], channels: int, classes: int) -> nn.Module:
    match variant:
        case ["hypersphere"]:
            return HypersphereWideResNet(depth, width, channels=channels, classes=classes)
        case ["standardised"]:
            return StandardisedWideResNet(depth, width, channels=channels, classes=classes)
        case ["pssilu"]:
            return PSSiLUWideResNet(depth, width, channels=channels, classes=classes)
    activation = ACTIVATIONS[variant[0] if variant else "relu"]
    return WideResNet(depth, width, channels=channels, classes=classes, activation=activation)


def _try_out(network: nn.Module, blueprint: Blueprint) -> None:
    """Refuse images that a network cannot take, for example because they are too small. Raises DoesNotFit.

    Two images go through the network: on the meta device, which costs almost nothing, and where its code does not
    support that, as black images. No random number is drawn and no buffer changes. A network that is itself on the meta
    device is not checked.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    if any(tensor.is_meta for tensor in tensors.values()):
        return
    was, shape = network.training, (2, *blueprint.shape)
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with suppress(*_CANNOT), torch.device("meta"):
                functional_call(
                    network, {name: tensor.to("meta") for name, tensor in tensors.items()}, torch.zeros(shape)
                )
                return
            network(torch.zeros(shape))
    except _CANNOT as error:
        raise DoesNotFit(
            f"{blueprint.architecture} cannot take images of {describe(blueprint.shape)}: "
            f"{str(error).partition(chr(10))[0]}",
            hint="choose a network for images of this size, or make the images larger",
            field="architecture",
        ) from error
    finally:
        network.train(was)


def describe(shape: tuple[int, int, int]) -> str:
    """Format an image shape: "3 x 32 x 32 (channels x height x width)"."""
    return f"{shape[0]} x {shape[1]} x {shape[2]} (channels x height x width)"
