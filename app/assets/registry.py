"""Names of models and data sets: the catalogue's, the operator's in the data folder, and a project's own.

This is the one owner of the rule that turns a name into a path: the routes list and check names by it, and the worker
passes the paths to the training process. It reads names and sizes only; only the training process opens the files. A
name of the catalogue always means the catalogue's entry, and a project's own file goes before the operator's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, Self

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from app.assets import assets, checkpoints
from app.schemas import AssetStatus
from core.schema.catalog import DATASETS, MODELS, ArchitectureEntry, DatasetEntry, find_architecture
from core.schema.spec import AnySpec, EvaluateSpec, Name, TrainSpec, with_defaults_for
from core.schema.suggestions import did_you_mean
from core.schema.validation import FieldError

_FILES = (".zip", ".tar", ".tar.gz", ".tar.xz", ".npz")
_name: TypeAdapter[str] = TypeAdapter(Name)


class LocalModel(NamedTuple):
    """A weights file of the operator's."""

    path: Path
    size: int


class _Size(NamedTuple):
    """The images of a data set, or those that a model takes."""

    shape: tuple[int, ...]
    classes: int


class OwnFile(NamedTuple):
    """A project's own data set or model that a spec names."""

    status: AssetStatus
    size: _Size | None
    architecture: str | None = None
    """The network, where it is a model whose inspection told it."""


@dataclass(frozen=True)
class Own:
    """A project's own files that one spec names."""

    named: Mapping[str, OwnFile]
    """These files, by the field that names them."""
    ready: Mapping[assets.Kind, Sequence[str]]
    """All names that the spec could use, where it names a file that the project does not have."""


_NOTHING = Own(named={}, ready={})


