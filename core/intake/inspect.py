"""The inspection of a file that a stranger has uploaded: is it a data set or a base model, and what is in it?

Everything that opens such a file runs here, in a process of its own under `core.sandbox`. What a data set's report
refuses, a run with `--leave-out-unusable` does not see either: both read by `core.data.image_folder`.
"""

import hashlib
import io
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from core import checkpoint, data
from core.checkpoint import Header, RobustnessClaim
from core.data.class_folders import name_classes
from core.data.image_folder import Found, look_through
from core.data.safe_zip import Caps, show
from core.evaluation.preflight import inspect, inspect_on_noise
from core.intake.import_weights import import_weights, recognise
from core.schema.catalog import DATASETS
from core.schema.errors import BadDataset, BadWeights, OverLimit
from core.schema.events import Warned
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import (
    DatasetInspection,
    InspectionWarning,
    ModelInspection,
    Overlap,
    RefusedImage,
    Thumbnail,
    Twins,
)

REPORT = "report.json"
MODEL = "model.safetensors"
_MOST_CLASSES = 10_000
_MOST_REFUSED = 100
_MOST_TWINS = 20
_THUMBNAILS = 12
_THUMBNAIL_SIDE = 64
_LARGEST_HEADER = 100 * 2**20


def inspect_dataset(file: Path, output: Path, *, caps: Caps) -> DatasetInspection:
    """Read an ImageFolder zip through, and write report.json and a few thumbnails into `output`.

    caps: what the archive may hold; its decoded images must not be more than that together either. An image that cannot
    be used is refused alone. Raises BadDataset when the archive is, or when more images are refused than taken.
    """
    checkpoint.make_folder(output)
    seen = _Seen(caps, output)
    if not zipfile.is_zipfile(file):
        raise BadDataset(
            f"{file.name} is no zip archive", hint="pack train/<class>/* and test/<class>/* into a zip", field="dataset"
        )
    for found in look_through(file, leave_out=seen.refuse, ignore=seen.ignore, caps=caps):
        seen.add(found)
    if seen.refused and len(seen.refused) > seen.taken:
        raise BadDataset(
            f"{len(seen.refused)} of {len(seen.refused) + seen.taken} images cannot be used; the first is "
            f"{show(seen.refused[0].name)}: {seen.refused[0].reason}",
            hint="make all images JPEG, PNG or WebP of one size, then upload the data set again",
            field="dataset",
        )
    classes = name_classes(seen.counts, ("train", "test"), "the archive")
    _refuse_names(classes)
    findings = DatasetInspection(
        sha256=checkpoint.hash_file(file),
        size=file.stat().st_size,
        shape=(3 if seen.in_colour else 1, *seen.size),
        classes=classes,
        train={label: seen.counts["train", label] for label in classes},
        test={label: seen.counts["test", label] for label in classes},
        ignored=seen.ignored,
        refused=len(seen.refused),
        refused_by_reason=dict(Counter(image.reason for image in seen.refused).most_common(_MOST_REFUSED)),
        refused_images=tuple(seen.refused[:_MOST_REFUSED]),
        overlap=seen.overlap(),
        thumbnails=tuple(seen.thumbnails),
    )
    checkpoint.write_file(output / REPORT, findings.model_dump_json().encode())
    return findings


@dataclass
class _Seen:
    """What is kept of the images: of each its hash, of a few a thumbnail."""

    caps: Caps
    output: Path
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: list[RefusedImage] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    in_colour: bool = False
    taken: int = 0
    ignored: int = 0
    _decoded: int = 0
    _hashes: dict[str, dict[bytes, str]] = field(default_factory=lambda: {"train": {}, "test": {}})
    _test: list[tuple[bytes, str]] = field(default_factory=list)

    def refuse(self, name: str, reason: str) -> None:
        self.refused.append(RefusedImage(name=show(name), reason=show(reason)))

    def ignore(self, _: str) -> None:
        self.ignored += 1

    def add(self, found: Found) -> None:
        if (found.part, found.label) not in self.counts and len(self.counts) >= 2 * _MOST_CLASSES:
            raise BadDataset(
                f"there are more than {_MOST_CLASSES:,} classes", hint="use fewer classes", field="dataset"
            )
        if found.pixels is None:
            self.counts.setdefault((found.part, found.label), 0)
            return
        pixels = found.pixels
        self.counts[found.part, found.label] += 1
        self.taken += 1
        self.size = (pixels.shape[0], pixels.shape[1])
        self.in_colour = self.in_colour or pixels.ndim == 3
        self._decoded += pixels.nbytes
        if self._decoded > self.caps.total_bytes:
            raise OverLimit(
                f"the images take more than {self.caps.total_bytes / 2**30:.3g} GiB decoded",
                hint="use fewer or smaller images",
                field="dataset",
            )
        digest = _hash(pixels)
        if found.part == "test":
            self._test.append((digest, found.name))
        else:
            self._hashes["train"].setdefault(digest, found.name)
        if self.counts[found.part, found.label] == 1 and len(self.thumbnails) < _THUMBNAILS:
            self.thumbnails.append(self._thumbnail(found, pixels))

    def overlap(self) -> Overlap:
        train = self._hashes["train"]
        twins = [Twins(test=show(name), train=show(train[digest])) for digest, name in self._test if digest in train]
        return Overlap(count=len(twins), examples=tuple(twins[:_MOST_TWINS]))

    def _thumbnail(self, found: Found, pixels: np.ndarray) -> Thumbnail:
        image = Image.fromarray(pixels)
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        content = io.BytesIO()
        image.save(content, "PNG")
        name = f"thumbnail-{len(self.thumbnails)}.png"
        checkpoint.write_file(self.output / name, content.getvalue())
        part = "test" if found.part == "test" else "train"
        return Thumbnail(file=name, name=show(found.name), part=part, label=show(found.label))


