"""Networks of the field's model zoo: names and shapes as published, and what each family computes."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.meta import without_initialisation
from benchmarks.zoo import hash_keys
from core.models import Blueprint, build, conv_stem
from core.models.dm_preact_resnet import Block as DMPreActBlock
from core.models.dm_wide_resnet import DMWideResNet
from core.models.preact_resnet import RawShortcutBlock
from core.models.ra_imagenet_resnet import Bottleneck, RaImageNetResNet
from core.models.ra_wide_resnet import RaWideResNet
from core.models.squeeze_excitation import SqueezeExcitation
from core.models.weight_matching import compare, with_names_of, without_normalisation
from core.models.wide_resnet import WideResNet
from core.models.wide_resnet_variants import HypersphereWideResNet, PSSiLUWideResNet, StandardisedWideResNet
from core.schema.catalog import DATASETS, find_architecture, variants_of
from core.schema.errors import BadInput, DoesNotFit
from core.schema.model_zoo import PUBLISHED, REFUSED

_OF_THE_PAPER = {
    *("cifar10/Linf/pretr_Linf", "cifar10/L2/pretr_L2", "cifar10/L1/pretr_L1"),
    *("imagenet/L2/Engstrom2019Robustness", "imagenet/Linf/Bai2021_ResNet50_GELU", "imagenet/Linf/Bai2021_DeiT_S"),
}
"""Base models of the E-AT paper that RobustBench does not list."""
_KEYS = json.loads(Path(__file__).with_name("published_keys.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def without_drawing() -> Iterator[None]:
    """Build outlines of networks in a third of the time."""
    with without_initialisation():
        yield


@cache
def outline(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network without its numbers."""
    with torch.device("meta"):
        return without_normalisation(build(Blueprint(name, shape, classes)))


def test_every_entry_of_robustbench_is_known_or_refused() -> None:
    listed = PUBLISHED.keys() - _OF_THE_PAPER
    boards = [name.rpartition("/")[0] for name in (*listed, *REFUSED)]
    counts = {board: boards.count(board) for board in dict.fromkeys(boards)}
    assert counts == {"cifar10/Linf": 76, "cifar10/L2": 21, "cifar100/Linf": 38, "imagenet/Linf": 30}
    assert len(listed) == 151
    assert _KEYS.keys() <= listed


@pytest.mark.parametrize("name", _KEYS)
def test_a_published_networks_names_and_shapes_are_those_of_robustbench(name: str) -> None:
    entry = PUBLISHED[name]
    dataset = DATASETS[entry.dataset]
    network = outline(entry.architecture, dataset.shape, dataset.classes)
    assert hash_keys(network.state_dict(), network) == _KEYS[name]


@pytest.mark.parametrize("name", [name for name in _KEYS if name.startswith("imagenet")])
def test_published_weights_for_imagenet_say_how_images_are_made(name: str) -> None:
    assert PUBLISHED[name].preprocessing


def test_wide_resnets_have_any_depth_and_width() -> None:
    for name in ("wide-resnet-10-1", "wide-resnet-40-2-silu", "dm-wide-resnet-106-16", "dm-wide-resnet-16-4-relu"):
        assert find_architecture(name) is not None
    for name in ("wide-resnet-30-10", "wide-resnet-28", "wide-resnet-28-10-tanh", "dm-wide-resnet-28-0"):
        assert find_architecture(name) is None
    assert variants_of("dm-wide-resnet-16-1") == tuple(
        f"dm-wide-resnet-16-1-{end}" for end in ("relu", "gelu", "softplus")
    )


@pytest.mark.parametrize("name", ["wide-resnet-10-1", "dm-wide-resnet-10-1"])
def test_variants_share_weights_and_compute_something_else(name: str) -> None:
    torch.manual_seed(0)
    usual, images = build(Blueprint(name, (3, 16, 16), 4)).eval(), torch.rand(2, 3, 16, 16)
    for variant in variants_of(name):
        network = build(Blueprint(variant, (3, 16, 16), 4)).eval()
        network.load_state_dict(usual.state_dict())
        assert not torch.allclose(network(images), usual(images), atol=1e-4), variant


def test_a_cosine_does_not_depend_on_lengths() -> None:
    network = HypersphereWideResNet(10, 1, channels=3, classes=4).eval()
    images = torch.rand(2, 3, 16, 16)
    logits = network(images)
    assert logits.abs().max() <= 1
    with torch.no_grad():
        network.fc.weight.mul_(3)
    torch.testing.assert_close(network(images), logits)


def test_a_standardised_image_has_neither_brightness_nor_contrast() -> None:
    network = StandardisedWideResNet(10, 1, channels=3, classes=4).eval()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(network(images * 0.3 + 0.2), network(images), atol=1e-4, rtol=1e-4)
    grey = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    network(grey).sum().backward()
    assert torch.isfinite(grey.grad).all()  # type: ignore[arg-type]


def test_pssilu_without_a_shift_is_silu_and_its_parameters_are_trained() -> None:
    network = PSSiLUWideResNet(10, 1, channels=3, classes=4).eval()
    silu = WideResNet(10, 1, channels=3, classes=4, activation=F.silu).eval()
    silu.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("activation")})
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(network(images), silu(images))
    network(images).sum().backward()
    assert network.activation.alpha.grad is not None
    published = dict(network.state_dict()) | {"block2.layer.0.activation.alpha": torch.ones(1)}
    assert compare(published, network).whole


