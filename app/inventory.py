"""What this instance has by name: the catalogue, and the operator's own models and data sets in the data folder.

The one owner of the rule that turns a name into a path: the routes list and check names by it, the supervisor hands
paths to the training process. It looks at names and sizes only; what is inside, only the training process opens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from core.advice import FieldError
from core.catalog import DATASETS, MODELS, ArchitectureEntry, DatasetEntry, find_architecture
from core.spec import AnySpec, EvaluateSpec, Name, TrainSpec, did_you_mean

_FILES = (".zip", ".tar", ".tar.gz", ".tar.xz", ".npz")
_name: TypeAdapter[str] = TypeAdapter(Name)


class LocalModel(NamedTuple):
    """A weights file of the operator's."""

    path: Path
    size: int


@dataclass(frozen=True)
class Inventory:
    """The folders of the operator's own models and data sets."""

    models_dir: Path
    datasets_dir: Path

    def local_models(self) -> dict[str, LocalModel]:
        """Weights files by name. A name of the catalogue stays the catalogue's."""
        files = sorted(self.models_dir.glob("*.safetensors"))
        sizes = {file: _size_of_file(file) for file in files if _is_name(file.stem) and file.stem not in MODELS}
        return {file.stem: LocalModel(file, size) for file, size in sizes.items() if size is not None}

    def local_datasets(self) -> dict[str, Path]:
        """Folders, archives and arrays by name. A name of the catalogue says where that data set lies."""
        named = ((_dataset_name(path), path) for path in sorted(self.datasets_dir.iterdir()))
        return {name: path for name, path in named if _is_name(name)}

    def weights(self, spec: AnySpec) -> Path | None:
        """Find the file of the base model, where it is not one that Temper ships."""
        model = None if isinstance(spec, TrainSpec) else self.local_models().get(spec.base_model)
        return model.path if model else None

    def data(self, spec: AnySpec) -> Path | None:
        """Find the images, where they lie in the datasets folder."""
        return self.local_datasets().get(spec.dataset)

    def extra_data(self, spec: AnySpec) -> Path | None:
        """Find the second data set of a run that trains on one."""
        name = None if isinstance(spec, EvaluateSpec) else spec.extra_dataset
        return self.local_datasets().get(name) if name else None

    def check_names(self, body: Mapping[str, Any]) -> list[FieldError]:
        """Say which names of a spec, valid or not, nothing here has."""
        local = self.local_datasets()
        fetched = [entry.name for entry in DATASETS.values() if not entry.streamed]
        return [
            *_unknown("base_model", "model", body, [*MODELS, *self.local_models()]),
            *_unknown("dataset", "data set", body, [*fetched, *local]),
            *_unknown("extra_dataset", "data set", body, list(local)),
        ]

    def check(self, spec: AnySpec) -> list[FieldError]:
        """Say which names of a spec nothing here has, and what does not fit together."""
        return self.check_names(spec.model_dump()) or _misfit(spec)


def _dataset_name(path: Path) -> str:
    if path.is_dir():
        return path.name
    ending = next((ending for ending in _FILES if path.name.endswith(ending)), None)
    return path.name.removesuffix(ending) if ending and _size_of_file(path) is not None else ""


def _is_name(text: str) -> bool:
    """Whether a spec can say it."""
    try:
        return bool(_name.validate_python(text))
    except ValidationError:
        return False


def _size_of_file(path: Path) -> int | None:
    """Look at a regular file; None for anything else, such as a folder, or a link to what has gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if S_ISREG(status.st_mode) else None


def _unknown(field: str, what: str, body: Mapping[str, Any], known: list[str]) -> list[FieldError]:
    name = body.get(field)
    # What can be no name, the spec itself refuses.
    if not isinstance(name, str) or not _is_name(name) or name in known:
        return []
    remedy = did_you_mean(name, known) if known else "put it into the instance's folder"
    detail = f"there is no {what} {name!r} here; {remedy}"
    return [FieldError(pointer=f"/{field}", code="unknown_name", detail=detail)]


def _misfit(spec: AnySpec) -> list[FieldError]:
    """Compare what the catalogue knows about model and data set; of local ones the run itself finds out."""
    dataset = DATASETS.get(spec.dataset)
    if dataset is None:
        return []
    if isinstance(spec, TrainSpec):
        architecture = find_architecture(spec.architecture)
        return _does_not_take(architecture, dataset) if architecture else []
    model = MODELS.get(spec.base_model)
    if model is None:
        return []
    home = DATASETS[model.dataset]
    if (home.shape, home.classes) == (dataset.shape, dataset.classes):
        return []
    detail = (
        f"{model.name} takes {_size(home)}, {dataset.name} has {_size(dataset)}: choose {home.name} or another model"
    )
    return [FieldError(pointer="/dataset", code="does_not_fit", detail=detail)]


def _does_not_take(architecture: ArchitectureEntry, dataset: DatasetEntry) -> list[FieldError]:
    if architecture.shape in (None, dataset.shape):
        return []
    detail = f"{architecture.name} does not take the {_size(dataset)} of {dataset.name}: choose another architecture"
    return [FieldError(pointer="/dataset", code="does_not_fit", detail=detail)]


def _size(dataset: DatasetEntry) -> str:
    channels, height, width = dataset.shape
    return f"{channels} x {height} x {width} images in {dataset.classes} classes"
