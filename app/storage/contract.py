"""Contract of the object stores; tests/app/storage/test_storage.py holds each store to it."""

import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHUNK = 1024 * 1024
"""Bytes of one read."""
MOST_PARTS = 10_000
"""Maximum number of parts of a multipart upload: S3's limit."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class StorageUnavailable(Exception):
    """The object store cannot be read or written."""


class NotStored(StorageUnavailable):
    """There is no such object."""


class StorageFull(StorageUnavailable):
    """The object store has no room left."""


@dataclass(frozen=True)
class SignedRequest:
    """A request that a client may send to the object store itself, unchanged."""

    url: str
    headers: Mapping[str, str]
    """Headers that the client must send: the signature covers all of them."""


class ObjectStore(Protocol):
    """Files that are written once and never changed, under keys such as jobs/<id>/attempts/<attempt>/report.json.

    Every method but `close`, and those of `multipart` and `presigner`, raise StorageUnavailable, and ValueError for an
    invalid key.
    """

    @property
    def multipart(self) -> "Multipart":
        """Uploads in parts."""

    @property
    def presigner(self) -> "Presigner | None":
        """Requests that clients send to the store itself; None where they can only go through the API."""

    def put(self, key: str, source: Path) -> None:
        """Store a file, all of it or nothing. Raises StorageFull, and FileExistsError where the key is taken."""

    def size(self, key: str) -> int:
        """Return the size of an object in bytes. Raises NotStored."""

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks. Raises NotStored. It can be closed early."""

    def keys(self, prefix: str = "", *, after: str = "") -> Iterator[str]:
        """List the keys below a key, or all keys, in alphabetical order; only those after `after`, if given."""

    def copy(self, key: str, target: str) -> None:
        """Store the same content under a second key, which must not hold any other content. Raises NotStored."""

    def delete(self, key: str) -> None:
        """Delete the object of this key and all objects below it. Deleting what does not exist is not an error."""

    def close(self) -> None:
        """Close all connections."""


class Multipart(Protocol):
    """Objects that are uploaded in parts, as in S3's multipart uploads."""

    def create(self, key: str) -> str:
        """Create a multipart upload; return its id."""

    def upload_part(self, key: str, multipart_id: str, number: int, source: Path) -> None:
        """Store a part; numbers start at 1. A part that exists is replaced. Raises StorageFull."""

    def list_parts(self, key: str, multipart_id: str) -> Mapping[int, int]:
        """Return the size in bytes of each stored part by its number; empty where there is no such upload."""

    def complete(self, key: str, multipart_id: str) -> None:
        """Make the object of its parts, in the order of their numbers. Completing twice is not an error. Raises
        StorageFull, NotStored where there are no parts, and FileExistsError where the key holds another object."""

    def abort(self, key: str, multipart_id: str) -> None:
        """Delete the parts of an upload. Aborting what does not exist is not an error. A completed upload must not be
        aborted, since some servers then never free its bytes."""


class Presigner(Protocol):
    """Requests that are signed for one object and are valid for some minutes."""

    def download(self, key: str, *, file_name: str) -> SignedRequest:
        """Sign the download of an object, which the client saves as `file_name`."""

    def upload(self, key: str, *, size: int, sha256: str) -> SignedRequest:
        """Sign the upload of exactly this content to a key that is not taken."""

    def upload_part(self, key: str, multipart_id: str, number: int, *, size: int, sha256: str) -> SignedRequest:
        """Sign the upload of exactly this content as a part."""


def checked(key: str) -> str:
    """Return the key. Raises ValueError where it is not valid."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key
