"""Folded batch norm: the same function, and never a wrong one."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.fx
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


class _Careless(nn.Module):
    """A network that folds, with code in it that does not expect to be traced."""

    def __init__(self, code: Callable[["_Careless", Tensor], object]) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.code = code
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[object] = []
        self.last: object = None
        self.lock = None

    def forward(self, images: Tensor) -> Tensor:
        self.code(self, images)
        return self.norm(self.convolution(images)).flatten(1)


def _fail(error: type[Exception]) -> Callable[[_Careless, Tensor], object]:
    def code(_: _Careless, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise error("not while it is traced")

    return code


def _keep(model: _Careless, images: Tensor) -> None:
    model.last = images
    model.seen.append(images)
    model.calls += 1


def _attributes(model: _Careless) -> tuple[object, ...]:
    return model.last, list(model.seen), model.calls.clone(), set(dict(model.named_buffers())), set(vars(model))


@pytest.mark.parametrize("error", [NameError, AssertionError, KeyError, ZeroDivisionError, NotImplementedError])
def test_whatever_tracing_raises_the_model_itself_is_used(error: type[Exception]) -> None:
    model = _Careless(_fail(error)).eval()
    assert folded(model, torch.rand(2, 1, 5, 5)) is model


def test_tracing_leaves_nothing_behind_in_the_model() -> None:
    model = _Careless(_keep).eval()
    before = _attributes(model)
    images = torch.rand(2, 1, 5, 5)
    copy = folded(model, images)
    # The one real call, to compare with.
    assert isinstance(model.last, Tensor)
    assert torch.equal(model.last, images)
    assert len(model.seen) == 1
    assert model.calls.tolist() == [1]
    assert _attributes(model)[3:] == before[3:]
    assert all(not isinstance(value, torch.fx.Proxy) for value in (*vars(model).values(), *model.seen))
    with torch.no_grad():
        torch.testing.assert_close(copy(images), model(images))


def test_constants_of_the_code_are_no_attributes_of_the_model_afterwards() -> None:
    class Scaled(_Careless):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.tensor([2.0])

    model = Scaled(lambda *_: None).eval()
    before = set(vars(model))
    images = torch.rand(2, 1, 5, 5)
    copy = folded(model, images)
    assert copy is not model
    assert set(vars(model)) == before
    with torch.no_grad():
        torch.testing.assert_close(copy(images), model(images))


def test_a_model_that_cannot_be_copied_is_left_as_it_is() -> None:
    model = _Careless(lambda *_: None).eval()
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert folded(model, torch.rand(2, 1, 5, 5)) is model


def test_hooks_inside_a_model_are_never_called_with_stand_ins() -> None:
    seen: list[object] = []
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Flatten()).eval()
    model[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    assert folded(model, torch.rand(2, 1, 5, 5)) is model
    model[0]._forward_hooks.clear()
    model[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    assert folded(model, torch.rand(2, 1, 5, 5)) is model
    assert seen == []


def test_tracing_needs_no_memory_for_a_second_set_of_parameters() -> None:
    model = build(Blueprint("preact-resnet-8", (3, 16, 16), 10)).eval()
    copy = folded(model, torch.rand(2, 3, 16, 16))
    own = {id(parameter) for parameter in model.parameters()}
    others = [name for name, module in copy.named_modules() if not isinstance(module, nn.Conv2d)]
    assert all(id(each) in own for name in others for each in copy.get_submodule(name).parameters(recurse=False))


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
