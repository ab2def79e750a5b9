"""The options of each command, beside the fields of its spec. `core.cli.parser` makes arguments of them."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from core.schema.catalog import Kind
from core.schema.dataset_spec import DatasetSpec
from core.schema.import_spec import ImportSpec
from core.schema.record import Record
from core.schema.spec import SPECS

_FACTORY_NAME = re.compile(r"[\w.]+:[\w.]+")


def _read_path(text: Any) -> Any:
    # An empty path would mean the current folder.
    if text == "" or (isinstance(text, str) and "\0" in text):
        raise PydanticCustomError(
            "not_a_path",
            "{text} is not a valid path: name a file or folder, or leave the option out",
            {"text": repr(text)},
        )
    return text


def _read_count(text: Any) -> Any:
    if isinstance(text, str) and not text.isdecimal():
        raise PydanticCustomError("not_an_integer", "{text} is not an integer of at least 0", {"text": repr(text)})
    return text


def _read_shard(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise PydanticCustomError("not_a_shard", "{text} is not a shard such as 1/4", {"text": repr(text)})
    return int(number), int(count)


def _read_factory_name(text: Any) -> Any:
    if isinstance(text, str) and not _FACTORY_NAME.fullmatch(text):
        raise PydanticCustomError(
            "not_a_factory",
            "{text} names no class or function: write it as package.module:name, such as my_networks:Net",
            {"text": repr(text)},
        )
    return text


AnyPath = Annotated[Path, BeforeValidator(_read_path)]
FactoryName = Annotated[str, BeforeValidator(_read_factory_name)]
Count = Annotated[int, BeforeValidator(_read_count)]
Shard = Annotated[tuple[int, int], BeforeValidator(_read_shard)]


class Options(Record):
    """The options that every command has."""

    positional: ClassVar[str] = "file"
    """The field that is given without a name."""

    command: str
    """The name of the command."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """The fields of the spec that are given as options, by dotted name."""
    json_lines: bool = Field(default=False, alias="json")
    """print events, or what was written, as JSON lines"""
    until_stdin_closes: bool = False
    """end when stdin does: for a command that a program starts"""


class FolderOptions(Options):
    """The options of a command that writes into a folder."""

    output: AnyPath = Field(default_factory=lambda data: Path("runs") / data["command"])
    """folder for what the command writes; by default the command's name in the folder runs"""


class RunOptions(FolderOptions):
    """The options of every run."""

    positional: ClassVar[str] = "spec"

    command: Kind
    """What the run does."""
    spec: AnyPath | None = None
    """a JSON file with the spec"""
    weights: AnyPath | None = None
    """the base model's file, unless it is shipped; not for train"""
    model: FactoryName | None = None
    """a network of your own, as package.module:name of a class or function that is called without arguments"""
    data: AnyPath | None = None
    """the data set's folder, archive, .npz or Parquet file, unless it is built in"""
    leave_out_unusable: bool = False
    """leave out images that cannot be read or differ in size, instead of ending the run"""
    corruptions: AnyPath | None = None
    """folder of the official files of CIFAR-10-C, in place of corruptions that the run makes"""
    workers: Count | None = None
    """processes that read a data set too large for memory; by default one per core"""
    device: str | None = None
    """where to compute, such as cpu or cuda:1"""


class TrainingOptions(RunOptions):
    """The options of a run that trains."""

    extra_data: AnyPath | None = None
    """a second labelled set to train on: a folder, an archive, a .npz or a Parquet file"""
    restart: bool = False
    """start from the beginning even if the output folder holds an interrupted run"""


class EvaluationOptions(RunOptions):
    """The options of a run that only evaluates."""

    shard: Shard | None = None
    """evaluate only shard I of N, written I/N, of the logical batches; merge combines the reports"""


class DownloadOptions(Options):
    """Download a data set to where runs look for it, for a run on a machine or in a process that cannot."""

    positional: ClassVar[str] = "dataset"

    dataset: Literal["cifar10", "cifar100"]
    """cifar10 or cifar100"""


class MergeOptions(FolderOptions):
    """Merge the reports of an evaluation's shards into the report of the whole evaluation."""

    positional: ClassVar[str] = "folders"

    folders: tuple[AnyPath, ...]
    """the output folders of the shards, or their report files"""


class ImportOptions(Options):
    """Convert third-party weights into a checkpoint that a run can start from."""

    file: AnyPath | None = None
    """the weights: a safetensors file, or a torch file of tensors"""
    output: AnyPath | None = None
    """the checkpoint to write; by default the name of FILE with .safetensors"""
    list_published: bool = Field(default=False, alias="list")
    """list the published weights that are known by name"""


class InspectOptions(FolderOptions):
    """The options of the inspection of an untrusted file."""

    file: AnyPath
    """the file to inspect"""
    most_bytes: Count | None = None
    """limit on the bytes of the file, unpacked and decoded"""
    most_seconds: Count | None = None
    """limit on the seconds"""
    most_memory: Count | None = None
    """limit on the bytes of memory"""


class InspectDatasetOptions(InspectOptions):
    """Inspect an untrusted data set, a zip or tar archive, a .npz file or a Parquet file, within limits."""


class InspectModelOptions(InspectOptions):
    """Convert untrusted weights, a safetensors or torch file of tensors, into a checkpoint, within limits."""


AnyOptions = (
    TrainingOptions
    | EvaluationOptions
    | MergeOptions
    | DownloadOptions
    | ImportOptions
    | InspectDatasetOptions
    | InspectModelOptions
)

COMMANDS: dict[str, tuple[type[AnyOptions], type[Record] | None]] = {
    "finetune": (TrainingOptions, SPECS["finetune"]),
    "train": (TrainingOptions, SPECS["train"]),
    "evaluate": (EvaluationOptions, SPECS["evaluate"]),
    "merge": (MergeOptions, None),
    "download": (DownloadOptions, None),
    "import-weights": (ImportOptions, ImportSpec),
    "inspect-dataset": (InspectDatasetOptions, DatasetSpec),
    "inspect-model": (InspectModelOptions, ImportSpec),
}
"""Each command's options, and the spec whose fields it takes as options too."""
