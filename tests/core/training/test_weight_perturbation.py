"""Adversarial weight perturbation against its closed form; the weights are restored to the bit."""

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.split import Split
from core.data.training_set import TrainingSet
from core.schema.events import Stepped
from core.schema.spec import FineTuneSpec, parse
from core.signals import StopRequests
from core.training.distributed import ProcessGroup
from core.training.trainer import Trainer
from core.training.weight_perturbation import perturbed, unchanged_buffers

_ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def _spec(**change: object) -> FineTuneSpec:
    body = {
        "base_model": "digits-cnn-linf",
        "batch_size": 40,
        "method": "nat",
        "schedule": "constant",
        "learning_rate": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "awp": {"strength": 0.2},
        **change,
    }
    spec = parse(body)
    assert isinstance(spec, FineTuneSpec)
    return spec


def _linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def _steps(spec: FineTuneSpec, model: nn.Module, train: Split, count: int = 1) -> list[Stepped]:
    trainer = Trainer(spec, model, TrainingSet(train), _ALONE)
    events = [event for _ in range(count) for event in trainer.take_step(StopRequests())]
    return [event for event in events if isinstance(event, Stepped)]


@pytest.fixture
def few(digits) -> Split:  # type: ignore[no-untyped-def]
    """Forty training digits."""
    return digits.train.first(40)


def test_weights_move_along_the_gradient_by_a_share_of_their_length_and_back() -> None:
    """The loss |w - a|^2 / 2 has the gradient w - a, so the perturbation is s |w| (w - a) / |w - a|."""
    model = nn.Linear(3, 2)
    weights = torch.tensor([[3.0, 0.0, 1.0], [0.1, -2.0, 0.7]])
    target = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, -1.0]])
    with torch.no_grad():
        model.weight.copy_(weights)
    bias = model.bias.detach().clone()
    model.weight.grad, model.bias.grad = weights - target, torch.ones(2)
    with perturbed(model, 0.1):
        expected = weights + 0.1 * weights.norm() * (weights - target) / (weights - target).norm()
        torch.testing.assert_close(model.weight.detach(), expected)
        assert torch.equal(model.bias, bias)
        model.zero_grad()
    assert torch.equal(model.weight, weights)


def test_weights_come_back_where_the_block_fails_and_stay_where_the_gradient_is_zero() -> None:
    model = _linear()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with suppress(MemoryError), perturbed(model, 0.5):
        assert not torch.equal(model[1].weight, before[0])  # type: ignore[index]
        raise MemoryError
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with perturbed(model, 0.5):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def _step_by_hand(model: nn.Module, images: Tensor, labels: Tensor, *, strength: float, rate: float) -> list[Tensor]:
    """Compute the weight and the bias of a linear model after a step with AWP."""
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in model.parameters())
    (gradient,) = torch.autograd.grad(F.cross_entropy(F.linear(images, weight, bias), labels), [weight])
    moved = (weight + strength * weight.norm() * gradient / gradient.norm()).detach().requires_grad_()
    gradients = torch.autograd.grad(F.cross_entropy(F.linear(images, moved, bias), labels), [moved, bias])
    return [(old - rate * step).detach() for old, step in zip((weight, bias), gradients, strict=True)]


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_takes_the_gradient_at_the_perturbed_weights(few: Split, micro_batches: int) -> None:
    model = _linear()
    loss = F.cross_entropy(model(few.images()), few.labels).item()
    expected = _step_by_hand(model, few.images().flatten(1), few.labels, strength=0.2, rate=0.1)
    (step,) = _steps(_spec(accumulate=micro_batches), model, few)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
    assert step.loss == pytest.approx(loss, rel=1e-9), "the loss told is that of the weights themselves"


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("method", ["e-at", "ramp", "avg", "max", "msd"])
def test_the_perturbed_step_is_on_the_same_attacked_images_in_micro_batches_too(few: Split, method: str) -> None:
    models = [_linear(), _linear()]
    for model, micro_batches in zip(models, (1, 4), strict=True):
        _steps(_spec(method={"name": method, "steps": 2}, accumulate=micro_batches, batch_size=20), model, few, 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_nothing_is_perturbed_before_the_epoch_that_begins_it(few: Split) -> None:
    plain, later = _linear(), _linear()
    losses = [
        [step.loss for step in _steps(_spec(awp=awp, batch_size=20), model, few, 4)]
        for model, awp in ((plain, None), (later, {"strength": 0.2, "start_epoch": 1}))
    ]
    # Two steps are an epoch; the third step still reports the loss of equal weights.
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3] != losses[1][3]


def test_running_statistics_are_updated_once_and_at_the_perturbed_weights(few: Split) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    kernel, bias = (tensor.detach().clone() for tensor in (model[0].weight, model[0].bias))
    copies = nn.Sequential(*model).train()
    with unchanged_buffers(copies):
        F.cross_entropy(copies(few.images()), few.labels).backward()
    gradient = model[0].weight.grad
    assert gradient is not None
    moved = kernel + 0.2 * kernel.norm() * gradient / gradient.norm()
    assert model[1].num_batches_tracked == 0
    _steps(_spec(), model, few)
    mean = F.conv2d(few.images(), moved, bias).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, 0.1 * mean, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == 1
