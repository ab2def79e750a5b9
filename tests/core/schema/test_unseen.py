"""The part of a spec that asks for threats that no training prepares for, and what it costs."""

from typing import Any

import pytest
from pydantic import ValidationError

from core.schema.cost_model import Passes, passes_of_evaluation
from core.schema.spec import EvaluateSpec, parse
from core.schema.threats import PRESETS, STANDARD_CORRUPTIONS, THREATS
from core.schema.unseen import Unseen
from core.schema.validation import field_errors


def _spec(unseen: Any, **fields: Any) -> EvaluateSpec:
    body = {"kind": "evaluate", "base_model": "digits-cnn-linf", "evaluation": {"unseen": unseen, **fields}}
    spec = parse(body)
    assert isinstance(spec, EvaluateSpec)
    return spec


def _asked(unseen: Any) -> Unseen:
    asked = _spec(unseen).evaluation.unseen
    assert asked is not None
    return asked


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_resolved_to_its_threats_and_says_where_it_comes_from(preset: str) -> None:
    asked = _asked(preset)
    assert asked.preset == preset
    assert asked.provenance == PRESETS[preset].provenance
    assert parse(_spec(preset).model_dump(mode="json")) == _spec(preset)


def test_ramp_has_the_eight_attacks_and_the_fifteen_corruptions() -> None:
    names = [threat.name for threat in _asked("ramp").threats]
    assert set(names[:15]) == set(STANDARD_CORRUPTIONS)
    assert names[15:] == ["l0", "patch", "frame", "fog", "snow", "gabor", "elastic", "jpeg"]
    settings = {threat.name: (threat.budgets, threat.queries or threat.steps) for threat in _asked("ramp").threats[15:]}
    assert settings["l0"] == ((9,), 5000)
    assert settings["gabor"] == ((60,), 100)


def test_a_list_takes_names_presets_and_objects() -> None:
    asked = _asked(["l0", "corruptions", {"name": "patch", "budgets": [4, 2], "queries": 10}])
    assert asked.preset is None
    assert asked.provenance is None
    assert len(asked.threats) == 17
    assert asked.threats[0].queries == THREATS["l0"].queries
    assert asked.threats[-1].budgets == (2, 4), "a sweep goes from the smallest budget to the largest"


@pytest.mark.parametrize(
    ("unseen", "pointer", "detail"),
    [
        ("Ramp", "/evaluation/unseen/preset", "did you mean 'ramp'?"),
        ([], "/evaluation/unseen/threats", "name a preset"),
        ({}, "/evaluation/unseen/threats", "name a preset"),
        ({"preset": "ramp", "threats": ["l0"]}, "/evaluation/unseen/threats", "leave preset out"),
        (["l0", "l0"], "/evaluation/unseen/threats", "named twice"),
        ([{"name": "l_0"}], "/evaluation/unseen/threats/0/name", "did you mean 'l0'?"),
        ([{"nam": "l0"}], "/evaluation/unseen/threats/0/nam", "did you mean 'name'?"),
        ([{"name": "l0", "budgets": 0}], "/evaluation/unseen/threats/0/budgets", "an integer above 0"),
        ([{"name": "l0", "budgets": 1.5}], "/evaluation/unseen/threats/0/budgets", "an integer above 0"),
        ([{"name": "l0", "budgets": [3, 3]}], "/evaluation/unseen/threats/0/budgets", "given twice"),
        ([{"name": "l0", "budgets": []}], "/evaluation/unseen/threats/0/budgets", "at least 1"),
        ([{"name": "l0", "budgets": "all"}], "/evaluation/unseen/threats/0/budgets", "[1, 3, 9]"),
        ([{"name": "l0", "steps": 3}], "/evaluation/unseen/threats/0/steps", "has no steps"),
        ([{"name": "fog", "queries": 3}], "/evaluation/unseen/threats/0/queries", "has no queries"),
        (
            [{"name": "fog", "budgets": float("nan")}],
            "/evaluation/unseen/threats/0/budgets",
            "nan is not a valid budget",
        ),
        ([{"name": "common/fog", "budgets": 0}], "/evaluation/unseen/threats/0/budgets", "at most 5 (severity)"),
        ([{"name": "common/fog", "budgets": 6}], "/evaluation/unseen/threats/0/budgets", "at most 5 (severity)"),
        ([{"name": "common/fog", "compat": True}], "/evaluation/unseen/threats/0/compat", "has no compat"),
        (3, "/evaluation/unseen", '{"preset": "ramp"}'),
        (
            {"preset": "corruptions", "reference_errors": {"common/fog": 0.8}},
            "/evaluation/unseen/reference_errors",
            "one per standard corruption",
        ),
    ],
)
def test_a_wrong_request_names_the_field_and_the_remedy(unseen: Any, pointer: str, detail: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _spec(unseen)
    assert any(error.pointer == pointer and detail in error.detail for error in field_errors(caught.value))


def test_the_cost_counts_every_budget_of_every_threat() -> None:
    threats = [
        {"name": "l0", "budgets": [1, 9], "queries": 100},
        {"name": "fog", "steps": 10},
        {"name": "common/fog", "budgets": [1, 2, 3]},
    ]
    more = passes_of_evaluation(_spec(threats), 7, classes=10)
    less = passes_of_evaluation(_spec(None), 7, classes=10)
    assert Passes(more.forward - less.forward, more.backward - less.backward) == Passes(7 * (2 * 102 + 13 + 3), 7 * 10)
