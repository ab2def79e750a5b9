"""Import of third-party weights: convert them into a checkpoint, which is then a base model like any other."""

from dataclasses import dataclass
from pathlib import Path

from pydantic_core import PydanticCustomError

from core import checkpoint
from core.checkpoint import Header, Origin
from core.models import Blueprint
from core.models.normalisation import check_normalisation
from core.models.weight_files import ThirdPartyWeights, read
from core.models.weight_matching import convert, count_classes
from core.schema.catalog import DATASETS
from core.schema.errors import BadInput
from core.schema.import_spec import ImportSpec
from core.schema.model_zoo import PUBLISHED, PublishedEntry
from core.schema.radius import check_radius


@dataclass(frozen=True)
class Imported:
    """A checkpoint made of third-party weights."""

    path: Path
    """Its file."""
    sha256: str
    """Its hash."""
    header: Header
    """Its header."""
    parameters: int
    """Number of parameters of the network."""
    key: str
    """The path of the weights in the third-party file; empty for a bare state dict."""
    others: tuple[str, ...]
    """The paths of the weights in that file that were not taken."""


def import_weights(file: Path, spec: ImportSpec, output: Path) -> Imported:
    """Read the weights in `file`, safetensors or torch, and write a checkpoint to `output`.

    Raises BadWeights, with the shapes that differ, when they do not fit, and BadInput when the spec must say more.
    """
    if output.suffix != ".safetensors":
        raise BadInput(
            f"{output} is not a valid name for a checkpoint",
            hint="give a name that ends with .safetensors",
            field="output",
        )
    if checkpoint.has_header(file):
        raise BadInput(
            f"{file.name} is already a checkpoint of Temper, whose header describes it",
            hint=f"use it directly with --weights {file.name}; to describe its weights differently, import the file "
            "that it was made from",
            field="file",
        )
    published = PUBLISHED.get(spec.published)
    sha256 = checkpoint.hash_file(file)
    if published and published.sha256 and not sha256.startswith(published.sha256):
        raise BadInput(
            f"{file.name} is not the file of {published.name}: its SHA-256 begins with {sha256[:8]}, not with "
            f"{published.sha256[:8]}",
            hint=f"download it again from {published.source}, or describe it with architecture and dataset",
            field="published",
        )
    foreign = read(file, key=spec.key)
    blueprint = _blueprint(spec, published, foreign)
    _check_claim(spec, blueprint)
    model, left_out = convert(foreign, blueprint, file.name)
    origin = Origin(
        file=file.name,
        sha256=sha256,
        key=foreign.key,
        published=published.name if published else None,
        licence=published.licence if published else None,
        dataset=spec.dataset or (published.dataset if published else None),
        norm=spec.norm or (published.norm if published else None),
        eps=spec.eps or (published.eps if published else None),
        robust=published.robust if published and spec.norm is None else None,
        left_out=left_out,
    )
    header = Header(
        blueprint=blueprint,
        spec=None,
        origin=origin,
        seed=0,
        step=0,
        base_sha256=None,
        data_sha256=None,
        versions=checkpoint.versions(),
        commit=checkpoint.commit(),
    )
    checkpoint.make_folder(output.parent)
    saved = checkpoint.save_checkpoint(output, model, header)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Imported(output, saved, header, parameters, foreign.key, foreign.others)


def _blueprint(spec: ImportSpec, published: PublishedEntry | None, foreign: ThirdPartyWeights) -> Blueprint:
    """Find the network of the weights: the spec takes precedence over the file, and the file over the published entry.

    Raises BadInput where something is missing, or where spec and file contradict each other.
    """
    architecture = spec.architecture or (published.architecture if published else "")
    if not architecture:
        raise BadInput(
            "architecture is required: the weights do not name their network",
            hint="add --architecture, or --published",
            field="architecture",
        )
    dataset = DATASETS.get(spec.dataset or (published.dataset if published else ""))
    shape = tuple(spec.shape) or (dataset.shape if dataset else None)
    if shape is None:
        raise BadInput(
            "the shape of the images is required: the weights do not state it",
            hint="add --dataset, or --shape such as 3,32,32",
            field="shape",
        )
    size = _as_shape(shape)
    classes = spec.classes or (dataset.classes if dataset else None)
    classes = classes or count_classes(foreign.weights, architecture, size)
    # Weights without the last layer of this network do not fit it; the comparison of shapes reports that better.
    classes = classes or 10
    mean, std = _normalisation(spec, published, foreign)
    check_normalisation(size[0], mean, std)
    return Blueprint(architecture, size, classes, mean=mean, std=std)


def _check_claim(spec: ImportSpec, blueprint: Blueprint) -> None:
    """Refuse a claimed radius at which no classifier of such images can be robust. Raises BadInput."""
    if spec.norm is None or spec.eps is None:
        return
    try:
        check_radius(spec.norm, spec.eps, blueprint.shape)
    except PydanticCustomError as error:
        raise BadInput(
            f"eps {error.message()}", hint="give eps in pixel units of images in [0, 1]", field="eps"
        ) from error


def _as_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _normalisation(
    spec: ImportSpec, published: PublishedEntry | None, foreign: ThirdPartyWeights
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    given, held = (spec.mean, spec.std), (foreign.mean, foreign.std)
    if any(given) and any(held) and not _close(given, held):
        raise BadInput(
            f"the file normalises by mean {list(foreign.mean)} and std {list(foreign.std)}, not by "
            f"{list(spec.mean)} and {list(spec.std)}",
            hint="leave --mean and --std out",
            field="mean",
        )
    if any(given):
        return given
    if any(held) or published is None:
        return held
    return published.mean, published.std


def _close(given: tuple[tuple[float, ...], ...], held: tuple[tuple[float, ...], ...]) -> bool:
    flat, other = [[value for part in pair for value in part] for pair in (given, held)]
    return len(flat) == len(other) and all(abs(a - b) < 1e-3 for a, b in zip(flat, other, strict=True))
