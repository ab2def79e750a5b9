"""Folded batch norm: the same function, and never a wrong one."""

import pytest
import torch
from torch import Tensor, nn

from core.models import Blueprint, build
from core.models.folding import Twin, folded
from core.models.precision import Bfloat16


@pytest.mark.parametrize(
    ("architecture", "shape", "left"),
    [("digits-cnn", (1, 8, 8), 0), ("preact-resnet-8", (3, 16, 16), 3), ("preact-resnet-18", (3, 16, 16), 9)],
)
def test_the_copy_gives_the_same_logits_with_fewer_batch_norms(
    architecture: str, shape: tuple[int, int, int], left: int
) -> None:
    torch.manual_seed(0)
    model = build(Blueprint(architecture, shape, 10, mean=(0.4,) * shape[0], std=(0.2,) * shape[0]))
    images = torch.rand(16, *shape)
    model.train()(images)
    model.eval()
    copy = folded(model, images[:4])
    assert copy is not model
    assert sum(isinstance(module, nn.BatchNorm2d) for module in copy.modules()) == left
    with torch.no_grad():
        torch.testing.assert_close(copy(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_network_that_computes_in_bfloat16_is_folded_inside_and_computes_so() -> None:
    torch.manual_seed(0)
    network = build(Blueprint("preact-resnet-8", (3, 16, 16), 10))
    images = torch.rand(16, 3, 16, 16)
    network.train()(images)
    model = Bfloat16(network).eval()
    double = Twin(model).of(model, images)
    assert isinstance(double, Bfloat16)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in double.modules()) == 3
    with torch.no_grad():
        exact, rounded, found = network(images), model(images), double(images)
    scale = exact.abs().max()
    assert 0 < (found - exact).abs().max() <= 0.03 * scale
    assert (rounded - exact).abs().max() <= 0.03 * scale


class _Deciding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)
        return logits if logits.sum() > 0 else -logits


def test_a_model_without_one_graph_is_left_as_it_is() -> None:
    model = _Deciding().eval()
    assert folded(model, torch.rand(2, 1, 2, 2)) is model


class _Mistaken(nn.Module):
    """Reads the number of images in a way that a graph cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * float(torch.rand(()))


def test_a_graph_that_gives_other_logits_is_not_used() -> None:
    torch.manual_seed(0)
    model = _Mistaken().eval()
    assert folded(model, torch.rand(2, 1, 2, 2)) is model


def test_a_twin_follows_the_model_through_training_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    model = build(Blueprint("preact-resnet-8", (3, 16, 16), 10)).eval()
    images = torch.rand(16, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = Twin(model)
    first = twin.of(model, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    model(images).square().mean().backward()
    optimizer.step()
    model.eval()
    again = twin.of(model, images)
    assert again is first
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_model_in_which_nothing_folds_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    assert folded(model, torch.rand(2, 1, 2, 2)) is model
