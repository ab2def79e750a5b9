"""A network of the user's own is fine-tuned on tensors of the user's own: the whole story, and what is refused."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core import checkpoint
from core.data import Dataset
from core.data.tensors import from_tensors
from core.evaluation import evaluate
from core.inputs import Inputs
from core.schema.errors import BadInput, BadWeights, DoesNotFit
from core.schema.events import Evaluated, Event, Finished, Resumed, Started
from core.schema.spec import AnySpec, FineTuneSpec, parse
from core.training import fine_tune
from core.training.methods import _METHODS

EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.5}
_SPEC = {
    "base_model": "my-net",
    "dataset": "my-digits",
    "eps": EPS,
    "epochs": 2,
    "batch_size": 35,
    "held_out": 10,
    "learning_rate": 0.05,
    "method": {"name": "e-at", "steps": 2},
    "evaluation": {"protocol": "fast", "examples": 10},
    "save_minutes": 0.0,
}


class Net(nn.Module):
    """A class of the user's own: GroupNorm, dropout and a LayerNorm before its head, and a weight that it has twice."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.drop = nn.Dropout(0.1)
        self.last = nn.LayerNorm(8 * 16)
        self.head = nn.Linear(8 * 16, classes)
        self.again = self.stem

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.max_pool2d(self.norm(self.stem(images)).relu(), 2)
        return self.head(self.last(self.drop(features).flatten(1)))


