"""Our verdicts against pyautoattack's, which must differ no more than pyautoattack's own differ between batch sizes."""

from pathlib import Path

import pytest
import torch
from pyautoattack import AutoAttack

from benchmarks.parity import NAMES, cifar_case, compare, digits_case
from core.catalog import NORMS, Norm
from core.evaluation import evaluate


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_the_digits_base_are_those_of_pyautoattack(norm: Norm) -> None:
    row = compare(digits_case(64), norm)
    assert row.flips <= row.their_own_flips


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_an_untrained_network_are_those_of_pyautoattack(norm: Norm, cifar_archive: Path) -> None:
    row = compare(cifar_case(cifar_archive, 64), norm)
    assert row.flips <= row.their_own_flips


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm", NORMS)
def test_the_standard_protocol_gives_the_verdicts_of_autoattack(norm: Norm) -> None:
    case = digits_case(100)
    report = evaluate(case.model, case.images, case.labels, {norm: case.eps[norm]}, protocol="standard", batch_size=100)
    with torch.random.fork_rng():
        reference = AutoAttack(case.model, norm=NAMES[norm], eps=case.eps[norm], version="standard", seed=0)
        adversarial, _ = reference.run_standard_evaluation(case.images, case.labels, batch_size=100)
    with torch.no_grad():
        right = case.model(adversarial).argmax(1) == case.labels
    assert report.verdicts[norm] == "".join("01"[verdict] for verdict in right.tolist())
