"""All files of an instance in one stream, for a backup: `python -m app.operations.backup save`, `load` and `check`.

`save` writes a tar to standard output: the objects of the store, the operator's own models and data sets, and at its
end a manifest with the sha256 of each. `load` reads such a stream into an instance that has none of it, and reads all
of it back. `check` holds the objects to the rows that name them. The database itself is pg_dump's. What is deleted
while `save` runs may be missing from it, so the dump goes first: every row in it finds its object then, but those of
jobs that were deleted meanwhile.
"""

import hashlib
import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO, Any

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from app.assets import assets, inspections, uploads
from app.jobs.leases import log_key
from app.platform.database import Database
from app.platform.settings import Settings
from app.storage import ObjectStore, StorageFull, StorageUnavailable, open_store
from app.tables import Attempt, Job, Table, Upload

MANIFEST = "manifest.json"
INCOMPLETE = 3
"""Exit status of `check` where it could look, and something was missing."""
_FORMAT = 1
_CHUNK = 1024 * 1024
_SHARED = 0o644
_REMEDY = (
    "give everybody the right to read them (chmod -R a+rX, before `docker compose cp` copies them into the container), "
    "or remove them"
)


class BadBackup(Exception):
    """The stream is not what `save` writes, or not all of it; the message says what is wrong."""


class Unreadable(Exception):
    """Files of the operator's that this process may not read; the message names each with the reason."""


def save(settings: Settings, store: ObjectStore, stream: IO[bytes]) -> int:
    """Write every file of the instance into a stream, and give their number. Raises StorageUnavailable, and Unreadable
    before anything is written."""
    own_files = _own_files(settings)
    found: dict[str, str] = {}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for key in store.keys():  # noqa: SIM118  # a store is no dict
            with _spooled(settings) as file:
                try:
                    for chunk in store.read(key):
                        file.write(chunk)
                except StorageUnavailable:
                    if key in store.keys(key.rpartition("/")[0]):
                        raise
                    continue  # deleted since it was listed
                found[f"objects/{key}"] = _add(tar, f"objects/{key}", file)
        for path in own_files:
            name = path.relative_to(settings.data_dir).as_posix()
            with path.open("rb") as content:
                found[name] = _add(tar, name, content)
        manifest = json.dumps({"format": _FORMAT, "sha256": found}, indent=1).encode()
        _add(tar, MANIFEST, BytesIO(manifest))
    return len(found)


def load(settings: Settings, store: ObjectStore, stream: IO[bytes]) -> int:
    """Store every file of a stream, read all of it back, and give their number. What is there already and the same
    stays. Raises BadBackup, StorageUnavailable."""
    manifest: dict[str, Any] | None = None
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise BadBackup(f"{member.name} is not a regular file")
            if member.name == MANIFEST:
                manifest = json.load(content)
            elif member.name.startswith("objects/"):
                _put(settings, store, member.name.removeprefix("objects/"), content)
            else:
                _write(_own_path(settings, member.name), content)
    if manifest is None or manifest.get("format") != _FORMAT:
        raise BadBackup("it has no manifest of this version at its end: the backup is cut off, or of another Temper")
    expected: dict[str, str] = manifest["sha256"]
    for name, sha256 in expected.items():
        if _sha256(_content(settings, store, name)) != sha256:
            raise BadBackup(f"{name} does not match its sha256 in the manifest")
    return len(expected)


def check(database: Database, store: ObjectStore) -> list[str]:
    """List the rows whose object is missing or has another sha256 than the row says. Raises StorageUnavailable."""
    with database.reading() as session:
        contents, presences = _contents(session), list(_presences(session))
    wrong = []
    for (key, sha256), table in contents.items():
        try:
            same = _sha256(store.read(key)) == sha256
        except StorageUnavailable as error:
            wrong.append(f"{table}: {error}")
        else:
            wrong.extend([] if same else [f"{table}: {key} is not what the database says"])
    for table, folder, names in presences:
        there = set(store.keys(folder))
        wrong.extend(f"{table}: {key} is not there" for key in names if key not in there)
    return wrong


def _contents(session: Session) -> Mapping[tuple[str, str], str]:
    """Name the objects whose sha256 the database knows, each once, and a table that has it."""
    tables: dict[tuple[str, str], str] = {}
    for table in Table.metadata.sorted_tables:
        if {"key", "sha256"} <= set(table.columns.keys()):
            for key, sha256 in session.execute(select(table.c.key, table.c.sha256)):
                tables.setdefault((key, sha256), table.name)
    for report, sha256 in session.execute(select(Job.report_key, Job.report_sha256)):
        if report and sha256:
            tables.setdefault((report, sha256), Job.__tablename__)
    for upload in session.scalars(select(Upload).where(Upload.status == "completed")):
        tables.setdefault((uploads.key(upload), upload.sha256), Upload.__tablename__)
    return tables


