"""`temper datasets` and `temper models`: what jobs can name, and adding files of one's own."""

from pathlib import Path
from typing import Annotated, Any

import typer

from client import display
from client.output import Output, show
from client.records import Dataset, Model
from client.temper import Temper

datasets = typer.Typer(help="List the data sets that a job can name; add, show and remove your own.")
models = typer.Typer(help="List the base models that a job can name; add, show and remove your own.")

Name = Annotated[str | None, typer.Option(help="What jobs are to call it; by default the file's name.")]
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Its name or id, as the list shows it.")]


@datasets.callback(invoke_without_command=True)
def list_datasets(context: typer.Context, output: Output = "text") -> None:
    """List the data sets that a job can name."""
    if context.invoked_subcommand is None:
        with Temper() as temper:
            found = list(temper.datasets())
        show(found, display.datasets_table(found), output)


@datasets.command("add")
def add_dataset(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A zip of train/<class>/* and test/<class>/*.")],
    name: Name = None,
    output: Output = "text",
) -> None:
    """Upload a data set and have it inspected. Exit with 0 only if jobs can use it."""
    with Temper() as temper, display.byte_bar() as on_progress:
        made = temper.add_dataset(file, name=name, on_progress=on_progress)
    _show_dataset(made, output)
    _exit_by(made)


@datasets.command("show")
def show_dataset(name: NameOrId, output: Output = "text") -> None:
    """Show a data set: classes, counts, what was refused, overlap of train and test."""
    with Temper() as temper:
        found = temper.dataset(name)
    _show_dataset(found, output)


@datasets.command("remove")
def remove_dataset(name: NameOrId, output: Output = "text") -> None:
    """Remove a data set of your own. Jobs that have not ended keep it."""
    with Temper() as temper:
        temper.remove_dataset(name)
    show({"removed": name}, f"{name} is removed", output)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, output: Output = "text") -> None:
    """List the base models that a job can name."""
    if context.invoked_subcommand is None:
        with Temper() as temper:
            found = list(temper.models())
        show(found, display.models_table(found), output)


@models.command("add")
def add_model(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Safetensors, or a torch file of tensors; or a checkpoint's id.")
    ],
    name: Name = None,
    architecture: Annotated[
        str | None, typer.Option(help="Its network; by default told from the weights, where only one fits.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set of the catalogue that it was trained on, which says its images.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Its images instead, such as 3,32,32.")] = None,
    norm: Annotated[str | None, typer.Option(help="The norm it is said to be robust to.")] = None,
    eps: Annotated[str | None, typer.Option(help="The radius it is said to be robust at, such as 8/255.")] = None,
    output: Output = "text",
) -> None:
    """Upload a base model, or take a checkpoint of a job, and have it inspected. Exit with 0 only if jobs can use
    it."""
    given = {"architecture": architecture, "dataset": dataset, "shape": shape, "norm": norm, "eps": eps}
    said: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with Temper() as temper, display.byte_bar() as on_progress:
        made = temper.add_model(file, name=name, on_progress=on_progress, **said)
    _show_model(made, output)
    _exit_by(made)


@models.command("show")
def show_model(name: NameOrId, output: Output = "text") -> None:
    """Show a base model: network, source, hash, what its inspection found doubtful."""
    with Temper() as temper:
        found = temper.model(name)
    _show_model(found, output)


@models.command("remove")
def remove_model(name: NameOrId, output: Output = "text") -> None:
    """Remove a base model of your own. Jobs that have not ended keep it."""
    with Temper() as temper:
        temper.remove_model(name)
    show({"removed": name}, f"{name} is removed", output)


def _show_dataset(dataset: Dataset, output: str) -> None:
    show(dataset, "\n".join(display.dataset_lines(dataset)), output)


def _show_model(model: Model, output: str) -> None:
    show(model, "\n".join(display.model_lines(model)), output)


def _exit_by(made: Dataset | Model) -> None:
    if made.status != "ready":
        raise typer.Exit(1)
