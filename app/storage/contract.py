"""What an object store promises, wherever the objects lie; tests/app/storage/test_storage.py holds each store to it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHUNK = 1024 * 1024
"""Bytes that are read at once."""
MOST_PARTS = 10_000
"""Parts that one object can be made of: S3's rule."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class StorageUnavailable(Exception):
    """The object store cannot be read or written."""


class NotStored(StorageUnavailable):
    """There is no such object."""


class StorageFull(StorageUnavailable):
    """The object store has no room left."""


@dataclass(frozen=True)
class SignedRequest:
    """A request that a client may send to the store itself, as it stands here and in no other way."""

    url: str
    headers: Mapping[str, str]
    """What has to be sent with it: all of it is signed."""


class ObjectStore(Protocol):
    """Files that are written once and never changed, under keys such as jobs/<id>/attempts/<attempt>/report.json.

    Every method raises StorageUnavailable, and ValueError for what can be no key.
    """

    def put(self, key: str, source: Path) -> None:
        """Store a file, whole or not at all. Raises StorageFull, and FileExistsError where the key is taken."""

    def size(self, key: str) -> int:
        """Say how many bytes an object has. Raises NotStored."""

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks. Raises NotStored."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Go through the keys under a key, or all of them, in their order."""

    def copy(self, key: str, target: str) -> None:
        """Store the same content under a second key, which nothing else is stored under. Raises NotStored."""

    def delete(self, key: str) -> None:
        """Delete the object of this key, and all that are under it. What is not there is no error."""

    def begin(self, key: str) -> str:
        """Begin an object that comes in parts; give the name under which they are gathered."""

    def put_part(self, key: str, gathering: str, number: int, source: Path) -> None:
        """Store a part, the first of which has number 1; it takes the place of an earlier one. Raises StorageFull."""

    def parts(self, key: str, gathering: str) -> Mapping[int, int]:
        """Say which parts are there, and how many bytes each has; none where there is no such gathering."""

    def assemble(self, key: str, gathering: str) -> None:
        """Make the object out of its parts, in their order. Raises StorageFull, NotStored where there are none, and
        FileExistsError where the key is taken by anything but this gathering."""

    def abandon(self, key: str, gathering: str) -> None:
        """Drop a gathering and its parts. One that is not there is no error; one that became an object must not be
        dropped, since some servers leave the bytes where they are."""

    def download_request(self, key: str, *, file_name: str) -> SignedRequest | None:
        """Let a client fetch an object from the store itself; None where it can only come through the API."""

    def upload_request(self, key: str, *, size: int, sha256: str) -> SignedRequest | None:
        """Let a client put exactly one content under a free key; None where it can only go through the API."""

    def part_request(self, key: str, gathering: str, number: int, *, size: int, sha256: str) -> SignedRequest | None:
        """Let a client put exactly one content as a part; None where it can only go through the API."""

    def close(self) -> None:
        """Let go of connections."""


def checked(key: str) -> str:
    """Give back a key that is one. Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key