@dataclass(frozen=True)
class Registry:
    """The folders of the operator's models and data sets, and what one project has of its own."""

    models_dir: Path
    datasets_dir: Path
    own: Own = _NOTHING
    """The project's own, to check a spec by."""
    fetched: Mapping[str, Path] = field(default_factory=dict)
    """The project's own files on this machine, by the field of the spec that names them."""

    def of_project(self, session: Session, project_id: str, body: Mapping[str, Any]) -> Self:
        """Look up the project's own files that a spec names, valid or not."""
        named, ready = {}, {}
        for name, kind in assets.NAMED_BY.items():
            wanted = body.get(name)
            if not isinstance(wanted, str) or not _is_name(wanted) or wanted in assets.SHIPPED.get(name, ()):
                continue
            if file := assets.find(session, kind, project_id, wanted):
                named[name] = OwnFile(file.status, _size_in(file.summary), (file.summary or {}).get("architecture"))
            elif kind == "model" and checkpoints.find_checkpoint(session, project_id, wanted):
                named[name] = OwnFile("ready", None)
            else:
                ready[kind] = assets.names(session, kind, project_id)
        return replace(self, own=Own(named, ready))

    def local_models(self) -> dict[str, LocalModel]:
        """List weights files by name, except those whose name is in the catalogue."""
        files = sorted(self.models_dir.glob("*.safetensors"))
        sizes = {file: _size_of_file(file) for file in files if _is_name(file.stem) and file.stem not in MODELS}
        return {file.stem: LocalModel(file, size) for file, size in sizes.items() if size is not None}

    def local_datasets(self) -> dict[str, Path]:
        """List folders, archives and arrays by name. One with a catalogue name is where that data set is stored."""
        named = ((_dataset_name(path), path) for path in sorted(self.datasets_dir.iterdir()))
        return {name: path for name, path in named if _is_name(name)}

    def weights(self, spec: AnySpec) -> Path | None:
        """Find the file of the base model, where it is not one that Temper ships."""
        if "base_model" in self.fetched:
            return self.fetched["base_model"]
        model = None if isinstance(spec, TrainSpec) else self.local_models().get(spec.base_model)
        return model.path if model else None

    def data(self, spec: AnySpec) -> Path | None:
        """Find the images, where they are stored here."""
        return self.fetched.get("dataset") or self.local_datasets().get(spec.dataset)

    def extra_data(self, spec: AnySpec) -> Path | None:
        """Find the second data set of a run that trains on one."""
        if "extra_dataset" in self.fetched:
            return self.fetched["extra_dataset"]
        name = None if isinstance(spec, EvaluateSpec) else spec.extra_dataset
        return self.local_datasets().get(name) if name else None

    def fill_in(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the fields of a spec the defaults that depend on a base model of the project's own."""
        own = self.own.named.get("base_model")
        return with_defaults_for(body, own.architecture) if own and own.architecture else dict(body)

    def check_names(self, body: Mapping[str, Any]) -> list[FieldError]:
        """Check that the names in a spec, valid or not, are known here."""
        local = self.local_datasets()
        fetched = [entry.name for entry in DATASETS.values() if not entry.streamed]
        return [
            *self._unknown("base_model", "model", body, [*MODELS, *self.local_models()]),
            *self._unknown("dataset", "data set", body, [*fetched, *local]),
            *self._unknown("extra_dataset", "data set", body, list(local)),
        ]

    def check(self, spec: AnySpec) -> list[FieldError]:
        """Check that the names in a spec are known here, and that model and data set fit together."""
        return self.check_names(spec.model_dump()) or self._misfit(spec)

    def has(self, kind: assets.Kind, name: str) -> bool:
        """Whether the catalogue or the operator has this name. A project cannot give it to a file of its own."""
        if kind == "model":
            return name in MODELS or name in self.local_models()
        return name in DATASETS or name in self.local_datasets()

    def _unknown(self, name: str, what: str, body: Mapping[str, Any], known: list[str]) -> list[FieldError]:
        wanted = body.get(name)
        # The spec itself refuses what is not a valid name.
        if not isinstance(wanted, str) or not _is_name(wanted):
            return []
        if file := self.own.named.get(name):
            return _not_ready(name, what, wanted, file.status)
        if wanted in known:
            return []
        known = [*known, *self.own.ready.get(assets.NAMED_BY[name], ())]
        remedy = did_you_mean(wanted, known) if known else "upload one, or put it into the instance's folder"
        detail = f"there is no {what} {wanted!r} here; {remedy}"
        return [FieldError(pointer=f"/{name}", code="unknown_name", detail=detail)]

    def _misfit(self, spec: AnySpec) -> list[FieldError]:
        """Compare what is known about model and data set. About the operator's files, only the run finds out."""
        dataset = self._size("dataset", DATASETS.get(spec.dataset))
        if dataset is None:
            return []
        if isinstance(spec, TrainSpec):
            architecture = find_architecture(spec.architecture)
            return _does_not_take(architecture, spec.dataset, dataset) if architecture else []
        entry = MODELS.get(spec.base_model)
        home = self._size("base_model", DATASETS[entry.dataset] if entry else None)
        if home is None or home == dataset:
            return []
        other = entry.dataset if entry else "images of that size and as many classes"
        detail = (
            f"{spec.base_model} takes {_describe(home)}, {spec.dataset} has {_describe(dataset)}: choose {other} or "
            "another model"
        )
        return [FieldError(pointer="/dataset", code="does_not_fit", detail=detail)]

    def _size(self, name: str, entry: DatasetEntry | None) -> _Size | None:
        if own := self.own.named.get(name):
            return own.size
        return _Size(entry.shape, entry.classes) if entry else None


def _size_in(summary: Mapping[str, Any] | None) -> _Size | None:
    return _Size(tuple(summary["shape"]), summary["classes"]) if summary else None


def _not_ready(name: str, what: str, wanted: str, status: AssetStatus) -> list[FieldError]:
    if status == "ready":
        return []
    if status == "refused":
        detail = f"the {what} {wanted!r} was refused when it was inspected: see why, and upload another"
        return [FieldError(pointer=f"/{name}", code="refused_file", detail=detail)]
    detail = f"the {what} {wanted!r} is still to be inspected: post the job once it is ready"
    return [FieldError(pointer=f"/{name}", code="not_ready", detail=detail)]


def _dataset_name(path: Path) -> str:
    if path.is_dir():
        return path.name
    ending = next((ending for ending in _FILES if path.name.endswith(ending)), None)
    return path.name.removesuffix(ending) if ending and _size_of_file(path) is not None else ""


def _is_name(text: str) -> bool:
    """Whether it is a valid name in a spec."""
    try:
        return bool(_name.validate_python(text))
    except ValidationError:
        return False


def _size_of_file(path: Path) -> int | None:
    """Read the size of a regular file; None for anything else, such as a folder or a broken link."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if S_ISREG(status.st_mode) else None


def _does_not_take(architecture: ArchitectureEntry, name: str, dataset: _Size) -> list[FieldError]:
    if architecture.shape in (None, dataset.shape):
        return []
    detail = f"{architecture.name} does not take the {_describe(dataset)} of {name}: choose another architecture"
    return [FieldError(pointer="/dataset", code="does_not_fit", detail=detail)]


def _describe(size: _Size) -> str:
    return f"{' x '.join(map(str, size.shape))} images in {size.classes} classes"
