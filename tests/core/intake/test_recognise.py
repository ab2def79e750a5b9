"""Which network weights belong to, from their names and shapes alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.meta import without_initialisation
from core import checkpoint
from core.cli.console import inspection_lines
from core.intake.inspect import inspect_model
from core.intake.recognise import recognise_weights
from core.models import Blueprint, build
from core.models.recognition import candidates, fingerprint
from core.models.weight_files import ThirdPartyWeights
from core.models.weight_matching import without_normalisation
from core.schema.catalog import ARCHITECTURES, variants_of
from core.schema.errors import BadInput, BadWeights
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import ModelInspection

_ASKED = {"preact-resnet-18", "preact-resnet-18-softplus"}
"""Both are in use, and differ in nothing but the activation."""


@pytest.fixture(autouse=True)
def without_drawing() -> Iterator[None]:
    """Build outlines of networks in a third of the time."""
    with without_initialisation():
        yield


def weights_of(name: str, shape: tuple[int, int, int], classes: int) -> dict[str, Tensor]:
    """Make the weights of a network without their numbers, which recognition does not look at."""
    with torch.device("meta"):
        return dict(without_normalisation(build(Blueprint(name, shape, classes))).state_dict())


def recognised(weights: Mapping[str, Tensor], shape: tuple[int, int, int]) -> tuple[str, tuple[str, ...]]:
    """Recognise weights for images of a shape; return the network and its alternatives."""
    spec = ImportSpec(shape=shape)
    found = recognise_weights(ThirdPartyWeights(weights), spec, "theirs.pt")
    return found.spec.architecture, found.alternatives


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_recognised_or_named(name: str) -> None:
    shape = ARCHITECTURES[name].shape or ((3, 224, 224) if "imagenet" in name else (3, 32, 32))
    weights = weights_of(name, shape, 7)
    if name in _ASKED:
        with pytest.raises(BadInput, match="fit preact-resnet-18 and preact-resnet-18-softplus, which differ only"):
            recognised(weights, shape)
        return
    found, alternatives = recognised(weights, shape)
    usual = ARCHITECTURES[name].variant_of
    assert found == (usual or name)
    assert usual is None or name in alternatives


@pytest.mark.parametrize(
    "name", ["wide-resnet-10-2", "dm-wide-resnet-16-1", "wide-resnet-10-1-pssilu", "wide-resnet-16-1-hypersphere"]
)
def test_a_wide_resnet_says_its_depth_and_width(name: str) -> None:
    assert recognised(weights_of(name, (3, 32, 32), 7), (3, 32, 32)) == (name, variants_of(name))


@pytest.mark.parametrize("name", ["wide-resnet-10-1-silu", "dm-wide-resnet-10-1-relu", "wide-resnet-16-2-standardised"])
def test_of_a_wide_resnet_the_usual_activation_is_taken_and_the_other_named(name: str) -> None:
    found, alternatives = recognised(weights_of(name, (3, 32, 32), 7), (3, 32, 32))
    assert name.startswith(found)
    assert name in alternatives


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2", "vgg11_bn", "mobilenet_v2", "vit_b_16"])
def test_a_network_of_torchvisions_is_recognised_under_wrappers_and_with_own_classes(name: str) -> None:
    weights = weights_of(f"torchvision/{name}", (3, 224, 224), 5)
    wrapped = {f"backbone.{key}": tensor for key, tensor in weights.items()}
    for each in (weights, wrapped):
        assert recognised(each, (3, 224, 224))[0] == f"torchvision/{name}"


def test_a_grey_resnet_is_recognised_too() -> None:
    assert recognised(weights_of("torchvision/resnet18", (1, 64, 64), 5), (1, 64, 64))[0] == "torchvision/resnet18"


def test_a_second_classifier_is_left_out() -> None:
    with torch.device("meta"):
        theirs = models.googlenet(weights=None, num_classes=5, init_weights=False).state_dict()
    assert any(name.startswith("aux1") for name in theirs)
    assert recognised(theirs, (3, 224, 224))[0] == "torchvision/googlenet"


@pytest.mark.parametrize("name", ["convnext_base", "dla34"])
def test_a_network_of_timms_is_recognised(name: str) -> None:
    assert recognised(weights_of(f"timm/{name}", (3, 224, 224), 5), (3, 224, 224))[0] == f"timm/{name}"


def test_a_swin_transformer_is_recognised_by_the_names_of_its_authors() -> None:
    theirs = weights_of("mimir-swin-l", (3, 224, 224), 5)
    old = {}
    for name, tensor in theirs.items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        old[name.replace("head.fc.", "head.")] = tensor
    assert recognised(old, (3, 224, 224))[0] == "mimir-swin-l"


def test_patches_are_told_by_the_images_of_the_data_set() -> None:
    weights = weights_of("xcit-s12", (3, 224, 224), 1000)
    for name in ("cifar10", "imagenet"):
        found = recognise_weights(ThirdPartyWeights(weights), ImportSpec(dataset=name), "theirs.pt").spec.architecture
        assert found == ("xcit-s12-p4" if name == "cifar10" else "xcit-s12")
    found = recognise_weights(ThirdPartyWeights(weights), ImportSpec(), "theirs.pt")
    assert (found.spec.architecture, found.spec.shape) == ("xcit-s12", (3, 224, 224))


def test_weights_with_another_shape_are_not_taken_for_a_known_network() -> None:
    weights = weights_of("torchvision/resnet18", (3, 224, 224), 5)
    weights["layer1.0.conv1.weight"] = torch.empty(32, 64, 3, 3, device="meta")
    assert candidates(weights)  # the fingerprint does not see it
    with pytest.raises(BadWeights, match="fit no known network"):
        recognised(weights, (3, 224, 224))


def test_a_fingerprint_sees_neither_classes_nor_channels() -> None:
    def of(network: nn.Module) -> str:
        return fingerprint({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})

    def network(channels: int, width: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, width, 3), nn.Flatten(), nn.Linear(width, classes))

    assert of(network(3, 8, 10)) == of(network(1, 8, 4)) != of(network(3, 9, 10))


def check_model(file: Path, folder: Path, **said: object) -> ModelInspection:
    return inspect_model(file, ImportSpec.model_validate(said), folder / "out", max_bytes=2**30)


def test_a_resnet_of_torchvisions_with_own_classes_is_recognised(tmp_path: Path) -> None:
    theirs = models.resnet18(num_classes=5)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pt")
    with pytest.raises(BadInput, match="fit torchvision/resnet18, which takes images of several sizes"):
        check_model(tmp_path / "theirs.pt", tmp_path)
    found = check_model(tmp_path / "theirs.pt", tmp_path, shape=(3, 64, 64))
    assert (found.architecture, found.recognised, found.classes) == ("torchvision/resnet18", True, 5)
    model, _ = checkpoint.load(tmp_path / "out" / "model.safetensors")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), theirs.eval()(images))


def test_an_activation_that_weights_do_not_show_is_said(tmp_path: Path) -> None:
    torch.save(build(Blueprint("wide-resnet-10-1-silu", (3, 16, 16), 4)).state_dict(), tmp_path / "theirs.pt")
    found = check_model(tmp_path / "theirs.pt", tmp_path, shape=(3, 16, 16))
    assert (found.architecture, found.recognised) == ("wide-resnet-10-1", True)
    assert found.alternatives[0] == "wide-resnet-10-1-silu"
    said = "\n".join(inspection_lines(found))
    assert "do not tell it from wide-resnet-10-1-silu" in said
    named = check_model(tmp_path / "theirs.pt", tmp_path, shape=(3, 16, 16), architecture="wide-resnet-10-1-silu")
    assert (named.architecture, named.alternatives) == ("wide-resnet-10-1-silu", ())
