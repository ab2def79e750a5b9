"""The reference of job specs: fields, and the catalogue that their defaults come from."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.schemas.job_request import REQUESTS
from core.schema.catalog import ARCHITECTURES, DATASETS, FAMILIES, METHODS, MODELS
from docs.generate import markdown
from docs.generate.markdown import code
from docs.generate.schema import default, kind

_PARTS = {"Method": "method", "Evaluation": "evaluation", "JobWebhook": "webhook", "Average": "average", "AWP": "awp"}


def page() -> str:
    """Describe every field of every kind of spec."""
    schemas = {name: model.model_json_schema() for name, model in REQUESTS.items()}
    parts = {name: part for schema in schemas.values() for name, part in schema["$defs"].items()}
    models = {type_.__name__: type_ for model in REQUESTS.values() for type_ in _models(model)}
    return markdown.page(
        "Job spec",
        "A spec is the body of `POST /jobs`, the file that `python -m core` reads, and part of every checkpoint. "
        "`priority` and `webhook` are for jobs of the service alone. The "
        'smallest one is `{"base_model": "digits-cnn-linf"}`. A default that depends on other fields, such as the data '
        "set, is filled in when the spec is validated; the answer shows it. An unknown field is refused.",
        *(_section(f"kind `{name}`", schemas[name], model) for name, model in REQUESTS.items()),
        *(_section(code(_PARTS.get(name, name)), part, models[name]) for name, part in parts.items() if name in models),
        *_catalogue(),
    )


def _section(title: str, schema: dict[str, Any], model: type[BaseModel]) -> str:
    return f"## {title}\n\n{schema.get('description', '')}\n\n{_fields(model, schema)}"


def _fields(model: type[BaseModel], schema: dict[str, Any]) -> str:
    rows = [
        (code(name), kind(described, _mention), _default(model.model_fields[name], described), described["description"])
        for name, described in schema["properties"].items()
    ]
    return markdown.table(("field", "value", "default", "meaning"), rows)


def _default(field: FieldInfo, schema: dict[str, Any]) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None and "default" not in schema:
        return code("{}") if field.default_factory in (dict, tuple, list) else "depends"
    return default(schema)


def _mention(name: str) -> str:
    return f"[{_PARTS[name]}](#{_PARTS[name]})" if name in _PARTS else code(name)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Go through the models that a model's fields name."""
    for field in model.model_fields.values():
        for type_ in _types(field.annotation):
            if isinstance(type_, type) and issubclass(type_, BaseModel):
                yield type_
                yield from _models(type_)


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _types(inner)


def _catalogue() -> Sequence[str]:
    return (
        "## Methods",
        markdown.table(
            ("method", "what it is", "norms", "options"),
            (
                (code(entry.name), entry.description, ", ".join(entry.norms or ("one",)), ", ".join(entry.options))
                for entry in METHODS.values()
            ),
        ),
        "## Data sets",
        markdown.table(
            ("data set", "what it is", "shape", "eps", "epochs", "batch size"),
            (
                (
                    code(entry.name),
                    entry.description,
                    " x ".join(map(str, entry.shape)),
                    ", ".join(f"{norm} {eps:.4g}" for norm, eps in entry.eps.items()),
                    str(entry.epochs),
                    str(entry.batch_size),
                )
                for entry in DATASETS.values()
            ),
        ),
        "## Architectures",
        markdown.table(
            ("architecture", "what it is", "optimiser", "learning rate"),
            (
                (code(entry.name), entry.description, entry.optimizer, f"{entry.learning_rate:g}")
                for entry in ARCHITECTURES.values()
            ),
        ),
        "Names of networks that a list cannot hold:",
        markdown.table(
            ("names", "what they are", "learning rate"),
            ((code(entry.name), entry.description, f"{entry.learning_rate:g}") for entry in FAMILIES.values()),
        ),
        "## Shipped base models",
        markdown.table(
            ("base model", "what it is", "data set", "robust to"),
            (
                (code(entry.name), entry.description, entry.dataset, f"{entry.norm} {entry.eps:.4g}")
                for entry in MODELS.values()
            ),
        ),
    )
