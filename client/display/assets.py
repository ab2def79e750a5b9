"""Data sets, models, methods and threats."""

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.markup import escape

from app.schemas.catalogue import Dataset, Method, Model, Threat
from client.display.screen import table_of
from core.schema.preprocessing import as_options


def models_table(models: Iterable[Model]) -> RenderableType:
    """Show base models, one per line."""
    table = table_of("name", "network", "data set", "robust to", "description")
    for model in models:
        robust_to = f"{model.norm} {model.eps:g}" if model.norm and model.eps else ""
        name = escape(_named(model))
        table.add_row(name, model.architecture or "", model.dataset or "", robust_to, escape(model.description))
    return table


def datasets_table(datasets: Iterable[Dataset]) -> RenderableType:
    """Show data sets, one per line."""
    table = table_of("name", "images", "classes", "default eps", "description")
    for dataset in datasets:
        images = " x ".join(map(str, dataset.shape or ()))
        eps = ", ".join(f"{norm} {radius:.4g}" for norm, radius in dataset.eps.items())
        table.add_row(escape(_named(dataset)), images, str(dataset.classes or ""), eps, escape(dataset.description))
    return table


def methods_table(methods: Iterable[Method]) -> RenderableType:
    """Show training methods, one per line."""
    table = table_of("name", "attacks by default", "description")
    for method in methods:
        norms = "the job says" if method.norms is None else ", ".join(method.norms) or "nothing"
        table.add_row(method.id, norms, escape(method.description))
    return table


def threats_table(threats: Iterable[Threat]) -> RenderableType:
    """Show threats, one per line."""
    table = table_of("name", "default budgets", "what a budget counts", "presets", "description")
    for threat in threats:
        budgets = ", ".join(f"{budget:g}" for budget in threat.budgets)
        table.add_row(threat.id, budgets, threat.unit, ", ".join(threat.presets), escape(threat.description))
    return table


def dataset_lines(dataset: Dataset) -> Iterator[str]:
    """Describe a data set."""
    yield from _status_lines(dataset)
    if dataset.shape:
        yield f"  images {' x '.join(map(str, dataset.shape))}, {dataset.classes} classes"
        held_out = f", {dataset.held_out_examples:,} held out" if dataset.held_out_examples else ""
        drawn = f" ({dataset.test_share:.0%} of each class, drawn)" if dataset.test_share else ""
        tested = f"{dataset.test_examples or 0:,} for testing{drawn}"
        yield f"  {dataset.train_examples or 0:,} for training, {tested}{held_out}"
    if dataset.preprocessing.image_size:
        yield f"  brought to {dataset.preprocessing.describe()}"
    if dataset.proposal:
        yield f"  images differ in size; to use all of them, add {as_options(dataset.proposal)}"
    if dataset.refused:
        yield f"  {dataset.refused:,} images are refused and no job uses them: the report gives the reasons"
    if dataset.unread:
        yield f"  {dataset.unread:,} files are not read: the report gives the reasons"
    if dataset.repeated:
        yield f"  {dataset.repeated:,} images are repeated within their part"
    yield from (escape(f"  warning: {warning.text}") for warning in dataset.warnings)


def model_lines(model: Model) -> Iterator[str]:
    """Describe a base model."""
    yield from _status_lines(model)
    if model.architecture and model.shape:
        images = f"images {' x '.join(map(str, model.shape))}, {model.classes} classes"
        yield f"  {model.architecture}, {images}"
    if model.other_keys:
        others = escape(" or --key ".join(model.other_keys))
        yield f"  has the weights under {escape(model.key or 'no key')}; the file has others: add --key {others}"
    if model.alternatives:
        yield (
            f"  its weights do not tell it from {', '.join(model.alternatives)}: if it is one of these, its accuracy "
            "is low; add --architecture NAME"
        )
    if model.norm and model.eps:
        yield f"  declared robust to {model.norm} at {model.eps:.4g}"
    if model.sha256:
        yield f"  sha256 {model.sha256}"
    if model.made_by:
        yield f"  made by {model.made_by.job}, checkpoint {model.made_by.checkpoint}"
    yield from (escape(f"  warning: {warning.text}") for warning in model.warnings)


def _status_lines(asset: Dataset | Model) -> Iterator[str]:
    yield escape(f"{asset.name} is {asset.status}: {asset.description}")
    if asset.failure:
        yield escape(f"  {asset.failure.message}\n  {asset.failure.hint}")


def _named(asset: Dataset | Model) -> str:
    """Write the name, and the status if jobs cannot use it."""
    return asset.name if asset.status == "ready" else f"{asset.name} ({asset.status})"
