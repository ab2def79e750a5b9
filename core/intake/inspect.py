"""Inspection of an untrusted file that is uploaded as a data set or a base model.

All code that opens such a file runs here, in a process of its own in the `core.sandbox`. A run with
`--leave-out-unusable` leaves out exactly the images that the report of a data set refuses: both read with
`core.data.images`.
"""

import io
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from core import checkpoint, data
from core.checkpoint import Header, RobustnessClaim
from core.data.class_folders import Place, name_classes
from core.data.images import Found, ImageReader
from core.data.safe_zip import Caps, show
from core.data.sources import open_source
from core.data.survey import Survey
from core.evaluation.preflight import inspect, inspect_on_noise
from core.intake.import_weights import import_weights
from core.intake.recognise import recognise
from core.models.file_kinds import find_kind
from core.schema.catalog import DATASETS
from core.schema.dataset_spec import DatasetSpec
from core.schema.errors import BadDataset, BadWeights, OverLimit
from core.schema.events import Warned
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import (
    DatasetInspection,
    ModelInspection,
    PartName,
    RefusedImage,
    Thumbnail,
)
from core.schema.preprocessing import Sizes, propose
from core.schema.progress import add_warnings

REPORT = "report.json"
MODEL = "model.safetensors"
_MAX_CLASSES = 10_000
_MAX_REFUSED_SHOWN = 100
_MAX_THUMBNAILS = 12
_THUMBNAIL_SIDE = 64


def inspect_dataset(file: Path, output: Path, *, caps: Caps, spec: DatasetSpec | None = None) -> DatasetInspection:
    """Read every image of a data set in one file, and write report.json and a few thumbnails into `output`.

    caps: limits on an archive; its `total_bytes` also limits the decoded images together. spec: what its owner says of
    it. An unusable image is refused by itself. Raises BadDataset when the file is unusable, when its images differ in
    size and nothing is said of it, or when more images are refused than accepted.
    """
    checkpoint.make_folder(output)
    spec = spec or DatasetSpec()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise BadDataset(f"{file} {what}", hint="give the path of a file, such as a zip archive", field="file")
    survey = Survey()
    seen = _SeenImages(caps, output)
    source = open_source(file, survey, caps=caps, test_share=spec.test_share, untrusted=True)
    layout = source.layout
    if sum(len(labels) for labels in layout.labels.values()) > len(layout.labels) * _MAX_CLASSES:
        raise BadDataset(f"there are more than {_MAX_CLASSES:,} classes", hint="use fewer classes", field="dataset")
    reader = ImageReader(source, survey, spec.preprocessing, leave_out=seen.refuse)
    for found in reader.images():
        seen.add(found)
    taken = survey.counts.total()
    if survey.refused > taken:
        raise BadDataset(
            f"{survey.refused} of {survey.refused + taken} images cannot be used; the first is "
            f"{seen.refused[0].name}: {seen.refused[0].reason}",
            hint="correct these images, then upload the data set again",
            field="dataset",
        )
    classes = name_classes(layout, survey.counts, "the archive")
    for label in classes:
        _check_class_name(label)

    def by_class(part: PartName) -> dict[str, int]:
        return {label: survey.counts[Place(part, label)] for label in classes}

    report = DatasetInspection(
        sha256=checkpoint.hash_file(file),
        size=file.stat().st_size,
        format=source.format,
        shape=(3 if seen.in_colour else 1, *seen.size),
        sizes=Sizes.of(reader.sizes),
        preprocessing=spec.preprocessing,
        proposal=propose(reader.sizes) if len(reader.sizes) > 1 and spec.preprocessing.image_size is None else None,
        test_share=spec.test_share,
        classes=classes,
        names_file=None if layout.names_file is None else show(layout.names_file),
        root=show(layout.root),
        folders=dict(layout.folders),
        train=by_class("train"),
        test=by_class("test"),
        held_out=by_class("held_out") if "held_out" in layout.labels else {},
        unread=survey.unread,
        unread_by_reason=dict(survey.unread_by_reason),
        unread_files=tuple(survey.unread_files),
        refused=survey.refused,
        refused_by_reason=dict(seen.refused_by_reason.most_common(_MAX_REFUSED_SHOWN)),
        refused_images=tuple(seen.refused),
        transparent=survey.transparent,
        overlap=survey.overlap("test", ("train", "held_out")),
        held_out_overlap=survey.overlap("held_out", ("train",)),
        repeated={part: survey.repeated(part) for part in layout.labels},
        conflicting=survey.conflicting(),
        warnings=survey.warnings(),
        thumbnails=tuple(seen.thumbnails),
    )
    checkpoint.write_file(output / REPORT, report.model_dump_json().encode())
    return report


