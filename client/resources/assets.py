"""Data sets and models: list them, and add or remove those of the project."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from app.schemas.answer import Page
from app.schemas.catalogue import Dataset, Method, Model, Threat
from client.packing import pack
from client.resources.resource import Resource, path_of
from client.resources.uploads import OnProgress, Uploads

Asset = TypeVar("Asset", Dataset, Model)

LONGEST_PAUSE = 3.0


class _Assets(Resource, Generic[Asset]):
    """What data sets and models have in common."""

    _kind: type[Asset]
    _page: type[Page[Asset]]
    _collection: str

    def list(self) -> Iterator[Asset]:
        """Iterate over all that a job can name, and over those of the project that are not ready."""
        return self._items(self._page, f"/{self._collection}")

    def get(self, name: str) -> Asset:
        """Fetch one by its name or id."""
        return self._get(self._kind, path_of(self._collection, name))

    def remove(self, name: str) -> None:
        """Remove one of the project by its name or id. Jobs that have not ended keep it."""
        self._delete(path_of(self._collection, name))

    def _add(self, **body: Any) -> Asset:
        """Post one and wait until its inspection has ended."""
        asset = self._post(self._kind, f"/{self._collection}", body)
        pause = 0.1
        while asset.status in ("pending", "inspecting"):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            asset = self.get(asset.id)
        return asset


class Datasets(_Assets[Dataset]):
    """The data sets that a job can name: `temper.datasets`."""

    _kind, _page, _collection = Dataset, Page[Dataset], "datasets"

    def add(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        on_progress: OnProgress = lambda *_: None,
        **declared: Any,
    ) -> Dataset:
        """Upload a data set, and wait until it is ready or refused.

        path: a zip or tar archive with train/<class>/* and test/<class>/*, arrays of NumPy in a .npz file, a Parquet
        file, or the files of CIFAR; or a folder of any of these, which is packed first. name: the name that jobs use,
        by default the file's without its suffix. declared: what the files do not say, such as preprocessing; the fields
        are those of `core.schema.dataset_spec.DatasetSpec`. Raises CannotRead, NotUploaded.
        """
        path = Path(path)
        with _as_file(path) as file:
            upload = Uploads(self._connection).send(file, purpose="dataset", on_progress=on_progress)
        return self._add(upload=upload.id, name=name or _name_after(path), **declared)


_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz")


def _name_after(path: Path) -> str:
    """Name a data set after its file."""
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
    return path.name[: -len(suffix)] if suffix else path.resolve().name if path.is_dir() else path.stem


@contextmanager
def _as_file(path: Path) -> Iterator[Path]:
    """Yield a file to send: the path itself, or an archive of the folder, which exists during the block.

    Raises CannotRead.
    """
    if not path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="temper-") as folder:
        packed = Path(folder) / f"{_name_after(path)}.zip"
        pack(path, packed)
        yield packed


class Models(_Assets[Model]):
    """The base models that a job can name: `temper.models`."""

    _kind, _page, _collection = Model, Page[Model], "models"

    def add(
        self,
        path_or_checkpoint: str | Path,
        *,
        name: str | None = None,
        on_progress: OnProgress = lambda *_: None,
        **declared: Any,
    ) -> Model:
        """Upload weights, or take a checkpoint by its id, and wait until they are ready or refused as a base model.

        name: the name that jobs use, by default the file's without its suffix. declared: what the file does not say,
        such as architecture and dataset; the fields are those of `core.schema.import_spec.ImportSpec`. Raises
        CannotRead, NotUploaded.
        """
        if str(path_or_checkpoint).startswith("ckpt_"):
            source = {"checkpoint": str(path_or_checkpoint)}
        else:
            upload = Uploads(self._connection).send(path_or_checkpoint, purpose="model", on_progress=on_progress)
            source = {"upload": upload.id}
        return self._add(**source, name=name or Path(path_or_checkpoint).stem, **declared)


class Methods(Resource):
    """The training methods that a job can name: `temper.methods`."""

    def list(self) -> Iterator[Method]:
        """Iterate over the methods."""
        return self._items(Page[Method], "/methods")


class Threats(Resource):
    """The threats that `evaluation.unseen` of a job can name: `temper.threats`."""

    def list(self) -> Iterator[Threat]:
        """Iterate over the threats."""
        return self._items(Page[Threat], "/threats")
