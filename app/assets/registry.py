"""Names of models and data sets: the catalogue's, the operator's in the data folder, and a project's own.

This is the one owner of the rule that turns a name into a path: the routes list and check names by it, and the worker
passes the paths to the training process. It reads names and sizes only; only the training process opens the files. A
name of the catalogue always means the catalogue's entry, and a project's own file goes before the operator's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from app.assets import assets, checkpoints
from app.assets.architectures import packaged_networks
from app.schemas import AssetStatus
from app.tables import Asset, Dataset, Job, Model
from core.schema.catalog import (
    DATASETS,
    MODELS,
    OWN_CLASS,
    PACKAGED,
    PACKAGES,
    ArchitectureEntry,
    DatasetEntry,
    Norm,
    find_architecture,
)
from core.schema.dataset_spec import DatasetSpec
from core.schema.preprocessing import Preprocessing, merge
from core.schema.radius import ProposedRadii, propose_radii
from core.schema.spec import (
    NEW_HEAD,
    AnySpec,
    EvaluateSpec,
    FineTuneSpec,
    Name,
    TrainSpec,
    with_data_of,
    with_defaults_for,
)
from core.schema.suggestions import did_you_mean
from core.schema.validation import FieldError

_FILES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".npz", ".parquet")
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
    dataset: str = ""
    """The data set that a model was trained on, where it is known by a name."""
    eps: Mapping[Norm, float] = MappingProxyType({})
    """The radii of the run that made a model."""
    declared: DatasetSpec | None = None
    """What its owner says of it, where it is a data set."""


@dataclass(frozen=True)
class Own:
    """A project's own files that one spec names."""

    named: Mapping[str, OwnFile]
    """These files, by the field that names them."""
    ready: Mapping[assets.Kind, Sequence[str]]
    """All names that the spec could use, where it names a file that the project does not have."""
    packaged: Sequence[str] = ()
    """The networks of installed packages that the workers offer, where the spec names one."""


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
                named[name] = _own_file(session, file)
            elif kind == "model" and (made := checkpoints.find_checkpoint(session, project_id, wanted)):
                named[name] = OwnFile("ready", None, **_of_job(session, made.job_id))
            else:
                ready[kind] = assets.names(session, kind, project_id)
            if name == "base_model" and name in named:
                # It comes first, since it may bring the data set that is looked up next.
                body = with_data_of(body, named[name].dataset, named[name].eps)
        asks = str(body.get("architecture", "")).startswith(PACKAGED)
        packaged = packaged_networks(session) if asks else ()
        return replace(self, own=Own(named, ready, packaged))

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
        """Add to the fields of a spec the defaults that depend on the project's own files: of a base model what fits
        its network, and the data set and the radii of the run that made it; of a data set how its images get a size."""
        filled = dict(body)
        if own := self.own.named.get("base_model"):
            filled = with_data_of(filled, own.dataset, own.eps)
            filled = with_defaults_for(filled, own.architecture) if own.architecture else filled
        dataset = self.own.named.get("dataset")
        if dataset and (declared := dataset.declared):
            usual = declared.preprocessing.model_dump(exclude_defaults=True)
            filled["preprocessing"] = merge(usual, filled.get("preprocessing"))
            filled.setdefault("test_share", declared.test_share)
        return filled

    def propose_eps(self, body: Mapping[str, Any]) -> ProposedRadii | None:
        """Propose radii for a spec that names none, by the images of the project's own data set."""
        own = self.own.named.get("dataset")
        if own is None or own.size is None:
            return None
        given = self.fill_in(body).get("preprocessing")
        try:
            shape = Preprocessing.model_validate(given).reshape(own.size.shape)
        except ValidationError:
            return None
        return propose_radii(shape)

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
        return self.check_names(spec.model_dump()) or self._unknown_network(spec) or self._misfit(spec)

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

    def _unknown_network(self, spec: AnySpec) -> list[FieldError]:
        """Refuse a network that no worker can build."""
        wanted = spec.architecture if isinstance(spec, TrainSpec) else ""
        if wanted.startswith(OWN_CLASS):
            detail = (
                f"{wanted} is a class on one machine, which no worker has: install a package that offers it beside the "
                f"workers (entry points of the group {PACKAGES}), or train it with python -m core train --model"
            )
        elif wanted.startswith(PACKAGED) and wanted not in self.own.packaged:
            known = ", ".join(self.own.packaged) or "none"
            detail = (
                f"no worker of this service has a package that offers {wanted}; offered: {known}: install the package "
                "beside a worker and start that again"
            )
        else:
            return []
        return [FieldError(pointer="/architecture", code="unknown_name", detail=detail)]

    def _misfit(self, spec: AnySpec) -> list[FieldError]:
        """Compare what is known about model and data set. About the operator's files, only the run finds out."""
        dataset = self._size("dataset", DATASETS.get(spec.dataset))
        if dataset is None:
            return []
        dataset = dataset._replace(shape=spec.preprocessing.reshape(dataset.shape))
        if isinstance(spec, TrainSpec):
            architecture = find_architecture(spec.architecture)
            return _does_not_take(architecture, spec.dataset, dataset) if architecture else []
        entry = MODELS.get(spec.base_model)
        home = self._size("base_model", DATASETS[entry.dataset] if entry else None)
        if home is None or home == dataset:
            return []
        if isinstance(spec, FineTuneSpec) and home.shape == dataset.shape:
            return [] if spec.head == "new" else [_other_classes(spec, home, dataset)]
        other = entry.dataset if entry else "images of that size and as many classes"
        detail = (
            f"{spec.base_model} takes {_describe(home)}, {spec.dataset} has {_describe(dataset)}: choose {other} or "
            "another model"
        )
        if home.classes == dataset.classes:
            detail += f"; or set preprocessing.image_size to {home.shape[-1]}"
        return [FieldError(pointer="/dataset", code="does_not_fit", detail=detail)]

    def _size(self, name: str, entry: DatasetEntry | None) -> _Size | None:
        if own := self.own.named.get(name):
            return own.size
        return _Size(entry.shape, entry.classes) if entry else None


def _own_file(session: Session, file: Asset) -> OwnFile:
    summary = file.summary or {}
    if isinstance(file, Model) and file.job_id:
        of_model = _of_job(session, file.job_id)
    else:
        of_model = {"dataset": summary.get("dataset") or "", "eps": summary.get("eps") or {}}
    declared = DatasetSpec.model_validate(file.declared) if isinstance(file, Dataset) else None
    return OwnFile(file.status, _size_in(file.summary), summary.get("architecture"), declared=declared, **of_model)


def _of_job(session: Session, job_id: str) -> dict[str, Any]:
    """Read the data set and the radii of the job that made a model."""
    job = session.get(Job, job_id)
    return {"dataset": job.spec["dataset"], "eps": job.spec["eps"]} if job else {}


def _other_classes(spec: FineTuneSpec, home: _Size, dataset: _Size) -> FieldError:
    detail = f"{spec.base_model} has {home.classes} classes, {spec.dataset} has {dataset.classes}: {NEW_HEAD}"
    return FieldError(pointer="/head", code="does_not_fit", detail=detail)


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
