"""Compiling what is attacked: where it pays, the same but for rounding, and never needed."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import compiling
from core.attacks.compiling import SAVED, SECONDS, Compiled, pays
from core.training.auto_compile import Pace


def test_compiling_pays_when_the_steps_left_win_back_its_time() -> None:
    enough = SECONDS / SAVED
    assert pays(pace=0.1, steps=int(10 * enough) + 1)
    assert not pays(pace=0.1, steps=int(10 * enough) - 1)


def test_the_pace_leaves_out_the_first_steps() -> None:
    pace = Pace()
    moments = [100.0 * number for number in range(1, Pace.first)]
    last = moments[-1] + 50
    moments += [last + 2.0 * number for number in range(Pace.enough - Pace.first + 1)]
    for moment in moments[:-1]:
        pace.tick(moment)
        assert pace.seconds is None
    pace.tick(moments[-1])
    pace.tick(1e6)
    assert pace.seconds == 2.0


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


IMAGES = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_network_that_cannot_be_compiled_stays_as_it_is(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(compiling.torch, "compile", lambda network, dynamic: broken)
    compiled = Compiled()
    assert compiled.of(network, IMAGES) is network
    assert compiled.refusal == "RuntimeError: no compiler here"


@pytest.mark.parametrize("change", ["answers", "slopes"])
def test_a_form_that_computes_something_else_is_not_used(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def other(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits + 0.2 if change == "answers" else logits.detach() + 0 * images.sum()

    monkeypatch.setattr(compiling.torch, "compile", lambda network, dynamic: other)
    compiled = Compiled()
    assert compiled.of(network, IMAGES) is network
    assert compiled.refusal == "its compiled form computes something else"


def test_only_batches_of_its_size_go_through_the_compiled_form(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = nn.Sequential(network)
    monkeypatch.setattr(compiling.torch, "compile", lambda network, dynamic: form)
    compiled = Compiled()
    assert compiled.of(network, IMAGES) is form
    assert compiled.of(network, IMAGES[:4]) is network
    assert compiled.of(nn.Identity(), IMAGES) is not form
    assert compiled.refusal is None
