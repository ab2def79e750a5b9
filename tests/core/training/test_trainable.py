"""Which part of a model trains: frozen layers, a linear probe, a rate of the head's own."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.data.split import Split
from core.data.training_set import TrainingSet
from core.schema.errors import BadInput
from core.schema.events import Stepped
from core.schema.spec import FineTuneSpec, parse
from core.signals import StopRequests
from core.training.distributed import ProcessGroup
from core.training.run import fine_tune
from core.training.trainer import Trainer

_ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def _spec(**change: object) -> FineTuneSpec:
    body = {
        "base_model": "digits-cnn-linf",
        "batch_size": 20,
        "method": {"name": "e-at", "steps": 1},
        "schedule": "constant",
        "momentum": 0,
        "weight_decay": 0,
        **change,
    }
    spec = parse(body)
    assert isinstance(spec, FineTuneSpec)
    return spec


def _trained(model: nn.Module, digits: Split, steps: int, **change: object) -> tuple[dict[str, Tensor], list[Stepped]]:
    """Take steps; return what changed of the state dict, by how much, and the steps."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(_spec(**change), model, TrainingSet(digits), _ALONE)
    trainer.start()
    told = [event for _ in range(steps) for event in trainer.take_step(StopRequests()) if isinstance(event, Stepped)]
    changed = {name: tensor - before[name] for name, tensor in model.state_dict().items()}
    return {name: change for name, change in changed.items() if change.any()}, told


@pytest.fixture
def few(digits) -> Split:  # type: ignore[no-untyped-def]
    """Forty training digits: two batches of twenty."""
    return digits.train.first(40)


def test_frozen_layers_and_their_statistics_stay(base: nn.Module, few: Split) -> None:
    names = [name for name, _ in base.named_parameters()]
    first = names[0].rpartition(".")[0].rpartition(".")[0]
    changed, _ = _trained(base, few, 2, freeze=[f"{first}*"])
    stayed = set(base.state_dict()) - set(changed)
    assert stayed == {name for name in base.state_dict() if name.startswith(first)}
    assert any(name.endswith("running_mean") for name in stayed)
    assert any(name.endswith("running_mean") for name in changed)


def test_in_a_linear_probe_the_head_alone_trains(base: nn.Module, few: Split) -> None:
    changed, told = _trained(base, few, 2, linear_probe_epochs=1, head_learning_rate=0.5, epochs=2)
    assert set(changed) == {"classifier.weight", "classifier.bias"}
    assert [(step.learning_rate, step.total_steps) for step in told] == [(0.5, 6)] * 2


def test_after_the_probe_the_whole_network_trains(base: nn.Module, few: Split) -> None:
    changed, told = _trained(base, few, 3, linear_probe_epochs=1, epochs=2, learning_rate=0.01)
    assert set(changed) == set(base.state_dict())
    assert [step.learning_rate for step in told] == [0.01] * 3


def test_the_schedule_begins_after_the_probe(base: nn.Module, few: Split) -> None:
    probed = _trained(base, few, 8, linear_probe_epochs=1, epochs=3, schedule="piecewise", learning_rate=0.01)[1]
    plain = _trained(base, few, 6, epochs=3, schedule="piecewise", learning_rate=0.01)[1]
    assert [step.learning_rate for step in probed][2:] == [step.learning_rate for step in plain]


def test_the_head_follows_the_schedule_at_a_rate_of_its_own(few: Split) -> None:
    def step(**change: object) -> dict[str, Tensor]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.Linear(16, 10, bias=False))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
        return _trained(model, few, 1, method="nat", learning_rate=0.25, **change)[0]

    plain, apart = step(), step(head_learning_rate=1.0)
    # Of one step of SGD, the change is the rate times the gradient; both rates are powers of two.
    torch.testing.assert_close(apart["2.weight"], 4 * plain["2.weight"], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(apart["1.weight"], plain["1.weight"], rtol=0, atol=0)


def test_a_parameter_that_needs_no_gradient_does_not_train(base: nn.Module, few: Split) -> None:
    base.classifier.weight.requires_grad_(False)
    changed, _ = _trained(base, few, 1)
    assert "classifier.weight" not in changed
    assert "classifier.bias" in changed


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return 3 * self.fc(images.flatten(1))


@pytest.mark.parametrize(
    ("change", "message", "field"),
    [
        ({"freeze": ["layer9.*"]}, "'layer9.*' matches no parameter", "freeze"),
        ({"freeze": ["*"]}, "no parameter of the model is left to train", "freeze"),
        ({"freeze": ["classifier*"], "linear_probe_epochs": 1}, "head of the network is frozen", "linear_probe_epochs"),
        ({"freeze": ["classifier*"], "head_learning_rate": 0.1}, "head of the network is frozen", "head_learning_rate"),
    ],
)
def test_a_choice_that_trains_nothing_is_refused(
    change: dict[str, object], message: str, field: str, base: nn.Module, few: Split
) -> None:
    with pytest.raises(BadInput, match=message.replace("*", r"\*")) as caught:
        Trainer(_spec(**change), base, TrainingSet(few), _ALONE)
    assert caught.value.field == field
    assert caught.value.hint


def test_options_of_a_head_that_is_not_recognised_are_refused(few: Split) -> None:
    with pytest.raises(BadInput, match="linear_probe_epochs is about the head") as caught:
        Trainer(_spec(linear_probe_epochs=1), _Scaled(), TrainingSet(few), _ALONE)
    assert caught.value.field == "linear_probe_epochs"


_RUN = {
    "train_examples": 60,
    "held_out": 10,
    "batch_size": 25,
    "epochs": 1,
    "linear_probe_epochs": 1,
    "head": "new",
    "head_learning_rate": 0.1,
    "freeze": ["features.0*"],
    "momentum": 0.9,
    "evaluation": {"protocol": "fast", "examples": 4},
    "save_minutes": 0.0,
}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_with_all_of_it_resumes_to_the_same_bits(steps: int, base: nn.Module, tmp_path: Path) -> None:
    spec = _spec(**{**_RUN, "freeze": [f"{next(base.named_parameters())[0]}"]})
    whole = list(fine_tune(spec, tmp_path / "whole"))
    run = fine_tune(spec, tmp_path / "cut")
    list(islice((event for event in run if event.type == "stepped"), steps))
    run.close()  # type: ignore[attr-defined]
    rest = list(fine_tune(spec, tmp_path / "cut"))
    assert whole[-1].type == rest[-1].type == "finished"
    one, two = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "cut"))
    assert _tensors(one) == _tensors(two)


def _tensors(content: bytes) -> bytes:
    return content[8 + int.from_bytes(content[:8], "little") :]
