"""The average of the weights against its closed form, and the statistics of batch norm that belong to it."""

import copy
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from core.data.split import Split
from core.data.training_set import TrainingSet
from core.schema.recipe import STATISTICS_IMAGES
from core.schema.spec import FineTuneSpec, parse
from core.signals import StopRequests
from core.training.averaging import WeightAverage, estimate_statistics
from core.training.distributed import ProcessGroup
from core.training.trainer import Trainer

_ALONE = ProcessGroup(0, 1, torch.device("cpu"))


class _Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(100.0, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(1))


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def _images(seed: int, batches: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(batches)]


def _spec(**change: object) -> FineTuneSpec:
    body = {"base_model": "digits-cnn-linf", "batch_size": 8, "method": "nat", "schedule": "constant", **change}
    spec = parse(body)
    assert isinstance(spec, FineTuneSpec)
    return spec


def _trained(spec: FineTuneSpec, train: Split, steps: int) -> Trainer:
    trainer = Trainer(spec, _network().train(), TrainingSet(train), _ALONE)
    for _ in range(steps):
        list(trainer.take_step(StopRequests()))
    return trainer


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_weighted_mean_of_all_steps(decay: float) -> None:
    model = _Scalar()
    average = WeightAverage(model, decay)
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    for step, value in enumerate(values, 1):
        model.weight.data.fill_(value)
        average.update(step)
        shares = [decay ** (step - k) for k in range(1, step + 1)]
        expected = sum(share * value for share, value in zip(shares, values[:step], strict=True)) / sum(shares)
        assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-9)


def test_other_buffers_are_those_of_the_trained_model() -> None:
    model = _Scalar()
    average = WeightAverage(model, 0.9)
    model.offset.fill_(7)
    assert average.model([]).offset.item() == 7


def test_statistics_are_estimated_as_torch_estimates_them_without_a_draw() -> None:
    own, theirs = _network(), _network()
    theirs[2].p = 0.0
    own[1].momentum = theirs[1].momentum = 0.3
    images = _images(0, 5)
    state = torch.get_rng_state()
    estimate_statistics(own, images)
    update_bn(images, theirs)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(own[1].running_mean, theirs[1].running_mean)
    assert torch.equal(own[1].running_var, theirs[1].running_var)
    assert own[1].momentum == 0.3
    assert not any(module.training for module in own.modules())


def test_a_network_without_batch_norm_reads_no_images() -> None:
    images = count()
    estimate_statistics(nn.Linear(2, 2), images)  # type: ignore[arg-type]
    assert next(images) == 0


def test_an_average_changes_no_step_of_the_training(digits) -> None:  # type: ignore[no-untyped-def]
    few = digits.train.first(40)
    plain, averaged = (_trained(_spec(average=average), few, 4) for average in (None, {"decay": 0.9}))
    averaged.averaged_model()
    for trainer in (plain, averaged):
        list(trainer.take_step(StopRequests()))
    one, other = (trainer.state_dict().tensors for trainer in (plain, averaged))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {name.partition("/")[0] for name in other.keys() - one.keys()} == {"average"}


def test_the_averaged_model_is_the_same_each_time_and_has_statistics_of_its_own(
    digits,  # type: ignore[no-untyped-def]
) -> None:
    few = digits.train.first(40)
    trainer = _trained(_spec(average={"decay": 0.9}, learning_rate=0.1), few, 4)
    first = copy.deepcopy(trainer.averaged_model().state_dict())
    again = trainer.averaged_model()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.items())
    assert not again.training
    # All images are seen, so their order changes only the rounding.
    convolved = again[0](few.images())  # type: ignore[index]
    torch.testing.assert_close(again[1].running_mean, convolved.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)  # type: ignore[index]
    assert not torch.allclose(again[1].running_mean, trainer.model[1].running_mean, atol=1e-3)  # type: ignore[index]


def test_statistics_are_estimated_on_a_bounded_number_of_images(digits, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    few = digits.train.first(40)
    trainer = _trained(_spec(average={"decay": 0.9}), few, 1)
    assert STATISTICS_IMAGES == 2048
    monkeypatch.setattr("core.training.trainer.STATISTICS_IMAGES", 17)
    monkeypatch.setattr("core.training.trainer._STATISTICS_BATCH", 8)
    seen = []
    trainer._average._average.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    trainer.averaged_model()
    assert seen == [8, 8]
