"""`temper datasets`, `temper models` and `temper upload`: what jobs can name, and files of the project's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from client.cli.output import Output, connect, show
from core.schema.exit_status import ExitStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.schemas.catalogue import Dataset, Model
    from client.temper import Temper

datasets = typer.Typer(help="List the data sets that a job can name; add, show and remove your own.")
models = typer.Typer(help="List the base models that a job can name; add, show and remove your own.")

Name = Annotated[str | None, typer.Option(help="The name that jobs use; by default the file's without its suffix.")]
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Its name or id, as the list shows it.")]


@datasets.command("add")
def add_dataset(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A zip or tar of train/<class>/* and test/<class>/*, a .npz or Parquet file, or a folder of such.",
        ),
    ],
    name: Name = None,
    image_size: Annotated[
        int | None,
        typer.Option("--preprocessing.image-size", help="Height and width to bring images to that differ in size."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option("--preprocessing.resize", help="crop: the centre; pad: with black borders; stretch: each side."),
    ] = None,
    shorter_side: Annotated[
        int | None,
        typer.Option(
            "--preprocessing.shorter-side",
            help="With crop, what the shorter side is resized to first; by default the image size.",
        ),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option("--preprocessing.interpolation", help="The filter that resizes images: bilinear or bicubic."),
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(help="The share of each class to draw as the test part, such as 0.2, if there is none."),
    ] = None,
    output: Output = "text",
) -> None:
    """Upload a data set and have it inspected. Exit with 0 only if jobs can use it."""
    from client.display.screen import byte_bar

    given = {
        "image_size": image_size,
        "resize": resize,
        "shorter_side": shorter_side,
        "interpolation": interpolation,
    }
    preprocessing = {field: value for field, value in given.items() if value is not None}
    declared: dict[str, Any] = {"preprocessing": preprocessing} if preprocessing else {}
    if test_share is not None:
        declared["test_share"] = test_share
    with connect() as temper, byte_bar() as on_progress:
        made = temper.datasets.add(file, name=name, on_progress=on_progress, **declared)
    show(made, _describe_dataset, output)
    _exit_by(made)


@models.command("add")
def add_model(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Safetensors, or a torch file of tensors; or a checkpoint's id.")
    ],
    name: Name = None,
    architecture: Annotated[
        str | None, typer.Option(help="Its network; by default the only one whose weights have these names and shapes.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set it was trained on, which determines shape and classes.")
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(help="Its name in RobustBench, which gives network, data set, normalisation and robustness."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Its images instead, such as 3,32,32.")] = None,
    classes: Annotated[int | None, typer.Option(help="Its number of classes, if the data set does not say it.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="Per channel, the mean subtracted from images in [0, 1], such as 0.49,0.48,0.45.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, the standard deviation they are divided by.")] = None,
    norm: Annotated[str | None, typer.Option(help="The norm it is declared to be robust to.")] = None,
    eps: Annotated[str | None, typer.Option(help="The radius it is declared to be robust at, such as 8/255.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Where in the file its weights are, such as state_dict; averaged ones by default."),
    ] = None,
    output: Output = "text",
) -> None:
    """Upload a base model, or take a checkpoint of a job, and have it inspected. Exit with 0 only if jobs can use
    it."""
    from client.display.screen import byte_bar

    given = {
        "architecture": architecture,
        "dataset": dataset,
        "published": published,
        "shape": shape,
        "classes": classes,
        "mean": mean,
        "std": std,
        "norm": norm,
        "eps": eps,
        "key": key,
    }
    declared: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with connect() as temper, byte_bar() as on_progress:
        made = temper.models.add(file, name=name, on_progress=on_progress, **declared)
    show(made, _describe_model, output)
    _exit_by(made)


def _add_list_show_remove(
    group: typer.Typer,
    plural: str,
    what: str,
    *,
    details: str,
    resource: "Callable[[Temper], Any]",
    table: Callable[[Any], Any],
    describe: Callable[[Any], Any],
) -> None:
    """Add the commands that data sets and models have in common."""

    @group.callback(invoke_without_command=True, help=f"List the {plural} that a job can name; add, show, remove.")
    def list_or_more(context: typer.Context, output: Output = "text") -> None:
        if context.invoked_subcommand is None:
            list_all(output)

    @group.command("list", help=f"List the {plural} that a job can name.")
    def list_all(output: Output = "text") -> None:
        with connect() as temper:
            found = list(resource(temper).list())
        show(found, table, output)

    @group.command("show", help=f"Show a {what}: {details}.")
    def show_one(name: NameOrId, output: Output = "text") -> None:
        with connect() as temper:
            found = resource(temper).get(name)
        show(found, describe, output)

    @group.command("remove", help=f"Remove a {what} of your own. Jobs that have not ended keep it.")
    def remove(name: NameOrId, output: Output = "text") -> None:
        with connect() as temper:
            resource(temper).remove(name)
        show({"removed": name}, lambda _: f"{name} is removed", output)


def _dataset_rows(found: "list[Dataset]") -> "RenderableType":
    from client.display.assets import datasets_table

    return datasets_table(found)


def _model_rows(found: "list[Model]") -> "RenderableType":
    from client.display.assets import models_table

    return models_table(found)


def _describe_dataset(dataset: "Dataset") -> "RenderableType":
    from client.display.assets import dataset_lines

    return "\n".join(dataset_lines(dataset))


def _describe_model(model: "Model") -> "RenderableType":
    from client.display.assets import model_lines

    return "\n".join(model_lines(model))


_add_list_show_remove(
    datasets,
    "data sets",
    "data set",
    details="classes, number of images, files that are not read, images that occur twice, warnings",
    resource=lambda temper: temper.datasets,
    table=_dataset_rows,
    describe=_describe_dataset,
)
_add_list_show_remove(
    models,
    "base models",
    "base model",
    details="network, source, hash, warnings of its inspection",
    resource=lambda temper: temper.models,
    table=_model_rows,
    describe=_describe_model,
)


def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to send.")],
    purpose: Annotated[Literal["dataset", "model"], typer.Option(help="What the file is for.")],
    name: Annotated[str | None, typer.Option(help="Its name in the service; by default its own.")] = None,
    output: Output = "text",
) -> None:
    """Send a file in parts and wait until it is verified. Run the command again to continue an upload that broke
    off."""
    from client.display.screen import byte_bar

    with connect() as temper, byte_bar() as on_progress:
        sent = temper.uploads.send(file, purpose=purpose, name=name, on_progress=on_progress)
    show(
        sent, lambda sent: f"{sent.id} is {sent.status}: {sent.filename}, {sent.bytes:,} bytes, sha256 checked", output
    )


def methods(output: Output = "text") -> None:
    """List the training methods that a job can name."""
    from client.display.assets import methods_table

    with connect() as temper:
        found = list(temper.methods.list())
    show(found, methods_table, output)


def threats(output: Output = "text") -> None:
    """List the threats that evaluation.unseen of a job can name."""
    from client.display.assets import threats_table

    with connect() as temper:
        found = list(temper.threats.list())
    show(found, threats_table, output)


def _exit_by(made: "Dataset | Model") -> None:
    if made.status != "ready":
        raise typer.Exit(ExitStatus.FAILED)