def _spec(**change: object) -> FineTuneSpec:
    spec = parse({**_SPEC, **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


@pytest.fixture(scope="module")
def points(digits: Dataset) -> tuple[Tensor, Tensor]:
    """A hundred digits."""
    part = digits.train.first(100)
    return part.images(), part.labels


@pytest.fixture(scope="module")
def net(points: tuple[Tensor, Tensor]) -> nn.Module:
    """The user's network, trained naturally for a moment."""
    images, labels = points
    torch.manual_seed(0)
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    net.zero_grad()
    return net.eval()


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _started(events: Iterator[Event]) -> Started:
    event = next(events)
    assert isinstance(event, Started)
    return event


def test_a_class_and_two_tensors_become_a_checkpoint(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    before, modes = _state(net), [module.training for module in net.modules()]
    events = list(fine_tune(_spec(), tmp_path, model=net, data=points))
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert started.architecture == f"own:{__name__}:Net"
    assert (started.train_examples, started.test_examples, started.held_out_examples) == (70, 10, 10)
    assert "test_part_drawn" in [warning.code for warning in finished.reports.warnings]
    # The user's own network is as it was.
    assert _same(_state(net), before)
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())

    given = Net()
    loaded, header = checkpoint.load(tmp_path / "checkpoint.safetensors", model=given)
    assert loaded is given
    assert not loaded.training
    assert loaded.state_dict().keys() == before.keys()
    assert not _same(_state(loaded), before)
    assert (header.blueprint.architecture, header.class_names) == (started.architecture, tuple("0123456789"))
    # The report is that of these weights on the test part that the seed draws.
    test = from_tensors(points, seed=0).test
    assert isinstance(test, type(from_tensors(points).train))
    first = test.read(torch.tensor(_indices(test)))
    report = evaluate(loaded, first.images(), first.labels, EPS, protocol="fast")
    assert finished.reports.after is not None
    assert report.union == finished.reports.after.union
    assert finished.reports.before is not None


def _indices(test: object) -> list[int]:
    from core.data.draws import order_test_points

    return order_test_points(test, "stratified")[:10].tolist()  # type: ignore[arg-type]


def test_a_cut_off_run_of_an_own_class_ends_with_the_same_bits(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(fine_tune(_spec(), whole, model=net, data=points))
    run = fine_tune(_spec(), cut, model=net, data=points)
    list(islice((event for event in run if event.type == "stepped"), 3))
    run.close()  # type: ignore[attr-defined]
    assert any(isinstance(event, Resumed) for event in list(fine_tune(_spec(), cut, model=net, data=points)))
    weights = [_state(checkpoint.load(each / "checkpoint.safetensors", model=Net())[0]) for each in (whole, cut)]
    assert _same(*weights)


def test_other_weights_of_the_class_are_another_run(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    run = fine_tune(_spec(), tmp_path, model=net, data=points)
    list(islice((event for event in run if event.type == "stepped"), 1))
    run.close()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="differs in the base model's weights"):
        list(fine_tune(_spec(), tmp_path, model=Net(), data=points))


def test_a_stopped_run_of_an_own_class_delivers_its_best_weights(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    from core.signals import StopRequests

    requests = StopRequests()
    for event in fine_tune(_spec(), tmp_path, model=net, data=points, requests=requests):
        requests.stop = requests.stop or event.type == "monitored"
    _, header = checkpoint.load(tmp_path / "checkpoint.safetensors", model=Net())
    assert header.stopped_at is not None


@pytest.mark.parametrize("method", _METHODS)
def test_every_method_trains_an_own_class_with_a_new_head(
    method: str, net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, labels = points
    four = labels < 4
    norms = {"norms": ["l1"]} if method == "single" else {}
    spec = _spec(
        head="new",
        linear_probe_epochs=1,
        epochs=1,
        method={"name": method, **({} if method in ("nat", "pat") else {"steps": 1}), **norms},
        evaluation={"protocol": "fast", "examples": 2},
    )
    events = list(fine_tune(spec, tmp_path, model=net, data=(images[four], labels[four])))
    evaluated = [event.subject for event in events if isinstance(event, Evaluated)]
    # The base model has ten classes: it has no answers to compare with.
    assert evaluated == ["result"]
    assert sum(event.type == "monitored" for event in events) == 2
    # A network of ten classes gets a head of four with the weights.
    loaded, header = checkpoint.load(tmp_path / "checkpoint.safetensors", model=Net())
    assert (header.blueprint.classes, header.class_names) == (4, ("0", "1", "2", "3"))
    assert loaded(images[:2]).shape == (2, 4)


def test_training_from_an_own_classes_weights_names_its_class(points: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    body = {name: value for name, value in _SPEC.items() if name != "base_model"}
    spec: AnySpec = parse({**body, "kind": "train", "architecture": f"own:{__name__}:Net", "epochs": 1})
    list(fine_tune(spec, tmp_path, model=Net(), data=points))  # type: ignore[arg-type]
    assert checkpoint.read_header(tmp_path / "checkpoint.safetensors").blueprint.classes == 10


def test_a_checkpoint_of_an_own_class_is_loaded_into_that_class_alone(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    list(fine_tune(_spec(epochs=1), tmp_path, model=net, data=points))
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(BadWeights, match="a class of the user's own") as caught:
        checkpoint.load(path)
    assert "load(path, model=Net())" in caught.value.hint
    with pytest.raises(BadWeights, match=r"do not fit Linear: .*"):
        checkpoint.load(path, model=nn.Linear(2, 2))
    with pytest.raises(BadWeights, match="do not fit Net") as caught:
        checkpoint.load(path, model=Net(4))
    assert "of 10 classes" in caught.value.hint
    # It is a base model for the next run of the class.
    spec = _spec(epochs=1, seed=1)
    started = _started(fine_tune(spec, tmp_path / "next", Inputs(weights=path), model=Net(), data=points))
    assert started.base_sha256 == checkpoint.hash_file(path)


def test_weights_of_other_code_are_matched_by_names(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "w.pt"
    )
    given = Inputs(weights=tmp_path / "w.pt")
    run = fine_tune(_spec(epochs=1), tmp_path, given, model=Net(), data=points)
    evaluated = next(event for event in run if isinstance(event, Evaluated))
    run.close()  # type: ignore[attr-defined]
    alone = fine_tune(_spec(epochs=1), tmp_path / "alone", model=net, data=points)
    assert evaluated.report.clean == next(event for event in alone if isinstance(event, Evaluated)).report.clean
    with pytest.raises(BadWeights, match=r"w.pt do not fit Net: .*1 missing|of another shape") as caught:
        list(fine_tune(_spec(), tmp_path / "other", given, model=Net(4), data=points))
    assert (caught.value.field, "as many classes" in caught.value.hint) == ("weights", True)


class _Object(Net):
    def forward(self, images: Tensor) -> object:  # type: ignore[override]
        return (super().forward(images),)


class _Flat(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten()


@pytest.mark.parametrize(
    ("model", "change", "error", "message"),
    [
        (_Object(), {}, BadInput, "a _Object does not return its logits alone"),
        (_Flat(), {}, BadInput, r"answers 1 images with a tensor \(10,\)"),
        (nn.Conv2d(3, 4, 3), {}, BadInput, "does not take images of 1 x 8 x 8"),
        (Net(4), {}, DoesNotFit, "my-net has 4 classes, but the data set has 10"),
        (Net(), {"base_model": "digits-cnn-linf"}, BadInput, "names digits-cnn-linf, which Temper ships"),
        (Net(), {"dataset": "cifar10"}, DoesNotFit, "names cifar10, which has 3 x 32 x 32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), {}, BadWeights, "probabilities"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    model: nn.Module,
    change: dict[str, object],
    error: type[Exception],
    message: str,
    points: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        list(fine_tune(_spec(**change), tmp_path, model=model, data=points))


def test_other_classes_are_refused_with_the_new_head_as_the_remedy(
    net: nn.Module, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    images, labels = points
    named = from_tensors((images, labels % 3), classes=("a", "b", "c"))
    with pytest.raises(DoesNotFit, match="10 classes, but the data set has 3") as caught:
        list(fine_tune(_spec(), tmp_path, model=net, data=named))
    assert (caught.value.field, "set head to new" in caught.value.hint) == ("head", True)
    # Labels alone name no class: a network may know some that none of them has.
    assert _started(fine_tune(_spec(), tmp_path, model=net, data=(images, labels % 3))).train_examples == 70


def test_a_model_beside_a_catalogue_architecture_is_refused(points: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    body = {name: value for name, value in _SPEC.items() if name != "base_model"}
    spec: AnySpec = parse({**body, "kind": "train", "architecture": "digits-cnn"})
    with pytest.raises(BadInput, match="the spec names the network digits-cnn") as caught:
        list(fine_tune(spec, tmp_path, model=Net(), data=points))  # type: ignore[arg-type]
    assert f"own:{__name__}:Net" in caught.value.hint


def test_an_own_class_without_the_network_says_how_to_give_it(tmp_path: Path) -> None:
    spec: AnySpec = parse({"kind": "train", "architecture": "own:nets:Net", "dataset": "digits"})
    with pytest.raises(BadInput, match="nets:Net is a class of the user's own") as caught:
        list(fine_tune(spec, tmp_path))  # type: ignore[arg-type]
    assert "--model nets:Net" in caught.value.hint


def test_a_shipped_base_takes_classes_of_ones_own(digits: Dataset, tmp_path: Path) -> None:
    part = digits.train.first(100)
    four = part.labels < 4
    spec = _spec(base_model="digits-cnn-linf", head="new", epochs=1)
    list(fine_tune(spec, tmp_path, data=(part.images()[four], part.labels[four])))
    loaded, header = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert (header.blueprint.architecture, header.blueprint.classes) == ("digits-cnn", 4)
    assert loaded(part.images()[:2]).shape == (2, 4)
    with pytest.raises(DoesNotFit, match="has 10 classes, but the data set has 12"):
        list(fine_tune(_spec(base_model="digits-cnn-linf"), tmp_path / "b", data=(part.images(), part.labels + 2)))


@pytest.mark.slow
def test_a_script_of_a_few_lines_is_the_whole_story(tmp_path: Path) -> None:
    script = """
import sys, torch
from pathlib import Path
from torch import nn
from core.checkpoint import load
from core.schema.spec import FineTuneSpec
from core.training import fine_tune

class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(16, 3))

spec = FineTuneSpec(base_model="mine", dataset="noise", eps={"linf": 0.1, "l1": 1}, epochs=1,
                    evaluation={"protocol": "fast", "examples": 4})
images, labels = torch.rand(60, 1, 4, 4), torch.arange(60) % 3
list(fine_tune(spec, Path(sys.argv[1]), model=Net(), data=(images, labels)))
print(load(Path(sys.argv[1]) / "checkpoint.safetensors", model=Net())[1].blueprint.architecture)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "own:__main__:Net"
