"""Our verdicts against pyautoattack's, which must differ no more than pyautoattack's own differ between batch sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.autoattack import Case, SomeClasses, compare, digits_base, digits_cases
from core import data
from core.catalog import DATASETS, NORMS, Norm
from core.evaluation import evaluate
from core.models import Blueprint, build

_EPS = DATASETS["digits"].eps


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_the_digits_base_are_those_of_pyautoattack(norm: Norm, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:24] for points in test_digits)
    cell = compare(Case("digits", digits_base(), images, labels, _EPS, "paper"), norm)
    assert cell.their_own_flips is not None
    assert cell.flips <= cell.their_own_flips


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_with_three_classes_are_those_of_pyautoattack(norm: Norm, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = test_digits
    some = (labels < 3).nonzero().squeeze(1)[:12]
    case = Case("three", SomeClasses(digits_base(), 3), images[some], labels[some], _EPS, "paper")
    assert compare(case, norm, own=False).flips == 0


@pytest.mark.parametrize("norm", NORMS)
def test_each_logical_batch_gets_the_verdicts_that_pyautoattack_gives_it_alone(
    norm: Norm, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:60] for points in test_digits)
    eps = {norm: _EPS[norm]}
    whole = evaluate(digits_base(), images, labels, eps, protocol="fast", batch_size=25, seed=3)
    alone = [
        evaluate(digits_base(), images[part], labels[part], eps, protocol="fast", engine="reference", seed=3)
        for part in (slice(0, 25), slice(25, 50), slice(50, 60))
    ]
    assert whole.verdicts[norm] == "".join(report.verdicts[norm] for report in alone)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_an_untrained_network_are_those_of_pyautoattack(norm: Norm, cifar_archive: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Blueprint("preact-resnet-8", (3, 32, 32), 10)).eval()
    images = data.load("cifar10-jpeg", cifar_archive).test.first(64).images()
    eps: dict[Norm, float] = {"linf": 1 / 255, "l2": 0.1, "l1": 1.0}
    cell = compare(Case("untrained", model, images, model(images).argmax(1), eps, "paper"), norm)
    assert cell.their_own_flips is not None
    assert cell.flips <= cell.their_own_flips


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("norm", NORMS)
def test_the_standard_protocol_gives_the_verdicts_of_autoattack(norm: Norm, number: int) -> None:
    cell = compare(list(digits_cases(100))[number](), norm)
    assert cell.their_own_flips is not None
    assert cell.flips <= cell.their_own_flips