def _hash(pixels: np.ndarray) -> bytes:
    """Hash an image as runs see it: a grey one and its copy in colour are the same."""
    in_colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    return hashlib.blake2b(in_colour.tobytes(), digest_size=16).digest()


def _refuse_names(classes: tuple[str, ...]) -> None:
    """Refuse names of classes that cannot be shown, or that a file system or a person takes for the same."""
    seen: dict[str, str] = {}
    for label in classes:
        if show(label) != label:
            raise BadDataset(
                f"the class {show(label)} has a name that is too long or does not print",
                hint="give it a short name of letters and digits",
                field="dataset",
            )
        before = seen.setdefault(label.casefold(), label)
        if before != label:
            raise BadDataset(
                f"the classes {show(before)} and {show(label)} differ only in case",
                hint="give every class a name of its own",
                field="dataset",
            )


def inspect_model(file: Path, spec: ImportSpec, output: Path, *, max_bytes: int) -> ModelInspection:
    """Make a checkpoint of weights, ours or of others, look at what it computes, and write both into `output`.

    spec: what its owner says of it. A network that nobody names is told from the weights where only one fits. Raises
    BadWeights, BadInput and DoesNotFit.
    """
    checkpoint.make_folder(output)
    kind = _kind(file, max_bytes)
    target = output / MODEL
    recognised = False
    if kind == "checkpoint":
        model, header = checkpoint.load(file)
        shutil.copyfile(file, target)
    else:
        recognised = not (spec.architecture or spec.published)
        import_weights(file, recognise(file, spec) if recognised else spec, target)
        model, header = checkpoint.load(target)
    warnings, looked_at = _warnings(model, header)
    blueprint = header.blueprint
    findings = ModelInspection(
        source=kind,
        source_sha256=checkpoint.hash_file(file),
        sha256=checkpoint.hash_file(target),
        size=target.stat().st_size,
        architecture=blueprint.architecture,
        recognised=recognised,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shape=blueprint.shape,
        classes=blueprint.classes,
        mean=blueprint.mean,
        std=blueprint.std,
        left_out=len(header.origin.left_out) if header.origin else 0,
        claims={norm: claim.eps for norm, claim in header.claims().items()},
        base_sha256=header.base_sha256,
        data_sha256=header.data_sha256,
        looked_at=looked_at,
        warnings=tuple(InspectionWarning(code=doubt.code, message=doubt.message) for doubt in warnings),
    )
    checkpoint.write_file(output / REPORT, findings.model_dump_json().encode())
    return findings


def _kind(file: Path, max_bytes: int) -> Literal["checkpoint", "safetensors", "torch"]:
    """Tell from its first bytes what a file is; a safetensors header that lies about its length is refused."""
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            begins = content.read(9)
    except OSError as error:
        raise BadWeights(f"cannot read {file}: {error.strerror}", hint="check the path", field="file") from error
    if size > max_bytes:
        raise OverLimit(
            f"the file is larger than {max_bytes / 2**30:.3g} GiB",
            hint="upload the weights alone, without the state of the optimiser",
            field="file",
        )
    if file.suffix != ".safetensors":
        return "torch"
    length = int.from_bytes(begins[:8], "little")
    if len(begins) < 9 or length > min(size - 8, _LARGEST_HEADER) or begins[8:] != b"{":
        raise BadWeights(
            f"{file.name} is not a safetensors file: it does not begin with the length of a header and that header",
            hint="download it anew, or save it again",
            field="file",
        )
    try:
        with safe_open(file, framework="pt") as opened:
            return "checkpoint" if checkpoint.KEY in (opened.metadata() or {}) else "safetensors"
    except SafetensorError as error:
        raise BadWeights(
            f"{file.name} is not a safetensors file: {error}", hint="download it anew, or save it again", field="file"
        ) from error


def _warnings(model: torch.nn.Module, header: Header) -> tuple[list[Warned], Literal["digits", "noise"]]:
    """Look at what the model computes, on images that are at hand without a network."""
    blueprint, entry = header.blueprint, DATASETS["digits"]
    if (blueprint.shape, blueprint.classes) != (entry.shape, entry.classes):
        return list(inspect_on_noise(model, blueprint)), "noise"
    digits = data.load(entry.name)
    at_home = header.trained_on(entry.name, digits.sha256())
    claims = {
        norm: RobustnessClaim(claim.eps, claim.robust if at_home else None) for norm, claim in header.claims().items()
    }
    return list(inspect(model, digits.test.first(len(digits.test)), blueprint, claims)), "digits"
