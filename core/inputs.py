"""From the names in a spec, and the paths its caller gives, to a data set and a model on a device.

A spec holds names, never paths: the command line and the service say where the files behind the names lie.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from core import checkpoint, data, models
from core.attacks.reference import check_classes
from core.data.split import Split
from core.models.precision import resolve
from core.schema.errors import BadInput, DoesNotFit
from core.schema.events import Started
from core.schema.spec import AnySpec, EvaluateSpec, TrainSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run needs from outside its spec."""

    weights: Path | None = None
    """The base model's file; None for one that Temper ships."""
    data: Path | None = None
    """The data set's folder or archive; None for one that Temper knows."""
    extra_data: Path | None = None
    """The second data set's file, folder or archive, where the run trains on one."""
    workers: int | None = None
    """Processes that read a data set too large for memory; None for one per core."""
    leave_out_unusable: bool = False
    """Whether images that cannot be read or differ in size are left out, in place of ending the run."""
    device: torch.device | None = None
    """Where to compute; None for the GPU, or the CPU where there is none."""


@dataclass(frozen=True)
class Loaded:
    """A run's data and its first model, ready on the device."""

    spec: AnySpec
    model: nn.Module
    blueprint: models.Blueprint
    header: checkpoint.Header | None
    """What the base model says about itself; None for random weights."""
    base_sha256: str | None
    dataset: data.Dataset
    test: Split
    device: torch.device

    def started(self, *, train_examples: int, total_steps: int) -> Started:
        """Make the event that opens the run."""
        return Started(
            spec=self.spec,
            device=str(self.device),
            architecture=self.blueprint.architecture,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            train_examples=train_examples,
            extra_examples=0 if self.dataset.extra is None else len(self.dataset.extra),
            test_examples=len(self.test),
            total_steps=total_steps,
            precision=None if isinstance(self.spec, EvaluateSpec) else resolve(self.spec.precision, self.device),
            base_sha256=self.base_sha256,
            data_sha256=self.dataset.sha256(),
            versions=checkpoint.versions(),
            commit=checkpoint.commit(),
        )


def load(spec: AnySpec, inputs: Inputs) -> Loaded:
    """Load what a spec names. Raises BadInput, BadDataset, BadWeights, and DoesNotFit when data and model differ."""
    if inputs.weights and isinstance(spec, TrainSpec):
        raise BadInput(
            f"{inputs.weights} is given, but this run trains from random weights",
            hint="leave the weights out, or start from them with: python -m core finetune --weights ...",
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
        # Now, not after hours of training and of attacks that take any number of classes.
        check_classes(len(dataset.classes), targeted=spec.evaluation.protocol != "fast")
    header, base_sha256 = None, None
    if isinstance(spec, TrainSpec):
        blueprint = models.Blueprint(spec.architecture, dataset.shape, len(dataset.classes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = models.build(blueprint)
    else:
        path = checkpoint.find_weights(spec.base_model, inputs.weights)
        model, header = checkpoint.load(path)
        blueprint, base_sha256 = header.blueprint, checkpoint.hash_file(path)
        _check_fit(spec.base_model, blueprint, dataset)
    device = inputs.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = dataset.test.first(spec.evaluation.examples).to(device)
    # Convolutions run 1.3 to 2.5 times as fast with channels last, on the CPU too (benchmarks/epoch.py); in this layout
    # the weights alone make torch choose it, whatever the layout of the images.
    model = model.to(device).to(memory_format=torch.channels_last)
    return Loaded(spec, model, blueprint, header, base_sha256, dataset, test, device)


def _say_left_out(name: str, reason: str) -> None:
    log.info("left out %s: %s", name, reason)


def _extra_path(spec: AnySpec, inputs: Inputs) -> Path | None:
    """Find the second data set that a spec names, if any."""
    name = None if isinstance(spec, EvaluateSpec) else spec.extra_dataset
    if name and inputs.extra_data is None:
        raise BadInput(
            f"there is no path to the extra data {name!r}", hint="give it with --extra-data", field="extra_dataset"
        )
    if inputs.extra_data and not name:
        raise BadInput(
            f"{inputs.extra_data} is given, but the run names no extra data set",
            hint="name it with extra_dataset",
            field="extra_dataset",
        )
    return inputs.extra_data


def _check_fit(name: str, blueprint: models.Blueprint, dataset: data.Dataset) -> None:
    if blueprint.shape != dataset.shape:
        raise DoesNotFit(
            f"{name} takes images of {models.describe(blueprint.shape)}, the data set's are "
            f"{models.describe(dataset.shape)}",
            hint="choose a base model for this image size, or resize the images",
            field="dataset",
        )
    if blueprint.classes != len(dataset.classes):
        raise DoesNotFit(
            f"{name} tells {blueprint.classes} classes apart, the data set has {len(dataset.classes)}",
            hint="choose a data set with the base model's classes, or a base model for this data set",
            field="dataset",
        )
