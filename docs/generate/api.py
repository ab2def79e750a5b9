"""The reference of the HTTP API, from its OpenAPI document."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.http.problems import PROBLEMS
from app.main import create_app
from app.platform.database import Database
from app.platform.settings import Settings
from docs.generate import markdown
from docs.generate.markdown import code
from docs.generate.schema import default, kind

_SPECS = re.compile(r"(FineTune|Train|Evaluate)(Spec|Request)(-Input|-Output)?")
_VALIDATED = re.compile("-(Input|Output)$")


def page() -> str:
    """Describe every route and every body."""
    document = _document()
    routes: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            routes.setdefault(route["tags"][0], []).append(_route(method.upper(), path, route))
    return markdown.page(
        "HTTP API",
        "Every route is also available under `/v1`. Requests carry an API key as `Authorization: Bearer tmp_...`. "
        "`/docs` of the service shows these routes and sends requests from the browser; `/openapi.json` describes them "
        "for programs. Errors are [problems](problems.md).",
        *(f"## {tag.capitalize()}\n\n" + "\n\n".join(each) for tag, each in routes.items()),
        "## Bodies and answers",
        *_schemas(document["components"]["schemas"]),
    )


def problems_page() -> str:
    """Explain every problem code."""
    rows = ((code(problem.code), str(problem.status), problem.explanation()) for problem in PROBLEMS.values())
    return markdown.page(
        "Problem codes",
        "An error answer is `application/problem+json` (RFC 9457). `code` is stable, `detail` says what is wrong with "
        "this request, and `errors` names fields by JSON pointer. `GET /problems/{code}` gives the same explanations.",
        markdown.table(("code", "status", "explanation"), rows),
    )


def _document() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        database = Database(f"sqlite:///{folder}/none.db")
        try:
            return create_app(settings, database).openapi()
        finally:
            database.close()


def _route(method: str, path: str, route: Mapping[str, Any]) -> str:
    parameters = (
        (
            code(each["name"]),
            each["in"],
            kind(each["schema"], _link),
            default(each["schema"]),
            each.get("description", ""),
        )
        for each in route.get("parameters", ())
    )
    return "\n\n".join(
        part
        for part in (
            f"### {code(f'{method} {path}')}",
            route.get("description", ""),
            markdown.table(("parameter", "in", "value", "default", "meaning"), parameters),
            *(f"Body: {_content(route['requestBody'])}" for _ in [0] if "requestBody" in route),
            "\n".join(_answers(route["responses"])),
        )
        if part
    )


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    """List what is answered: each status of success, then the codes of problems."""
    for status, answer in responses.items():
        if status.startswith(("2", "3")):
            yield f"- {status}: {_content(answer) or answer['description']}"
    codes = sorted({name for answer in responses.values() for name in re.findall(r"`(\w+)`:", answer["description"])})
    if codes:
        yield f"- Problems: {', '.join(map(code, codes))}"


def _content(holder: Mapping[str, Any]) -> str:
    return " or ".join(
        kind(content["schema"], _link) if media == "application/json" and "schema" in content else code(media)
        for media, content in holder.get("content", {}).items()
    )


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    seen = set()
    for name, schema in schemas.items():
        title = _VALIDATED.sub("", name)
        if _SPECS.fullmatch(name) or title in seen:
            continue
        seen.add(title)
        required = schema.get("required", ())
        rows = (
            (
                code(field),
                kind(inner, _link),
                "required" if field in required else default(inner),
                inner.get("description", ""),
            )
            for field, inner in schema.get("properties", {}).items()
        )
        fields = markdown.table(("field", "value", "default", "meaning"), rows)
        yield f"### {title}\n\n{schema.get('description', '')}\n\n{fields or kind(schema, _link)}"


def _link(name: str) -> str:
    title = _VALIDATED.sub("", name)
    return f"[{title}](spec.md)" if _SPECS.fullmatch(name) else f"[{title}](#{_anchor(title)})"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")
