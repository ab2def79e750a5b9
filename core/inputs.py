"""Load the data set and the model that a spec names.

A spec has names, never paths: the command line and the service give the paths of the files beside it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint, data, models
from core.attacks import frozen
from core.attacks.arguments import count_classes
from core.attacks.reference import check_classes
from core.data.cifar10_c import CorruptedFiles
from core.data.draws import order_test_points, read_test_points
from core.data.split import Split
from core.data.tensors import GivenData, read_given, with_classes
from core.models import own
from core.models.heads import renew_head
from core.models.precision import resolve
from core.models.weight_files import read as read_weights
from core.models.weight_matching import load_into_own
from core.schema.catalog import DATASETS, MODELS, OWN_CLASS
from core.schema.errors import BadInput, DoesNotFit
from core.schema.events import Started, Warned
from core.schema.progress import WarningRecord
from core.schema.spec import NEW_HEAD, AnySpec, EvaluateSpec, FineTuneSpec, TrainSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The files, folders, objects and device of a run, which its spec does not name."""

    weights: Path | None = None
    """File of the base model; None for one that Temper ships."""
    model: nn.Module | None = None
    """A network of the user's own, which maps images in [0, 1] to logits; a run works on a copy. With `weights`, these
    are loaded into it. None for a network that Temper builds."""
    data: Path | None = None
    """Folder or archive of the data set; None for one that Temper knows."""
    tensors: GivenData | None = None
    """Images and labels in memory in place of `data`, as `fine_tune` takes them."""
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
    """Header of the base model; None for random weights, and for a network of the user's own without a checkpoint."""
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
    dataset = _load_data(spec, inputs) if inputs.tensors is None else _take_data(spec, inputs, inputs.tensors)
    if spec.evaluation.engine == "reference":
        # Checked before hours of training: the reference attacks need a minimum number of classes.
        check_classes(len(dataset.classes), targeted=spec.evaluation.protocol != "fast")
    header, base_sha256 = None, None
    if inputs.model is not None:
        model, blueprint, header, base_sha256 = _take_model(spec, inputs, inputs.model, dataset)
        if isinstance(inputs.tensors, tuple) and not _renews(spec):
            # Labels in tensors name no class, and the model may know some that none of them has.
            dataset = with_classes(dataset, blueprint.classes)
    elif isinstance(spec, TrainSpec):
        blueprint = models.Blueprint(
            spec.architecture, dataset.shape, len(dataset.classes), preprocessing=spec.preprocessing
        )
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the generators of all GPUs, too.
            torch.default_generator.manual_seed(spec.seed)
            model = models.build(blueprint)
    else:
        path = checkpoint.base_model_file(spec.base_model, inputs.weights)
        model, header = checkpoint.load(path)
        blueprint, base_sha256 = header.blueprint, checkpoint.hash_file(path)
        if isinstance(inputs.tensors, tuple) and not _renews(spec):
            dataset = with_classes(dataset, blueprint.classes)
    if _renews(spec):
        renew_head(model, blueprint.shape, len(dataset.classes), seed=spec.seed, name=blueprint.architecture)
        blueprint = replace(blueprint, classes=len(dataset.classes))
    _check_fit(spec, blueprint, dataset)
    dataset = _warned_of_other_preprocessing(spec, header, dataset)
    blueprint = replace(blueprint, preprocessing=spec.preprocessing)
    corrupted = _open_corruptions(spec, inputs, dataset)
    device = inputs.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    test = read_test_points(dataset.test, spec.evaluation.examples, spec.split).to(device)
    # Convolutions run 1.3 to 2.5 times as fast with channels last, also on the CPU (benchmarks/epoch.py). The layout of
    # the weights is enough: torch then converts the images.
    model = model.to(device).to(memory_format=torch.channels_last)
    return Loaded(spec, model, blueprint, header, base_sha256, dataset, test, device, corrupted)


def _load_data(spec: AnySpec, inputs: Inputs) -> data.Dataset:
    return data.load(
        spec.dataset,
        inputs.data,
        extra=_extra_path(spec, inputs),
        workers=inputs.workers,
        preprocessing=spec.preprocessing,
        test_share=spec.test_share,
        leave_out=_say_left_out if inputs.leave_out_unusable else None,
    )


