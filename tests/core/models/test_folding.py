"""Folded batch norm: the same function, and never a wrong one."""

import pytest
import torch
from torch import Tensor, nn

from core.models import Blueprint, build
from core.models.folding import folded


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
