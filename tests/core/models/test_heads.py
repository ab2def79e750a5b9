"""The head of a classifier: found in every family, replaced from the seed, and refused where it is none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.models import Blueprint, build
from core.models.heads import find_head, renew_head
from core.schema.catalog import ARCHITECTURES
from core.schema.errors import DoesNotFit

_RGB = (3, 32, 32)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("deit-s", "xcit-s12")])
def test_the_head_of_every_network_is_the_layer_that_class_counts_change(name: str) -> None:
    shape = ARCHITECTURES[name].shape or _RGB
    with torch.device("meta"):
        ten, eleven = (build(Blueprint(name, shape, classes)) for classes in (10, 11))
        (head,) = find_head(ten, shape)
    sizes = {key: tensor.shape for key, tensor in eleven.state_dict().items()}
    changed = {key for key, tensor in ten.state_dict().items() if tensor.shape != sizes[key]}
    assert changed == {f"{head}.weight", f"{head}.bias"}


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext", "timm/test_resnet"])
def test_a_network_of_timm_tells_its_head_and_draws_it_anew(name: str) -> None:
    shape = (3, 64, 64)
    model = build(Blueprint(name, shape, 10, mean=(0.5,) * 3, std=(0.25,) * 3))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    renew_head(model, shape, 4, seed=0, name=name)
    (head,) = find_head(model, shape)
    assert model.eval()(torch.rand(2, *shape)).shape == (2, 4)
    after = model.state_dict()
    assert (
        after.keys()
        == before.keys()
        == build(Blueprint(name, shape, 4, mean=(0.5,) * 3, std=(0.25,) * 3)).state_dict().keys()
    )
    assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith(head))


class _Grouped(nn.Module):
    """A class of the user's own: GroupNorm inside, LayerNorm before its head."""

    def __init__(self, classes: int, last: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout(0.5))
        self.norm = nn.LayerNorm(8)
        self.aside = nn.Linear(8, classes)
        self.head = nn.Linear(8, classes, bias=False)
        self.last = last

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.norm(self.features(images).mean((2, 3)))
        return self.last(self.head(pooled + self.aside(pooled).mean()))


def test_a_new_head_comes_from_the_seed_and_leaves_all_else_as_it_was() -> None:
    torch.manual_seed(0)
    models = [_Grouped(3) for _ in range(3)]
    kept = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    for model, seed in zip(models, (1, 1, 2), strict=True):
        renew_head(model, (1, 6, 6), 5, seed=seed, name="_Grouped")
    assert torch.equal(torch.rand(4), expected)
    one, two, other = (model.head.weight for model in models)
    assert one.shape == (5, 8)
    assert models[0].head.bias is None
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    for model, before in zip(models, kept, strict=True):
        assert all(
            torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items() if key != "head.weight"
        )
        assert all(module.training for module in model.modules())


def test_logits_that_are_a_copy_of_the_last_layers_output_are_recognised() -> None:
    assert find_head(_Grouped(3, lambda logits: logits.clone()), (1, 6, 6)) == ("head",)


@pytest.mark.parametrize(
    "model",
    [
        _Grouped(3, lambda logits: 2 * logits),
        nn.Sequential(nn.Conv2d(1, 4, 6), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.LogSoftmax(1)),
    ],
)
def test_a_network_without_a_recognisable_head_is_refused(model: nn.Module) -> None:
    assert find_head(model, (1, 6, 6)) == ()
    with pytest.raises(DoesNotFit, match="no head was recognised in mine") as caught:
        renew_head(model, (1, 6, 6), 5, seed=0, name="mine")
    assert (caught.value.field, "nn.Linear" in caught.value.hint) == ("head", True)


class _Counted(_Grouped):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if logits.shape[1] == 3 else torch.cat([logits, logits], 1)


def test_a_head_that_alone_does_not_decide_the_number_of_logits_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="answers with 10 logits after its last layer"):
        renew_head(_Counted(3), (1, 6, 6), 5, seed=0, name="mine")
