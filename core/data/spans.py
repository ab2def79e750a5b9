"""Bytes of files that lie in a zip or tar archive, read at their place: any of them, in any order, by any process."""

import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from core.data.image_decoding import Unusable

_LOCAL, _LOCAL_SIZE = b"PK\x03\x04", 30
_LARGEST_FILE = 64 * 2**20


class Span(NamedTuple):
    """Where a file lies in an archive."""

    offset: int
    """Of the file in a tar archive, of its local header in a zip archive."""
    packed: int
    """Bytes that it takes there."""
    method: int
    """-1 in a tar archive, in a zip archive the compression method."""


_PLAIN = -1


def span_in_zip(member: zipfile.ZipInfo) -> Span:
    """Tell where a file lies in a zip archive."""
    return Span(member.header_offset, member.compress_size, member.compress_type)


def span_in_tar(member: tarfile.TarInfo) -> Span:
    """Tell where a file lies in an uncompressed tar archive."""
    return Span(member.offset_data, member.size, _PLAIN)


def read_span(path: Path, span: Span | None, size: int, *, most: int | None = None) -> bytes:
    """Read a file, or its first bytes.

    path: of the file, or of the archive that it lies in. span: where it lies there; None for a file of its own. size:
    bytes of the file, as the archive states them. most: the number of bytes to read; None for all. Raises Unusable.
    """
    try:
        with path.open("rb") as file:
            if span is None:
                return file.read(-1 if most is None else most)
            if size > _LARGEST_FILE:
                raise Unusable(f"it is larger than {_LARGEST_FILE // 2**20} MiB")
            wanted = size if most is None else min(most, size)
            if span.method == _PLAIN:
                return os.pread(file.fileno(), wanted, span.offset)
            header = os.pread(file.fileno(), _LOCAL_SIZE, span.offset)
            if len(header) < _LOCAL_SIZE or not header.startswith(_LOCAL):
                raise Unusable("its place in the archive is damaged")
            start = span.offset + _LOCAL_SIZE + sum(struct.unpack_from("<2H", header, 26))
            packed = os.pread(file.fileno(), min(span.packed, _LARGEST_FILE), start)
            if span.method == zipfile.ZIP_STORED:
                return packed[:wanted]
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, wanted)
    except OSError as error:
        raise Unusable(f"it cannot be read: {error.strerror}") from error
    except zlib.error as error:
        raise Unusable(f"it is damaged in the archive: {error}") from error
