"""From step to step: memory, several processes, arithmetic, random layers."""

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.attacks import compiling
from core.data.split import Batch, Split
from core.data.training_set import TrainingSet
from core.models.precision import Bfloat16, in_precision
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import Stepped, Warned
from core.schema.spec import FineTuneSpec, parse
from core.signals import StopRequests
from core.training import auto_compile, trainer
from core.training.distributed import ProcessGroup
from core.training.methods.contract import BatchLoss, Counts, Shard, TrainingMethod
from core.training.trainer import Trainer, TrainerState

_ROOT = Path(__file__).parents[3]
_CPU = torch.device("cpu")
_ALONE = ProcessGroup(0, 1, _CPU)


def _spec(**change: object) -> FineTuneSpec:
    body = {"base_model": "digits-cnn-linf", "batch_size": 8, "method": "nat", "schedule": "constant", **change}
    spec = parse(body)
    assert isinstance(spec, FineTuneSpec)
    return spec


def _linear(*before: nn.Module) -> nn.Module:
    model = nn.Sequential(*before, nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
    return model.train()


def _trainer(spec: FineTuneSpec, model: nn.Module, digits: Split) -> Trainer:
    return Trainer(spec, model, TrainingSet(digits), _ALONE)


def _steps(run: Trainer, count: int) -> list[Stepped | Warned]:
    return [event for _ in range(count) for event in run.take_step(StopRequests())]


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def few(digits) -> Split:  # type: ignore[no-untyped-def]
    """Forty training digits: five batches of eight."""
    return digits.train.first(40)


def test_random_layers_go_on_where_they_were_and_leave_the_global_state_alone(few: Split) -> None:
    spec, whole, cut, resumed = _spec(), *(_linear(nn.Dropout(0.5)) for _ in range(3))
    before = torch.get_rng_state()
    one = _trainer(spec, whole, few)
    _steps(one, 4)
    other = _trainer(spec, cut, few)
    _steps(other, 3)
    state = other.state_dict()
    kept = TrainerState(
        state.counters.model_copy(update={"seconds": 9.0}),
        {name: tensor.clone() for name, tensor in state.tensors.items()},
    )
    torch.rand(3)
    again = _trainer(spec, resumed, few)
    again.load_state_dict(kept)
    assert again.step == 3
    _steps(again, 1)
    assert _same(whole, resumed)
    assert not _same(whole, cut)
    assert again.seconds >= 9
    torch.set_rng_state(before)
    _steps(one, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Give the device memory for so many images at once."""

    def limit(images_at_once: int, error: Exception) -> None:
        build = trainer.build

        def scarce(*arguments: object, **options: object) -> TrainingMethod:
            method = build(*arguments, **options)  # type: ignore[arg-type]

            def call(model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
                if len(batch.labels) > images_at_once:
                    raise error
                return method(model, batch, shard, counts)

            return call

        monkeypatch.setattr(trainer, "build", scarce)

    return limit


_OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", _OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_told_with_one_that_does(
    few: Split, memory_for: Callable[[int, Exception], None], error: Exception
) -> None:
    memory_for(5, error)
    with pytest.raises(OutOfMemory) as caught:
        _steps(_trainer(_spec(), _linear(), few), 1)
    assert (caught.value.field, caught.value.hint) == (
        "batch_size",
        "set batch_size to 4, which was found to fit, or set accumulate to auto",
    )


def test_another_runtime_error_is_no_lack_of_memory(few: Split, memory_for: Callable[[int, Exception], None]) -> None:
    memory_for(5, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        _steps(_trainer(_spec(accumulate="auto"), _linear(), few), 1)


def test_a_batch_in_micro_batches_takes_the_step_of_the_whole_one(
    few: Split, memory_for: Callable[[int, Exception], None]
) -> None:
    method = {"name": "sat", "steps": 2}
    whole, accumulated = _linear(), _linear()
    one = _trainer(_spec(method=method), whole, few)
    expected = _steps(one, 3)
    memory_for(4, torch.OutOfMemoryError("CUDA out of memory"))
    other = _trainer(_spec(method=method, accumulate="auto"), accumulated, few)
    warning, *told = _steps(other, 3)
    assert isinstance(warning, Warned)
    assert warning.code == "accumulating"
    assert [event.norm for event in told] == [event.norm for event in expected]  # type: ignore[union-attr]
    assert one.counts == other.counts
    for a, b in zip(whole.parameters(), accumulated.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_update_that_runs_out_of_memory_is_not_tried_again(few: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _trainer(_spec(accumulate="auto"), _linear(), few)
    errors = [torch.OutOfMemoryError("CUDA out of memory")]
    step = torch.optim.SGD.step

    def fail_once(optimiser: torch.optim.SGD) -> None:
        if errors:
            raise errors.pop()
        step(optimiser)

    monkeypatch.setattr(torch.optim.SGD, "step", fail_once)
    with pytest.raises(OutOfMemory) as caught:
        _steps(run, 1)
    assert caught.value.hint == "set batch_size to 4, which was found to fit"
    assert (run.step, run.micro_batching.count) == (0, 1)


def test_a_fixed_number_of_micro_batches_is_not_increased(
    few: Split, memory_for: Callable[[int, Exception], None]
) -> None:
    memory_for(3, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory) as caught:
        _steps(_trainer(_spec(accumulate=2), _linear(), few), 1)
    assert caught.value.hint == "set batch_size to 2, which was found to fit, or set accumulate to auto"


@pytest.mark.parametrize(("images_at_once", "micro_batches"), [(8, 1), (7, 2), (3, 4), (1, 8)])
def test_auto_doubles_the_micro_batches_until_they_fit(
    few: Split, memory_for: Callable[[int, Exception], None], images_at_once: int, micro_batches: int
) -> None:
    memory_for(images_at_once, torch.OutOfMemoryError("CUDA out of memory"))
    run = _trainer(_spec(accumulate="auto"), _linear(), few)
    told = _steps(run, 5)
    assert run.micro_batching.count == run.state_dict().counters.micro_batches == micro_batches
    warnings = [event.message for event in told if isinstance(event, Warned)]
    assert len(warnings) == (micro_batches > 1)
    assert all(f"computed in {micro_batches} micro-batches" in message for message in warnings)


def test_auto_ends_where_not_even_one_image_fits(few: Split, memory_for: Callable[[int, Exception], None]) -> None:
    memory_for(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory) as caught:
        _steps(_trainer(_spec(accumulate="auto"), _linear(), few), 1)
    assert caught.value.hint.startswith("not even the smallest batch fits")


@pytest.mark.parametrize(
    ("images_at_once", "hint"),
    [(1, "set batch_size to 1, which was found to fit"), (0, "not even the smallest batch fits")],
)
def test_the_batch_size_that_is_told_is_one_that_was_tried(
    few: Split, memory_for: Callable[[int, Exception], None], images_at_once: int, hint: str
) -> None:
    memory_for(images_at_once, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory) as caught:
        _steps(_trainer(_spec(method={"name": "sat", "steps": 1}), _linear(), few), 1)
    assert caught.value.hint.startswith(hint)
    assert ("accumulate" in caught.value.hint) == (images_at_once > 0)


_IN_MICRO_BATCHES = [
    {"name": "nat"},
    {"name": "single", "norms": ["l1"], "loss": "trades"},
    {"name": "sat"},
    {"name": "e-at", "loss": "trades"},
    {"name": "avg", "loss": "trades"},
    {"name": "max"},
    {"name": "msd", "loss": "trades"},
    {"name": "ramp"},
    {"name": "ramp", "loss": "trades"},
    {"name": "pat"},
]


def _convolution() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    return model.train()


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("micro_batches", [2, 5])
@pytest.mark.parametrize(
    "method", _IN_MICRO_BATCHES, ids=lambda method: "-".join((method["name"], method.get("loss", "ce")))
)
def test_every_method_takes_the_step_of_the_whole_batch_in_micro_batches(
    few: Split, method: dict[str, object], micro_batches: int
) -> None:
    options = method if method["name"] in ("nat", "pat") else {**method, "steps": 3}
    specs = [_spec(method=options, batch_size=21, learning_rate=0.1, accumulate=count) for count in (1, micro_batches)]
    models = [_convolution(), _convolution()]
    # Of each three images the network has two right throughout and one wrong, not evenly over the micro-batches.
    likeliest = models[0](few.images()).topk(2).indices
    labels = likeliest.gather(1, (torch.arange(len(few)) % 3 == 0).long()[:, None]).squeeze(1)
    one, several = (
        _trainer(spec, model, replace(few, labels=labels)) for spec, model in zip(specs, models, strict=True)
    )
    losses = [[event.loss for event in _steps(run, 2)] for run in (one, several)]  # type: ignore[union-attr]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert one.counts == several.counts
    start = list(_convolution().parameters())
    moved, differs = (
        torch.cat([(a - b).flatten() for a, b in zip(these, those, strict=True)]).norm()
        for these, those in ((models[0].parameters(), start), (models[0].parameters(), models[1].parameters()))
    )
    assert differs < 1e-9 * moved
    # What the next step draws does not depend on it either.
    assert torch.equal(*(run.state_dict().tensors["random/norms"] for run in (one, several)))


def _narrow() -> nn.Module:
    """A network whose batch norm sees maps of one pixel."""
    return nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 10))


def test_a_batch_of_one_is_refused_at_once_where_batch_norm_cannot_take_it(few: Split) -> None:
    model = _narrow().eval()
    before, random = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(BadInput, match="cannot train on a batch of one") as caught:
        _trainer(_spec(batch_size=1), model, few)
    assert (caught.value.field, caught.value.hint) == ("batch_size", "set batch_size to 2 or more")
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(BadInput) as caught:
        _trainer(_spec(), model, few.first(1))
    assert (caught.value.field, caught.value.hint) == ("train_examples", "train on 2 images or more")
    assert len(_steps(_trainer(_spec(batch_size=1), _linear(), few), 2)) == 2


def test_an_epoch_of_batches_and_one_image_more_is_trained_to_its_end(few: Split) -> None:
    run = _trainer(_spec(epochs=2), _narrow(), few.first(33))
    assert (run.steps_per_epoch, run.total_steps) == (4, 8)
    assert all(isinstance(event, Stepped) for event in _steps(run, 8))


def test_micro_batches_are_not_too_small_for_batch_norm(
    few: Split, memory_for: Callable[[int, Exception], None]
) -> None:
    memory_for(5, torch.OutOfMemoryError("CUDA out of memory"))
    warning, *told = _steps(_trainer(_spec(accumulate="auto"), _narrow(), few.first(35)), 5)
    assert isinstance(warning, Warned)
    assert len(told) == 5, "the last batch, of three, is whole"
    memory_for(2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        _steps(_trainer(_spec(accumulate="auto", batch_size=3), _narrow(), few), 1)


def test_a_run_in_micro_batches_takes_a_batch_of_one_whole(few: Split) -> None:
    run = _trainer(_spec(accumulate=2, batch_size=1), _linear(), few)
    assert all(isfinite(event.loss) for event in _steps(run, 2) if isinstance(event, Stepped))
    assert run.is_finite()


def test_too_small_a_batch_for_the_processes_is_refused_before_the_first_step(few: Split) -> None:
    with pytest.raises(BadInput, match="smallest batch of an epoch has 2 images, too few for 3 processes"):
        Trainer(_spec(), _linear(), TrainingSet(few.first(34)), ProcessGroup(0, 3, _CPU))


def test_bf16_computes_the_network_in_bfloat16_and_all_around_it_in_float32() -> None:
    seen = {}

    class Watched(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen["in"] = images.dtype
            out = self.linear(images.flatten(1))
            seen["out"] = out.dtype
            return out

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)

    model = Watched()
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    logits = in_precision(model, "bf16", _CPU)(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert (seen["in"], seen["out"]) == (torch.float32, torch.bfloat16)
    assert logits.dtype == gradient.dtype == torch.float32
    assert torch.allclose(logits, model(images), atol=0.02)
    assert in_precision(model, "fp32", _CPU) is in_precision(model, "auto", _CPU) is model


def test_training_in_bf16_goes_where_training_in_fp32_goes(few: Split) -> None:
    models = {precision: _linear() for precision in ("fp32", "bf16")}
    for precision, model in models.items():
        _steps(_trainer(_spec(precision=precision, method={"name": "e-at", "steps": 2}), model, few), 2)
    start = _linear()
    moved = {name: model[1].weight - start[1].weight for name, model in models.items()}  # type: ignore[index, union-attr, operator]
    error = (moved["bf16"] - moved["fp32"]).norm() / moved["fp32"].norm()
    assert 0 < error < 0.1
    assert all(parameter.dtype == torch.float32 for parameter in models["bf16"].parameters())
    assert not isinstance(models["bf16"], Bfloat16)


def test_what_cannot_be_compiled_is_said_once_and_trained_as_it_is(few: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(network: nn.Module, dynamic: bool) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling.torch, "compile", refuse)
    models = {wish: _linear() for wish in ("always", "never")}
    told = {
        wish: _steps(_trainer(_spec(compile=wish, method={"name": "e-at", "steps": 2}), model, few), 3)
        for wish, model in models.items()
    }
    warnings = [event for event in told["always"] if isinstance(event, Warned)]
    assert [warning.code for warning in warnings] == ["not_compiled"]
    assert "no compiler" in warnings[0].message
    assert len(told["never"]) == 3
    assert _same(models["always"], models["never"])


def test_a_cpu_compiles_nothing_by_itself(few: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_compile, "pays", lambda **_: True)
    assert len(_steps(_trainer(_spec(epochs=10, method={"name": "e-at", "steps": 1}), _linear(), few), 30)) == 30


@pytest.mark.slow
def test_training_against_the_compiled_network_goes_where_training_without_it_goes(few: Split) -> None:
    models = {wish: _linear() for wish in ("always", "never")}
    for wish, model in models.items():
        told = _steps(_trainer(_spec(compile=wish, method={"name": "e-at", "steps": 2}), model, few), 4)
        assert not any(isinstance(event, Warned) for event in told)
    for a, b in zip(models["always"].parameters(), models["never"].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
