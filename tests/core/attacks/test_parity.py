"""Our verdicts against pyautoattack's, which must differ no more than pyautoattack's own differ between batch sizes."""

from pathlib import Path

import pytest

from benchmarks.parity import cifar_case, compare, digits_case
from core.catalog import DATASETS, NORMS, Norm


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_the_digits_base_are_those_of_pyautoattack(norm: Norm) -> None:
    row = compare(*digits_case(64), norm, DATASETS["digits"].eps[norm])
    assert row.flips <= row.their_own_flips


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_an_untrained_network_are_those_of_pyautoattack(norm: Norm, cifar_archive: Path) -> None:
    row = compare(*cifar_case(cifar_archive, 64), norm, DATASETS["cifar10"].eps[norm])
    assert row.flips <= row.their_own_flips
