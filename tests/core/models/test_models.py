"""Networks: what they take, what they give, and that normalisation is theirs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from core.models import Blueprint, build, dm_wide_resnet, wide_resnet
from core.models.dm_wide_resnet import DMWideResNet
from core.schema.catalog import ARCHITECTURES, find_architecture
from core.schema.errors import BadInput, DoesNotFit


def outline(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network without its numbers, which costs nothing."""
    with torch.device("meta"):
        return build(Blueprint(name, shape, classes)).eval()


@pytest.mark.parametrize("name", [*ARCHITECTURES, "timm/test_resnet", "timm/test_vit"])
def test_every_architecture_of_the_catalogue_gives_logits(name: str) -> None:
    entry = find_architecture(name)
    assert entry is not None
    shape = entry.shape or ((3, 64, 64) if "imagenet" in name or "timm" in name else (3, 32, 32))
    assert outline(name, shape, 7)(torch.rand(2, *shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("preact-resnet-18", (3, 32, 32), 10, 11_172_170),
        ("preact-resnet-18-softplus", (3, 32, 32), 10, 11_172_170),
        ("resnet-18", (3, 32, 32), 10, 11_173_962),
        ("resnet-50", (3, 32, 32), 10, 23_520_842),
        ("wide-resnet-28-10", (3, 32, 32), 10, 36_479_194),
        ("wide-resnet-34-10", (3, 32, 32), 10, 46_160_474),
        ("wide-resnet-34-20", (3, 32, 32), 10, 184_531_674),
        ("wide-resnet-70-16", (3, 32, 32), 10, 266_796_506),
        ("dm-wide-resnet-28-10", (3, 32, 32), 10, 36_479_194),
        ("dm-wide-resnet-70-16", (3, 32, 32), 10, 266_796_506),
        ("imagenet-resnet-50", (3, 224, 224), 1000, 25_557_032),
        ("imagenet-resnet-50-gelu", (3, 224, 224), 1000, 25_557_032),
        ("deit-s", (3, 224, 224), 1000, 22_050_664),
        ("xcit-s12", (3, 224, 224), 1000, 26_253_304),
        ("torchvision/resnet18", (3, 224, 224), 1000, 11_689_512),
        ("torchvision/wide_resnet50_2", (3, 224, 224), 1000, 68_883_240),
        ("timm/convnext_base", (3, 224, 224), 1000, 88_591_464),
        ("dm-wide-resnet-106-16", (3, 32, 32), 10, 415_475_162),
    ],
)
def test_network_has_the_parameters_of_the_literature(
    name: str, shape: tuple[int, int, int], classes: int, parameters: int
) -> None:
    assert sum(parameter.numel() for parameter in outline(name, shape, classes).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("preact-resnet-18", "conv1.weight layer1.0.bn1.weight layer2.0.shortcut.0.weight bn.bias linear.bias"),
        ("resnet-50", "bn1.weight layer1.0.conv3.weight layer1.0.shortcut.1.running_var linear.weight"),
        (
            "wide-resnet-28-10",
            "conv1.weight block1.layer.0.convShortcut.weight block3.layer.3.bn2.bias bn1.bias fc.bias",
        ),
        (
            "dm-wide-resnet-28-10",
            "init_conv.weight layer.0.block.0.shortcut.weight layer.2.block.3.conv_1.weight "
            "layer.1.block.0.batchnorm_0.running_mean batchnorm.weight logits.bias",
        ),
        ("imagenet-resnet-50-gelu", "conv1.weight layer1.0.downsample.1.running_var layer4.2.bn3.bias fc.weight"),
        ("deit-s", "cls_token pos_embed patch_embed.proj.weight blocks.11.attn.qkv.bias norm.weight head.weight"),
        ("xcit-s12", "patch_embed.proj.0.0.weight blocks.11.gamma3 cls_attn_blocks.1.attn.q.weight head.bias"),
    ],
)
def test_parameters_are_named_as_in_the_fields_checkpoints(name: str, parameters: str) -> None:
    shape = find_architecture(name).shape or (3, 64, 64)  # type: ignore[union-attr]
    assert set(parameters.split()) <= outline(name, shape, 10).state_dict().keys()


def test_resnet_18_computes_what_torchvision_computes_with_a_small_stem() -> None:
    network = build(Blueprint("resnet-18", (3, 32, 32), 10)).eval()
    peer = resnet18(num_classes=10).eval()
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor
        for name, tensor in peer.state_dict().items()
    }
    network.load_state_dict(renamed)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network(images), peer(images))


