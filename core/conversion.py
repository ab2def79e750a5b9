"""Turn weights of others into a checkpoint of ours, which then is a base model like any other."""

from dataclasses import dataclass
from pathlib import Path

from core import checkpoint
from core.catalog import DATASETS
from core.checkpoint import Header, Origin
from core.errors import BadInput
from core.models import Blueprint
from core.models.foreign import Foreign, check_normalisation, convert, count_classes, read
from core.published import PUBLISHED, PublishedEntry
from core.spec import ImportSpec


@dataclass(frozen=True)
class Imported:
    """A checkpoint made from weights of others."""

    path: Path
    """Where it lies."""
    sha256: str
    """Its hash."""
    header: Header
    """What it says about itself."""
    parameters: int
    """How many parameters the network has."""
    key: str
    """Where in the file the weights were; empty for a bare state dict."""


def import_weights(file: Path, spec: ImportSpec, output: Path) -> Imported:
    """Read the weights in `file`, safetensors or torch, and write a checkpoint to `output`.

    Raises BadWeights, with a report shape by shape, when they do not fit, and BadInput for what cannot be known without
    being told.
    """
    if output.suffix != ".safetensors":
        raise BadInput(f"{output} is no name for a checkpoint", hint="let it end with .safetensors", field="output")
    published = PUBLISHED.get(spec.published)
    foreign = read(file, key=spec.key)
    blueprint = _blueprint(spec, published, foreign)
    model, left_out = convert(foreign, blueprint, file.name)
    origin = Origin(
        file=file.name,
        sha256=checkpoint.hash_file(file),
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
    sha256 = checkpoint.save_checkpoint(output, model, header)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Imported(output, sha256, header, parameters, foreign.key)


def _blueprint(spec: ImportSpec, published: PublishedEntry | None, foreign: Foreign) -> Blueprint:
    """Say which network the weights belong to: what the user says goes before what the file says, and that before what
    the catalogue says. The user and the file must not contradict each other."""
    architecture = spec.architecture or (published.architecture if published else "")
    if not architecture:
        raise BadInput(
            "which network the weights belong to is not said",
            hint="add --architecture, or --published",
            field="architecture",
        )
    dataset = DATASETS.get(spec.dataset)
    shape = tuple(spec.shape) or (dataset.shape if dataset else published.shape if published else None)
    if shape is None:
        raise BadInput(
            "which images the weights take is not said",
            hint="add --dataset, or --shape such as 3,32,32",
            field="shape",
        )
    channels, height, width = shape
    size = (channels, height, width)
    classes = spec.classes or (dataset.classes if dataset else published.classes if published else None)
    classes = classes or count_classes(foreign.weights, architecture, size)
    # Where the weights have no last layer of this network, they do not fit, which the report says better.
    classes = classes or 10
    mean, std = _normalisation(spec, published, foreign)
    check_normalisation(channels, mean, std)
    return Blueprint(architecture, size, classes, mean=mean, std=std)


def _normalisation(
    spec: ImportSpec, published: PublishedEntry | None, foreign: Foreign
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
