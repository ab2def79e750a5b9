"""Inspection of an untrusted file that is uploaded as a data set or a base model.

All code that opens such a file runs here, in a process of its own in the `core.sandbox`. A run with
`--leave-out-unusable` leaves out exactly the images that the report of a data set refuses: both read with
`core.data.image_folder`.
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

from core import checkpoint, data
from core.checkpoint import Header, RobustnessClaim
from core.data.class_folders import name_classes
from core.data.image_folder import Found, look_through
from core.data.safe_zip import Caps, show
from core.evaluation.preflight import inspect, inspect_on_noise
from core.intake.import_weights import import_weights, recognise
from core.models.file_kinds import find_kind
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
_MAX_CLASSES = 10_000
_MAX_REFUSED_SHOWN = 100
_MAX_TWINS_SHOWN = 20
_MAX_THUMBNAILS = 12
_THUMBNAIL_SIDE = 64


def inspect_dataset(file: Path, output: Path, *, caps: Caps) -> DatasetInspection:
    """Read every image of an ImageFolder zip, and write report.json and a few thumbnails into `output`.

    caps: limits on the archive; its `total_bytes` also limits the decoded images together. An unusable image is refused
    by itself. Raises BadDataset when the archive is unusable, or when more images are refused than accepted.
    """
    checkpoint.make_folder(output)
    seen = _SeenImages(caps, output)
    if not zipfile.is_zipfile(file):
        raise BadDataset(
            f"{file.name} is not a zip archive",
            hint="pack train/<class>/* and test/<class>/* into a zip",
            field="dataset",
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
    _check_class_names(classes)
    report = DatasetInspection(
        sha256=checkpoint.hash_file(file),
        size=file.stat().st_size,
        shape=(3 if seen.in_colour else 1, *seen.size),
        classes=classes,
        train={label: seen.counts["train", label] for label in classes},
        test={label: seen.counts["test", label] for label in classes},
        ignored=seen.ignored,
        refused=len(seen.refused),
        refused_by_reason=dict(Counter(image.reason for image in seen.refused).most_common(_MAX_REFUSED_SHOWN)),
        refused_images=tuple(seen.refused[:_MAX_REFUSED_SHOWN]),
        overlap=seen.overlap(),
        thumbnails=tuple(seen.thumbnails),
    )
    checkpoint.write_file(output / REPORT, report.model_dump_json().encode())
    return report


@dataclass
class _SeenImages:
    """The counts of the images read so far, their hashes, and a few thumbnails."""

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
        if (found.part, found.label) not in self.counts and len(self.counts) >= 2 * _MAX_CLASSES:
            raise BadDataset(f"there are more than {_MAX_CLASSES:,} classes", hint="use fewer classes", field="dataset")
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
                f"the decoded images take more than {self.caps.total_bytes / 2**30:.3g} GiB",
                hint="use fewer or smaller images",
                field="dataset",
            )
        digest = _hash(pixels)
        if found.part == "test":
            self._test.append((digest, found.name))
        else:
            self._hashes["train"].setdefault(digest, found.name)
        if self.counts[found.part, found.label] == 1 and len(self.thumbnails) < _MAX_THUMBNAILS:
            self.thumbnails.append(self._thumbnail(found, pixels))

    def overlap(self) -> Overlap:
        train = self._hashes["train"]
        twins = [Twins(test=show(name), train=show(train[digest])) for digest, name in self._test if digest in train]
        return Overlap(count=len(twins), examples=tuple(twins[:_MAX_TWINS_SHOWN]))

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
    """Hash an image as runs see it: a grey image and its copy in colour have the same hash."""
    in_colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    return hashlib.blake2b(in_colour.tobytes(), digest_size=16).digest()


def _check_class_names(classes: tuple[str, ...]) -> None:
    """Refuse names of classes that cannot be shown, or that differ only in case."""
    seen: dict[str, str] = {}
    for label in classes:
        if show(label) != label:
            raise BadDataset(
                f"the name of the class {show(label)} is too long or has characters that cannot be shown",
                hint="give the class a short name of letters and digits",
                field="dataset",
            )
        before = seen.setdefault(label.casefold(), label)
        if before != label:
            raise BadDataset(
                f"the classes {show(before)} and {show(label)} differ only in case",
                hint="rename one of them",
                field="dataset",
            )


def inspect_model(file: Path, spec: ImportSpec, output: Path, *, max_bytes: int) -> ModelInspection:
    """Convert weights into a checkpoint, check its outputs, and write checkpoint and report.json into `output`.

    file: a checkpoint of Temper, or third-party weights. spec: the user's description of the latter; a missing
    architecture is recognised by the weights where they fit only one. Raises BadWeights, BadInput and DoesNotFit.
    """
    checkpoint.make_folder(output)
    kind = _kind(file, max_bytes)
    target = output / MODEL
    recognised = False
    others: tuple[str, ...] = ()
    if kind == "checkpoint":
        model, header = checkpoint.load(file)
        shutil.copyfile(file, target)
    else:
        recognised = not (spec.architecture or spec.published)
        others = import_weights(file, recognise(file, spec) if recognised else spec, target).others
        model, header = checkpoint.load(target)
    warnings, looked_at = _warnings(model, header)
    blueprint = header.blueprint
    report = ModelInspection(
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
        key=header.origin.key if header.origin and kind != "checkpoint" else "",
        other_keys=others,
        left_out=len(header.origin.left_out) if header.origin else 0,
        claims={norm: claim.eps for norm, claim in header.claims().items()},
        base_sha256=header.base_sha256,
        data_sha256=header.data_sha256,
        looked_at=looked_at,
        warnings=tuple(InspectionWarning(code=warning.code, message=warning.message) for warning in warnings),
    )
    checkpoint.write_file(output / REPORT, report.model_dump_json().encode())
    return report


def _kind(file: Path, max_bytes: int) -> Literal["checkpoint", "safetensors", "torch"]:
    """Tell the format of a file by its content. Raises BadWeights for any other format, and OverLimit."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BadWeights(f"cannot read {file}: {error.strerror}", hint="check the path", field="file") from error
    if size > max_bytes:
        raise OverLimit(
            f"the file is larger than {max_bytes / 2**30:.3g} GiB",
            hint="upload only the weights, without the state of the optimiser",
            field="file",
        )
    if find_kind(file) != "safetensors":
        return "torch"
    return "checkpoint" if checkpoint.has_header(file) else "safetensors"


def _warnings(model: torch.nn.Module, header: Header) -> tuple[list[Warned], Literal["digits", "noise"]]:
    """Check the outputs of the model, on digits where they fit it, else on noise."""
    blueprint, entry = header.blueprint, DATASETS["digits"]
    if (blueprint.shape, blueprint.classes) != (entry.shape, entry.classes):
        return list(inspect_on_noise(model, blueprint)), "noise"
    digits = data.load(entry.name)
    at_home = header.trained_on(entry.name, digits.sha256())
    claims = {
        norm: RobustnessClaim(claim.eps, claim.robust if at_home else None) for norm, claim in header.claims().items()
    }
    return list(inspect(model, digits.test.first(len(digits.test)), blueprint, claims)), "digits"