@pytest.mark.parametrize(
    ("block", "first", "activation", "offset"),
    [(dm_wide_resnet.Block, "conv_0", F.silu, 1), (wide_resnet.Block, "conv1", F.relu, 0)],
)
def test_halving_pads_below_and_right_in_the_silu_family_and_all_round_in_the_other(
    block: type[nn.Module], first: str, activation: Callable[[Tensor], Tensor], offset: int
) -> None:
    network = block(1, 2, 2).eval()
    convolution = getattr(network, first)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[:, :, 1, 1] = 1  # passes on the pixel at its centre
    seen: list[Tensor] = []
    convolution.register_forward_hook(lambda *call: seen.append(call[2]))
    image = torch.rand(1, 1, 4, 4)
    network(image)
    expected = activation(image)[:, :, offset::2, offset::2].expand(1, 2, 2, 2)
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)


def test_silu_family_pads_with_black_before_it_normalises() -> None:
    network = DMWideResNet(10, 1, channels=1, classes=10, mean=(0.3,), std=(0.2,)).eval()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(network(images), network(F.pad(images, (2, 2, 2, 2))))


def test_gelu_takes_the_place_of_every_relu() -> None:
    inside = [type(module).__name__ for module in outline("imagenet-resnet-50-gelu", (3, 64, 64), 10).modules()]
    assert "ReLU" not in inside
    assert inside.count("GELU") == 17


def test_timm_network_is_built_for_the_size_of_the_images() -> None:
    network = outline("timm/test_vit", (3, 96, 96), 5)
    assert network(torch.rand(1, 3, 96, 96, device="meta")).shape == (1, 5)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "inception_v3"])
def test_images_too_small_for_a_network_of_timms_are_refused(name: str) -> None:
    with pytest.raises(DoesNotFit, match=f"timm/{name} cannot take images of 1 x 8 x 8") as caught:
        build(Blueprint(f"timm/{name}", (1, 8, 8), 10))
    assert "images larger" in caught.value.hint


@pytest.mark.parametrize("name", ["timm/test_resnet", "preact-resnet-18"])
def test_a_network_is_tried_out_without_a_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for tried_out in (True, False):
        if not tried_out:
            monkeypatch.setattr("core.models._try_out", lambda *_: None)
        torch.manual_seed(0)
        network = build(Blueprint(name, (3, 32, 32), 10))
        assert network.training
        states.append({**network.state_dict(), "random": torch.get_rng_state()})
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_network_that_needs_numbers_to_be_tried_out_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not bool(images.any()), "black, and not an outline"
            return images.flatten(1)[:, :2]

    monkeypatch.setattr("core.models._network", lambda _: Looking())
    assert isinstance(build(Blueprint("resnet-18", (3, 32, 32), 2)), Looking)
    monkeypatch.setattr("core.models._network", lambda _: nn.Linear(5, 2))
    with pytest.raises(DoesNotFit, match="cannot be multiplied"):
        build(Blueprint("resnet-18", (3, 32, 32), 2))


def test_an_unknown_name_of_timm_is_answered_with_a_guess() -> None:
    with pytest.raises(BadInput) as caught:
        build(Blueprint("timm/convnext_ato", (3, 32, 32), 10))
    assert "timm/convnext_atto" in caught.value.hint


def test_a_single_class_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="at least 2 classes"):
        build(Blueprint("digits-cnn", (1, 8, 8), 1))


def test_softplus_makes_the_network_smooth_and_relu_does_not() -> None:
    for name, smooth in (("preact-resnet-18", False), ("preact-resnet-18-softplus", True)):
        model = build(Blueprint(name, (3, 32, 32), 10))
        inside = {type(module).__name__ for module in model.modules()}
        assert ("Softplus" in inside) is smooth


def test_normalisation_happens_inside() -> None:
    plain = Blueprint("digits-cnn", (1, 8, 8), 10)
    normalised = Blueprint("digits-cnn", (1, 8, 8), 10, mean=(0.5,), std=(0.25,))
    inner, outer = build(plain).eval(), build(normalised).eval()
    outer.network.load_state_dict(inner.state_dict())
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(outer(images), inner((images - 0.5) / 0.25))


def test_an_image_size_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="1 x 8 x 8"):
        build(Blueprint("digits-cnn", (3, 32, 32), 10))


def test_an_unknown_architecture_is_answered_with_a_guess() -> None:
    with pytest.raises(BadInput) as caught:
        build(Blueprint("preact-resnet18", (3, 32, 32), 10))
    assert "did you mean 'preact-resnet-18'?" in caught.value.hint