def _take_data(spec: AnySpec, inputs: Inputs, given: GivenData) -> data.Dataset:
    """Make the data set of what is in memory. Raises BadInput, and DoesNotFit where the spec names another one."""
    if inputs.data is not None or _extra_path(spec, inputs) is not None:
        raise BadInput(
            f"images in memory are given, and the path {inputs.data or inputs.extra_data} as well",
            hint="leave the path out, or load it with core.data.load and put all into one core.data.Dataset",
            field="data",
        )
    dataset = read_given(given, seed=spec.seed)
    entry = DATASETS.get(spec.dataset)
    if entry and (entry.shape != dataset.shape or entry.classes < len(dataset.classes)):
        raise DoesNotFit(
            f"the spec names {entry.name}, which has {models.describe(entry.shape)} in {entry.classes} classes, but "
            f"the images given are {models.describe(dataset.shape)} in {len(dataset.classes)} classes",
            hint="give the data set another name in the spec: any will do",
            field="dataset",
        )
    return dataset


def _renews(spec: AnySpec) -> bool:
    return isinstance(spec, FineTuneSpec) and spec.head == "new"


def _take_model(
    spec: AnySpec, inputs: Inputs, given: nn.Module, dataset: data.Dataset
) -> tuple[nn.Module, models.Blueprint, checkpoint.Header | None, str]:
    """Copy the user's network, load the weights given for it, and find its classes by trying an image.

    Returns it with its blueprint, the header where the weights are a checkpoint of Temper's, and the hash of the
    weights' file, or of the weights that it came with. Raises BadInput, BadWeights and DoesNotFit.
    """
    _check_names(spec, given)
    model, header = own.copy_of(given), None
    if inputs.weights and checkpoint.has_header(inputs.weights):
        model, header = checkpoint.load(inputs.weights, model=model)
    elif inputs.weights:
        load_into_own(model, read_weights(inputs.weights), inputs.weights.name)
    sha256 = checkpoint.hash_file(inputs.weights) if inputs.weights else checkpoint.hash_weights(model)
    image = dataset.test.first(1).images()
    with frozen(model):
        classes = count_classes(model, image)
        with torch.no_grad():
            answer = model(image)
    if not isinstance(spec, EvaluateSpec) and not (isinstance(answer, Tensor) and answer.dim() == 2):
        raise BadInput(
            f"a {type(given).__name__} does not return its logits alone, which training needs",
            hint="wrap it in a module whose forward returns a tensor of logits (images, classes)",
            field="model",
        )
    blueprint = models.Blueprint(own.architecture_of(given), dataset.shape, classes)
    return model, blueprint, header, sha256


def _check_names(spec: AnySpec, given: nn.Module) -> None:
    """Refuse a spec that names a network which is not the one that is given. Raises BadInput."""
    name = type(given).__name__
    if isinstance(spec, TrainSpec):
        if not spec.architecture.startswith(OWN_CLASS):
            raise BadInput(
                f"a {name} is given, but the spec names the network {spec.architecture}",
                hint=f"set architecture to {own.architecture_of(given)}, or leave the model out",
                field="architecture",
            )
    elif spec.base_model in MODELS:
        raise BadInput(
            f"a {name} is given, but the spec names {spec.base_model}, which Temper ships",
            hint="give your model another name in base_model: any will do; or leave the model out",
            field="base_model",
        )


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


def _warned_of_other_preprocessing(
    spec: AnySpec, header: checkpoint.Header | None, dataset: data.Dataset
) -> data.Dataset:
    """Add a warning where the base model was made for images that are brought to their size in another way."""
    before, now = None if header is None else header.blueprint.preprocessing, spec.preprocessing
    if isinstance(spec, TrainSpec) or before is None or before.image_size is None or before == now:
        return dataset
    warning = WarningRecord(
        code="preprocessing_differs",
        message=f"{spec.base_model} was made with images {before.describe()}; this run has them {now.describe()}",
        remedy="give the same preprocessing, unless you mean to change it",
    )
    return replace(dataset, warnings=(*dataset.warnings, warning))


def _check_fit(spec: AnySpec, blueprint: models.Blueprint, dataset: data.Dataset) -> None:
    name = blueprint.architecture if isinstance(spec, TrainSpec) else spec.base_model
    if blueprint.shape != dataset.shape:
        raise DoesNotFit(
            f"{name} takes images of {models.describe(blueprint.shape)}, but those of the data set are "
            f"{models.describe(dataset.shape)}",
            hint=f"set preprocessing.image_size to {blueprint.shape[2]}, or choose a base model for this image size",
            field="dataset",
        )
    if blueprint.classes != len(dataset.classes):
        raise DoesNotFit(
            f"{name} has {blueprint.classes} classes, but the data set has {len(dataset.classes)}",
            hint=_remedy_of_classes(spec, len(dataset.classes)),
            field="head" if isinstance(spec, FineTuneSpec) else "dataset",
        )


def _remedy_of_classes(spec: AnySpec, classes: int) -> str:
    match spec:
        case FineTuneSpec():
            return NEW_HEAD
        case TrainSpec():
            return f"build it with {classes} classes"
        case EvaluateSpec():
            return "choose a data set with the base model's classes, or fine-tune it first, with head new"
