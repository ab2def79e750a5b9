"""The lists of the API and their filters, out of its document: those to come as well."""

from collections.abc import Iterator, Mapping
from typing import Any

VALUES: Mapping[str, list[str]] = {
    "base_model": ["model-1", "nothing"],
    "dataset": ["birds", "nothing"],
    "metadata": ["team=team-1", "run=7", "team=nothing"],
    "name": ["run-1", "nothing"],
    "sha256": ["1" * 64, "2" * 64],
}
"""What to ask a filter for that is not an enumeration: something that many rows have, and something that none has."""
_NO_FILTERS = {"after", "limit", "project_id"}


def lists(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield the path of each list, and what to ask each of its filters for."""
    for path, methods in document["paths"].items():
        route = methods.get("get")
        parameters = {each["name"] for each in (route or {}).get("parameters", ())}
        # A list without a limit is that of a catalogue, which does not grow.
        if route and "limit" in parameters and _schema_of(route).startswith("Page"):
            yield (
                path,
                {
                    parameter["name"]: _values_of(document, parameter)
                    for parameter in route.get("parameters", ())
                    if parameter["in"] == "query" and parameter["name"] not in _NO_FILTERS
                },
            )


def _schema_of(route: Mapping[str, Any]) -> str:
    content = route["responses"].get("200", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "").rpartition("/")[2])


def _values_of(document: Mapping[str, Any], parameter: Mapping[str, Any]) -> list[str]:
    options = [parameter["schema"], *parameter["schema"].get("anyOf", ())]
    named = [each["$ref"].rpartition("/")[2] for each in options if "$ref" in each]
    options += [document["components"]["schemas"][name] for name in named]
    known = [str(value) for option in options for value in option.get("enum", ())]
    known += [str(option["const"]) for option in options if "const" in option]
    assert known or parameter["name"] in VALUES, f"say in VALUES what to ask the filter {parameter['name']} for"
    return known or VALUES[parameter["name"]]
