"""Load the data set and the model that a spec names.

A spec has names, never paths: the command line and the service give the paths of the files beside it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint, data, models
from core.attacks.reference import check_classes
from core.data.cifar10_c import CorruptedFiles
from core.data.draws import order_test_points, read_test_points
from core.data.split import Split
from core.models.precision import resolve
from core.schema.errors import BadInput, DoesNotFit
from core.schema.events import Started, Warned
from core.schema.spec import AnySpec, EvaluateSpec, TrainSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The files, folders and device of a run, which its spec does not name."""

    weights: Path | None = None
    """File of the base model; None for one that Temper ships."""
    data: Path | None = None
    """Folder or archive of the data set; None for one that Temper knows."""
    extra_data: Path | None = None
    """File, folder or archive of the extra data; None where the run uses none."""
    workers: int | None = None
    """Processes that read a streamed data set; None for one per core."""
    corruptions: Path | None = None
    """Folder of the official files of CIFAR-10-C; None for corruptions that the run makes."""
    leave_out_unusable: bool = False
    """Whether to leave out images that cannot be read or differ in size, up to half of them, instead of raising an
    error."""
    device: torch.device | None = None
    """The device to compute on; None for the GPU, or the CPU where there is no GPU."""


@dataclass(frozen=True)
class Loaded:
    """The data and the initial model of a run, on its device."""

    spec: AnySpec
    model: nn.Module
    blueprint: models.Blueprint
    header: checkpoint.Header | None
    """Header of the base model; None for random weights."""
    base_sha256: str | None
    dataset: data.Dataset
    test: Split
    device: torch.device
    corrupted: CorruptedFiles | None
    """The official files of common corruptions; None where the run makes them."""

    @property
    def test_indices(self) -> Tensor:
        """(examples,): where the test points lie in the test part."""
        return order_test_points(self.dataset.test, self.spec.split)[: len(self.test)]

    def started(self, *, train_examples: int, total_steps: int, held_out_examples: int = 0) -> Started:
        """Build the first event of the run."""
        return Started(
            spec=self.spec,
            device=str(self.device),
            architecture=self.blueprint.architecture,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            train_examples=train_examples,
            extra_examples=0 if self.dataset.extra is None else len(self.dataset.extra),
            test_examples=len(self.test),
            held_out_examples=held_out_examples,
            unread=self.dataset.unread,
            total_steps=total_steps,
            precision=None if isinstance(self.spec, EvaluateSpec) else resolve(self.spec.precision, self.device),
            base_sha256=self.base_sha256,
            data_sha256=self.dataset.sha256(),
            versions=checkpoint.versions(),
            commit=checkpoint.commit(),
        )

    def warnings(self) -> Iterator[Warned]:
        """Yield the reasons to doubt the data set."""
        for warning in self.dataset.warnings:
            yield Warned(**warning.model_dump())

    def new_warnings(self) -> Iterator[Warned]:
        """Yield a warning for each image that could not be read since the last call."""
        for warning in self.dataset.new_warnings():
            yield Warned(**warning.model_dump())


def load(spec: AnySpec, inputs: Inputs) -> Loaded:
    """Load the data set and the model of a spec onto the device.

    Raises BadInput, BadDataset, BadWeights, and DoesNotFit when the model takes other images or classes than the data.
    """
    if inputs.weights and isinstance(spec, TrainSpec):
        raise BadInput(
            f"{inputs.weights} is given, but this run trains from random weights",
            hint="leave the weights out, or fine-tune them with: python -m core finetune --weights ...",
            field="weights",
        )
    dataset = data.load(
        spec.dataset,
        inputs.data,
        extra=_extra_path(spec, inputs),
        workers=inputs.workers,
        interpolation=spec.evaluation.interpolation,
        leave_out=_say_left_out if inputs.leave_out_unusable else None,
    )
    if spec.evaluation.engine == "reference":
        # Checked before hours of training: the reference attacks need a minimum number of classes.
        check_classes(len(dataset.classes), targeted=spec.evaluation.protocol != "fast")
    header, base_sha256 = None, None
    if isinstance(spec, TrainSpec):
        blueprint = models.Blueprint(spec.architecture, dataset.shape, len(dataset.classes))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the generators of all GPUs, too.
            torch.default_generator.manual_seed(spec.seed)
            model = models.build(blueprint)
    else:
        path = checkpoint.base_model_file(spec.base_model, inputs.weights)
        model, header = checkpoint.load(path)
        blueprint, base_sha256 = header.blueprint, checkpoint.hash_file(path)
        _check_fit(spec.base_model, blueprint, dataset)
    corrupted = _open_corruptions(spec, inputs, dataset)
    device = inputs.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = read_test_points(dataset.test, spec.evaluation.examples, spec.split).to(device)
    # Convolutions run 1.3 to 2.5 times as fast with channels last, also on the CPU (benchmarks/epoch.py). The layout of
    # the weights is enough: torch then converts the images.
    model = model.to(device).to(memory_format=torch.channels_last)
    return Loaded(spec, model, blueprint, header, base_sha256, dataset, test, device, corrupted)


def _say_left_out(name: str, reason: str) -> None:
    log.info("left out %s: %s", name, reason)


def _extra_path(spec: AnySpec, inputs: Inputs) -> Path | None:
    """Return the path of the extra data; None where the spec names none."""
    name = None if isinstance(spec, EvaluateSpec) else spec.extra_dataset
    if name and inputs.extra_data is None:
        raise BadInput(
            f"the path of the extra data {name!r} is missing", hint="give it with --extra-data", field="extra_dataset"
        )
    if inputs.extra_data and not name:
        raise BadInput(
            f"{inputs.extra_data} is given, but the spec names no extra data set",
            hint="name it with extra_dataset",
            field="extra_dataset",
        )
    return inputs.extra_data


def _open_corruptions(spec: AnySpec, inputs: Inputs, dataset: data.Dataset) -> CorruptedFiles | None:
    """Open the files of common corruptions, and check them; None where the run has none."""
    if inputs.corruptions is None:
        return None
    asked = spec.evaluation.unseen
    names = [threat.corruption for threat in asked.threats if threat.corruption] if asked else []
    if not names:
        raise BadInput(
            f"{inputs.corruptions} is given, but the spec asks for no common corruption",
            hint="name some with evaluation.unseen, such as the preset corruptions",
            field="corruptions",
        )
    files = CorruptedFiles.open(inputs.corruptions, names)
    if dataset.shape != files.shape:
        raise BadInput(
            f"the files in {inputs.corruptions} have images of {models.describe(files.shape)}, but those of the data "
            f"set are {models.describe(dataset.shape)}",
            hint="leave --corruptions out: then the run makes the corrupted images",
            field="corruptions",
        )
    test = dataset.test.first(len(dataset.test))
    files.check_order(test.labels, test.images())
    return files


def _check_fit(name: str, blueprint: models.Blueprint, dataset: data.Dataset) -> None:
    if blueprint.shape != dataset.shape:
        raise DoesNotFit(
            f"{name} takes images of {models.describe(blueprint.shape)}, but those of the data set are "
            f"{models.describe(dataset.shape)}",
            hint="choose a base model for this image size, or resize the images",
            field="dataset",
        )
    if blueprint.classes != len(dataset.classes):
        raise DoesNotFit(
            f"{name} has {blueprint.classes} classes, but the data set has {len(dataset.classes)}",
            hint="choose a data set with the base model's classes, or a base model for this data set",
            field="dataset",
        )
