"""The catalogue of unseen threats and the attacks that it names agree."""

from inspect import signature

import pytest

from core.schema.threats import THREATS, ThreatEntry
from core.threats import _find

ATTACKS = [entry for entry in THREATS.values() if entry.attack]


@pytest.mark.parametrize("entry", ATTACKS, ids=lambda entry: entry.name)
def test_the_defaults_of_an_attack_are_those_of_the_catalogue(entry: ThreatEntry) -> None:
    defaults = {name: parameter.default for name, parameter in signature(_find(entry.attack).steps).parameters.items()}
    assert (defaults.get("queries"), defaults.get("steps")) == (entry.queries, entry.steps)
    assert defaults["compat"] is False


@pytest.mark.parametrize("entry", ATTACKS, ids=lambda entry: entry.name)
def test_a_threat_has_the_name_by_which_the_catalogue_knows_it(entry: ThreatEntry) -> None:
    budget = int(entry.budgets[0]) if entry.is_integer else entry.budgets[0]
    assert _find(entry.threat)(budget).id == entry.name
