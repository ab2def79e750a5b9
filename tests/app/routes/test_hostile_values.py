"""Values that a database cannot look for are bad input on every route, whichever database it is."""

import re

import pytest

from app.main import create_app
from tests.support.instance import DIGITS

NUL = "a%00b"
LARGE = (2**31 - 1, 2**31, 2**53, 2**64)


@pytest.fixture
def operations(settings, database):
    """Every operation, as method, path and the names of its query parameters."""
    paths = create_app(settings, database).openapi()["paths"]
    return [
        (method.upper(), path, [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"])
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]


def ask(api, method, path):
    return api.request(method, path, **({"json": {}} if method in ("POST", "PUT", "PATCH") else {}))


def test_nothing_has_an_id_with_a_nul_character(api, operations):
    for method, path, _ in operations:
        if "{" in path:
            answer = ask(api, method, re.sub(r"\{(\w+)\}", lambda found: "1" if found[1] == "number" else NUL, path))
            assert answer.status_code in (404, 415, 422), (method, path, answer.text)


def test_a_parameter_with_a_nul_character_is_named(api, operations):
    tried = 0
    for method, path, names in operations:
        for name in names if "{" not in path else ():
            answer = ask(api, method, f"{path}?{name}=k={NUL}")
            assert answer.status_code == 422, (method, path, answer.text)
            if method == "GET":
                assert f"/{name}" in [error["pointer"] for error in answer.json()["errors"]]
                tried += 1
    assert tried > 5


def test_an_id_in_a_body_with_a_nul_character_is_an_unknown_one(api):
    for path, body in (("/datasets", "upload"), ("/models", "upload"), ("/models", "checkpoint")):
        answer = api.post(path, json={body: "a\0b", "name": "mine"})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "unknown_id")


def test_numbers_beyond_what_a_column_holds_are_refused_or_find_nothing(api):
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    for place in ("events?after=", "metrics?after_step=", "attempts?after=", "logs?tail=", "logs?attempt="):
        for number in LARGE:
            answer = api.get(f"/jobs/{job_id}/{place}{number}")
            assert answer.status_code in (200, 404, 422), answer.text
    assert api.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(2**31)}).status_code == 422