def test_a_raw_shortcut_takes_the_features_before_batch_norm() -> None:
    for block in (RawShortcutBlock(2, 4, 2, nn.ReLU()).eval(), DMPreActBlock(2, 4, 2).eval()):
        last = block.conv2 if isinstance(block, RawShortcutBlock) else block.conv_2d_2
        nn.init.zeros_(last.weight)
        features = torch.randn(1, 2, 8, 8)
        assert block.shortcut is not None
        padded = features if isinstance(block, RawShortcutBlock) else F.pad(features, (0, 1, 0, 1))
        torch.testing.assert_close(block(features), block.shortcut(padded))


def test_squeeze_and_excitation_scales_channels_by_their_means() -> None:
    module = SqueezeExcitation(4, 2)
    features = torch.randn(2, 4, 3, 3)
    hidden = F.relu(features.mean((2, 3)) @ module.fc1.weight.flatten(1).T + module.fc1.bias)
    scale = torch.sigmoid(hidden @ module.fc2.weight.flatten(1).T + module.fc2.bias)
    torch.testing.assert_close(module(features), features * scale[:, :, None, None])


def test_robust_architectures_of_small_size_give_logits() -> None:
    small = RaWideResNet(3, 5, depths=(1, 1, 2), widths=(8, 16, 24, 32)).eval()
    assert small(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    large = RaImageNetResNet(3, 5, depths=(1, 1, 2, 1), widths=(8, 16, 32, 64, 64)).eval()
    assert large(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert {"stem.stem.stem.0.weight", "stages.stage3.stage3-block1.F.se.fc1.bias"} <= large.state_dict().keys()


def test_a_bottleneck_halves_the_image_in_its_grouped_convolution() -> None:
    block = Bottleneck(8, 16, 2).eval()
    assert block(torch.rand(1, 8, 8, 8)).shape == (1, 16, 4, 4)
    grouped = block.F.b[0]  # type: ignore[union-attr,index]
    assert (grouped.groups, grouped.stride) == (2, (2, 2))  # type: ignore[union-attr]


def test_a_xcit_with_small_patches_looks_at_four_pixels() -> None:
    seen: list[Tensor] = []
    network = outline("xcit-s12-p4", (3, 32, 32), 10)
    network.patch_embed.proj.register_forward_hook(lambda *call: seen.append(call[2]))  # type: ignore[union-attr]
    network.eval()(torch.rand(1, 3, 32, 32, device="meta"))
    assert seen[0].shape == (1, 384, 8, 8)


def test_resnest_keeps_the_image_in_its_stem_and_has_no_relu() -> None:
    network = outline("resnest-152", (3, 32, 32), 10)
    assert "ReLU" not in {type(module).__name__ for module in network.modules()}
    assert network.conv1(torch.rand(1, 3, 32, 32, device="meta")).shape[2:] == (32, 32)  # type: ignore[operator]


def test_layer_norm_of_a_stem_is_over_the_channels() -> None:
    layers = conv_stem._layers(3, (4, 8), (2, 1))
    features = torch.randn(2, 4, 5, 5)
    expected = (features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(layers[1](features), expected)
    assert nn.Sequential(*layers)(torch.rand(1, 3, 8, 8)).shape == (1, 8, 4, 4)


def test_layer_norms_of_mimir_add_less_than_timms() -> None:
    for name, eps in (("mimir-swin-b", 1e-6), ("timm/swin_base_patch4_window7_224", 1e-5)):
        norms = [each for each in outline(name, (3, 224, 224), 10).modules() if isinstance(each, nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {eps}


def test_a_swin_transformer_is_read_by_the_names_of_its_authors() -> None:
    network = outline("timm/swin_base_patch4_window7_224", (3, 224, 224), 10)
    theirs = {}
    for name, tensor in network.state_dict().items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        theirs[name.replace("head.fc.", "head.")] = tensor
    theirs |= {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.3.blocks.0.attn.relative_position_index": torch.zeros(1),
    }
    assert theirs.keys() & {"layers.0.downsample.reduction.weight", "head.weight"}
    assert compare(with_names_of(network, theirs), network).whole
    assert compare(with_names_of(network, network.state_dict()), network).whole


def test_an_activation_is_the_named_one() -> None:
    images = torch.rand(1, 1, 8, 8)
    network = DMWideResNet(10, 1, channels=1, classes=3, activation=F.relu).eval()
    seen: list[Tensor] = []
    network.logits.register_forward_pre_hook(lambda *call: seen.append(call[1][0]))
    network(images)
    assert seen[0].min() >= 0


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (1, 64, 64)), ("vit_b_16", (3, 96, 96)), ("squeezenet1_1", (3, 64, 64))]
)
def test_a_classifier_of_torchvisions_takes_the_images_and_classes_of_a_user(
    name: str, shape: tuple[int, int, int]
) -> None:
    network = outline(f"torchvision/{name}", shape, 5)
    assert network.eval()(torch.rand(2, *shape, device="meta")).shape == (2, 5)


def test_an_unknown_name_of_torchvision_is_answered_with_a_guess() -> None:
    for name in ("resnet_18", "fasterrcnn_resnet50_fpn"):
        with pytest.raises(BadInput, match=f"torchvision has no classifier '{name}'") as caught:
            build(Blueprint(f"torchvision/{name}", (3, 64, 64), 5))
    assert "torchvision.models.list_models() lists all" in caught.value.hint


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet"])
def test_images_too_small_for_a_network_of_torchvisions_are_refused(name: str) -> None:
    with pytest.raises(DoesNotFit, match=f"torchvision/{name} cannot"):
        build(Blueprint(f"torchvision/{name}", (3, 7, 7), 5))