def _presences(session: Session) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Name the objects of which the database knows only that they are there: a table, a folder, what is in it."""
    of_attempts = select(Attempt.job_id, Attempt.attempt, Attempt.log_parts).where(Attempt.log_parts > 0)
    for job_id, attempt, parts in session.execute(of_attempts):
        folder = log_key(job_id, attempt, 1).rpartition("/")[0]
        yield Attempt.__tablename__, folder, map(partial(log_key, job_id, attempt), range(1, parts + 1))
    for table in assets.TABLES.values():
        for prefix in session.scalars(select(table.report_prefix).where(table.report_prefix.is_not(None))):
            if prefix:
                yield table.__tablename__, prefix, [f"{prefix}/{inspections.REPORT}"]


def _own_files(settings: Settings) -> list[Path]:
    """List the operator's own models and data sets, in their order. Raises Unreadable."""
    found: list[Path] = []
    unreadable: list[str] = []

    def refuse(error: OSError) -> None:
        unreadable.append(f"{error.filename}: {error.strerror}")

    for top in (settings.models_dir, settings.datasets_dir):
        for folder, _, names in os.walk(top, onerror=refuse):
            for path in (Path(folder, name) for name in names):
                try:
                    if stat.S_ISREG(path.stat().st_mode):
                        path.open("rb").close()
                        found.append(path)
                except FileNotFoundError:
                    continue  # a broken link, or deleted meanwhile
                except OSError as error:
                    refuse(error)
    if unreadable:
        raise Unreadable("\n".join(sorted(unreadable)))
    return sorted(found)


def _own_path(settings: Settings, name: str) -> Path:
    top, *rest = PurePosixPath(name).parts
    if top not in (settings.models_dir.name, settings.datasets_dir.name) or ".." in rest or not rest:
        raise BadBackup(f"{name} is outside the models and datasets folders")
    return settings.data_dir / name


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes]) -> str:
    """Add a file, and give its sha256."""
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, os.SEEK_END)
    entry.mode = _SHARED
    content.seek(0)
    hashing = _Hashing(content)
    tar.addfile(entry, hashing)
    return hashing.sha256.hexdigest()


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, all that are left if it is negative, and add them to the hash."""
        chunk = self._file.read(size)
        self.sha256.update(chunk)
        return chunk


def _put(settings: Settings, store: ObjectStore, key: str, content: IO[bytes]) -> None:
    with _spooled(settings) as file:
        while chunk := content.read(_CHUNK):
            file.write(chunk)
        file.flush()
        try:
            store.put(key, Path(file.name))
        except FileExistsError:
            return  # from an earlier try: whether it is the same, the manifest says
        except ValueError as error:
            raise BadBackup(str(error)) from None


def _write(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while chunk := content.read(_CHUNK):
            file.write(chunk)


@contextmanager
def _spooled(settings: Settings) -> Iterator[Any]:
    """A file on the disk of the data folder: an object may be larger than memory."""
    with NamedTemporaryFile(dir=settings.work_dir) as file:
        yield file


def _content(settings: Settings, store: ObjectStore, name: str) -> Iterator[bytes]:
    if name.startswith("objects/"):
        yield from store.read(name.removeprefix("objects/"))
        return
    with _own_path(settings, name).open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def main(arguments: list[str]) -> None:
    """Do what is asked; end the program with a plain sentence where that fails."""
    settings = Settings.from_environment()
    with closing(open_store(settings)) as store:
        try:
            match arguments:
                case ["save"]:
                    _say(f"{save(settings, store, sys.stdout.buffer)} files saved")
                case ["load"]:
                    _say(f"{load(settings, store, sys.stdin.buffer)} files loaded, each as it was saved")
                case ["check"]:
                    with closing(Database(settings.database_url)) as database:
                        wrong = check(database, store)
                    if wrong:
                        _say("\n".join(wrong))
                        sys.exit(INCOMPLETE)
                    _say("every object that the database names is there, and what it was where its hash is known")
                case _:
                    sys.exit("usage: python -m app.operations.backup save|load|check")
        except Unreadable as error:
            sys.exit(f"the backup would lack files that Temper may not read, so none is made:\n{error}\n{_REMEDY}")
        except (BadBackup, tarfile.TarError, json.JSONDecodeError) as error:
            sys.exit(f"this backup cannot be loaded: {error}")
        except DatabaseError as error:
            sys.exit(f"the database cannot be read: {error.orig}")
        except StorageFull as error:
            sys.exit(f"the object store is full: {error}")
        except StorageUnavailable as error:
            sys.exit(f"the object store cannot be used: {error}")
        except OSError as error:
            sys.exit(f"a file cannot be read or written: {error}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
