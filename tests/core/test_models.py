"""Networks: what they take, what they give, and that normalisation is theirs."""

import pytest
import torch

from core.catalog import ARCHITECTURES
from core.errors import BadInput, DoesNotFit
from core.models import Blueprint, build


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_of_the_catalogue_gives_logits(name: str) -> None:
    shape = ARCHITECTURES[name].shape or (3, 32, 32)
    model = build(Blueprint(name, shape, 7)).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["preact-resnet-18", "preact-resnet-18-softplus"])
def test_preact_resnet_18_has_the_parameters_of_the_paper(name: str) -> None:
    model = build(Blueprint(name, (3, 32, 32), 10))
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_172_170


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