@dataclass
class _SeenImages:
    """What the images read so far have in common, those that are refused, and a few thumbnails."""

    caps: Caps
    output: Path
    refused: list[RefusedImage] = field(default_factory=list)
    """The first of them."""
    refused_by_reason: Counter[str] = field(default_factory=Counter)
    thumbnails: list[Thumbnail] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    in_colour: bool = False
    _decoded: int = 0
    _shown: set[Place] = field(default_factory=set)

    def refuse(self, name: str, reason: str) -> None:
        self.refused_by_reason[show(reason)] += 1
        if len(self.refused) < _MAX_REFUSED_SHOWN:
            self.refused.append(RefusedImage(name=show(name), reason=show(reason)))

    def add(self, found: Found) -> None:
        pixels = found.pixels
        self.size = (pixels.shape[0], pixels.shape[1])
        self.in_colour = self.in_colour or pixels.ndim == 3
        self._decoded += pixels.nbytes
        if self._decoded > self.caps.total_bytes:
            raise OverLimit(
                f"the decoded images take more than {self.caps.total_bytes / 2**30:.3g} GiB",
                hint="use fewer or smaller images",
                field="dataset",
            )
        if found.place not in self._shown and len(self.thumbnails) < _MAX_THUMBNAILS:
            self._shown.add(found.place)
            self.thumbnails.append(self._thumbnail(found, pixels))

    def _thumbnail(self, found: Found, pixels: np.ndarray) -> Thumbnail:
        image = Image.fromarray(pixels)
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        content = io.BytesIO()
        image.save(content, "PNG")
        name = f"thumbnail-{len(self.thumbnails)}.png"
        checkpoint.write_file(self.output / name, content.getvalue())
        return Thumbnail(file=name, name=show(found.name), part=found.place.part, label=show(found.place.label))


def _check_class_name(label: str) -> None:
    """Refuse the name of a class that cannot be shown."""
    if show(label) != label:
        wrong = "is too long" if label.isprintable() else "has characters that cannot be shown"
        raise BadDataset(
            f"the name of the class {show(label)} {wrong}",
            hint="give the class a short name of letters and digits",
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
    alternatives: tuple[str, ...] = ()
    if kind == "checkpoint":
        model, header = checkpoint.load(file)
        shutil.copyfile(file, target)
    else:
        recognised = not (spec.architecture or spec.published)
        if recognised:
            found = recognise(file, spec)
            spec, alternatives = found.spec, found.alternatives
        others = import_weights(file, spec, target).others
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
        alternatives=alternatives,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shape=blueprint.shape,
        classes=blueprint.classes,
        mean=blueprint.mean,
        std=blueprint.std,
        key=header.origin.key if header.origin and kind != "checkpoint" else "",
        other_keys=others,
        left_out=len(header.origin.left_out) if header.origin else 0,
        claims={norm: claim.eps for norm, claim in header.claims().items()},
        dataset=header.spec.dataset if header.spec else header.origin.dataset if header.origin else None,
        eps=header.spec.eps if header.spec else {},
        base_sha256=header.base_sha256,
        data_sha256=header.data_sha256,
        looked_at=looked_at,
        warnings=add_warnings(warnings),
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
