"""How a run is doing: held-out accuracy, and the alarm."""

import pytest
import torch
from torch import Tensor, nn

from core.data.split import Split
from core.schema.errors import BadInput
from core.schema.events import Monitored
from core.schema.progress import Rate
from core.schema.spec import FineTuneSpec, parse
from core.training import run
from core.training.monitoring import alarm, monitor


def _spec(**change: object) -> FineTuneSpec:
    spec = parse({"base_model": "digits-cnn-linf", "eps": {"linf": 0.1, "l2": 0.5, "l1": 1.5}, **change})
    assert isinstance(spec, FineTuneSpec)
    return spec


class _Stairs(nn.Module):
    """Two classes told apart by the mean pixel, with a gradient that points the wrong way for the first step away.

    The logit falls towards the boundary only beyond a bump around the clean image: so one large step from the image
    itself walks the wrong way, as after catastrophic overfitting.
    """

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        bump = torch.where((mean - 0.6).abs() < 1e-4, 2000 * (0.6 - mean), torch.zeros_like(mean))
        value = mean - 0.55 + bump
        return torch.stack([-value, value], 1)


@pytest.fixture
def grey() -> Split:
    """Thirty images of mean 0.6, of the second class."""
    return Split(torch.full((30, 1, 8, 8), 153, dtype=torch.uint8), torch.ones(30, dtype=torch.int64))


def _seen(robust: float, training_attack: float) -> Monitored:
    union = Rate(value=robust, count=int(100 * robust), total=100, low=0.0, high=1.0)
    return Monitored(
        step=1,
        epoch=1.0,
        examples=100,
        robust={"linf": robust, "l1": 0.5},
        training_attack={"linf": training_attack, "l1": 0.5},
        union=union,
        seconds=0.1,
    )


def test_the_shares_are_those_of_a_linear_model_in_closed_form() -> None:
    """With f(x) = mean(x) - 0.5 a point of mean m falls within linf radius eps if m - 0.5 < eps, and so on."""

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images.flatten(1).mean(1) - 0.5
            return torch.stack([-value, value], 1)

    levels = torch.arange(128, 255, dtype=torch.uint8)
    held_out = Split(levels[:, None, None, None].repeat(1, 1, 8, 8), torch.ones(len(levels), dtype=torch.int64))
    margins = levels.double() / 255 - 0.5
    spec = _spec(eps={"linf": 0.1, "l2": 0.8, "l1": 6.4}, method={"name": "single", "norms": ["linf"]})
    seen = monitor(Mean(), held_out, spec, step=7, epoch=0.5, chunk_size=64)
    # The mean moves by eps for linf, by eps / sqrt(64) for l2, by eps / 64 for l1: here 0.1 in each norm.
    expected = (margins >= 0.1).double().mean().item()
    assert seen.robust == pytest.approx(dict.fromkeys(("linf", "l2", "l1"), expected), abs=0.04)
    assert seen.training_attack == pytest.approx({"linf": expected}, abs=0.02)
    assert seen.union.count <= min(seen.robust.values()) * len(levels) + 1e-6
    assert (seen.step, seen.epoch, seen.examples) == (7, 0.5, 127)


def test_a_model_that_only_withstands_its_own_attack_raises_the_alarm(grey: Split) -> None:
    spec = _spec(method={"name": "single", "norms": ["linf"], "steps": 1})
    model = _Stairs().train()
    seen = monitor(model, grey, spec, step=1, epoch=1.0, chunk_size=64)
    assert (seen.training_attack["linf"], seen.robust["linf"]) == (1, 0)
    assert model.training
    warning = alarm(seen)
    assert warning is not None
    assert warning.code == "catastrophic_overfitting"
    assert "100 % withstand the training attack in linf, but only 0 % a stronger one" in warning.message
    assert "method.steps.linf" in warning.text


def test_monitoring_uses_at_most_the_chunk_size_of_training_and_less_if_it_must(
    grey: Split,
) -> None:
    spec = _spec(method={"name": "single", "norms": ["linf"], "steps": 1})
    model, sizes = _Stairs(), set()
    expected = monitor(model, grey, spec, step=1, epoch=1.0, chunk_size=len(grey))

    def small(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError
        sizes.add(len(inputs[0]))

    model.register_forward_pre_hook(small)
    seen = monitor(model, grey, spec, step=1, epoch=1.0, chunk_size=16)
    assert max(sizes) == 4
    assert seen.model_copy(update={"seconds": 0.0}) == expected.model_copy(update={"seconds": 0.0})


def test_attacks_that_agree_raise_no_alarm() -> None:
    assert alarm(_seen(0.5, 0.55)) is None
    assert alarm(_seen(0.5, 0.75)) is not None
    natural = _seen(0.1, 0.2).model_copy(update={"training_attack": {}})
    assert alarm(natural) is None


def test_held_out_images_are_never_trained_on_and_no_image_is_lost(digits) -> None:  # type: ignore[no-untyped-def]
    train, held_out = run._hold_out(_spec(held_out=100), digits)
    assert (len(train), len(held_out)) == (1197, 100)
    rows = [part.pixels.flatten(1).tolist() for part in (train, held_out, digits.train)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2])
    again = run._hold_out(_spec(held_out=100), digits)[1]
    assert torch.equal(again.pixels, held_out.pixels)
    all_of_them, none = run._hold_out(_spec(held_out=0), digits)
    assert all_of_them is digits.train
    assert len(none) == 0


def test_a_twentieth_is_held_out_by_default(digits) -> None:  # type: ignore[no-untyped-def]
    assert _spec().held_out == 64
    assert _spec(train_examples=200).held_out == 10
    assert parse({"base_model": "x", "dataset": "cifar10"}).held_out == 256  # type: ignore[union-attr]
    unknown = _spec(dataset="pets")
    assert unknown.held_out is None
    assert len(run._hold_out(unknown, digits)[1]) == 64


def test_holding_out_everything_is_refused(digits) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="leave none to train on") as caught:
        run._hold_out(_spec(held_out=2000), digits)
    assert caught.value.field == "held_out"
