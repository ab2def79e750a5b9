"""The same twenty images, written in every form that a data set may have."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.support.images import write

CLASSES = ("cat", "dog")
_COUNTS = {"train": 6, "test": 4}


class Twenty(NamedTuple):
    """Six training and four test images of each of two classes, 32 x 32 in colour."""

    pixels: dict[str, np.ndarray]
    """(rows, 32, 32, 3) uint8 by part."""
    labels: dict[str, np.ndarray]
    """(rows,) by part; the classes take turns."""


def twenty() -> Twenty:
    """Make the images."""
    numbers = np.random.default_rng(0)
    pixels = {part: numbers.integers(0, 256, (2 * count, 32, 32, 3), dtype=np.uint8) for part, count in _COUNTS.items()}
    return Twenty(pixels, {part: np.arange(2 * count) % 2 for part, count in _COUNTS.items()})


def png(pixels: np.ndarray) -> bytes:
    """Encode an image."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Write an array as a `.npy` file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def parquet(
    pixels: np.ndarray, labels: object, *, names: tuple[str, ...] | None = CLASSES, images: object = None
) -> bytes:
    """Write rows as the datasets library does. images: other values of the image column."""
    import pyarrow
    import pyarrow.parquet

    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = images or [{"bytes": png(each), "path": f"{number}.png"} for number, each in enumerate(pixels)]
    table = pyarrow.table({"image": pyarrow.array(rows, struct), "label": pyarrow.array(labels, pyarrow.int64())})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


def files(of: Twenty) -> dict[str, bytes]:
    """Name the images as files in class folders."""
    return {
        f"{part}/{CLASSES[label]}/{row:03}.png": png(of.pixels[part][row])
        for part in _COUNTS
        for row, label in enumerate(of.labels[part])
    }


def _arrays(of: Twenty) -> dict[str, np.ndarray]:
    return {
        **{f"x_{part}": of.pixels[part] for part in _COUNTS},
        **{f"y_{part}": of.labels[part] for part in _COUNTS},
    }


def _npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return folder / "data.npz"


def _npys(of: Twenty) -> dict[str, bytes]:
    return {f"set/{name}.npy": npy(array) for name, array in _arrays(of).items()} | {"set/classes.txt": b"cat\ndog\n"}


def _shards(of: Twenty) -> dict[str, bytes]:
    halves = {f"data/train-{n:05}-of-00002.parquet": slice(6 * n, 6 * n + 6) for n in range(2)}
    shards = {name: parquet(of.pixels["train"][rows], of.labels["train"][rows]) for name, rows in halves.items()}
    return shards | {"data/test-00000-of-00001.parquet": parquet(of.pixels["test"], of.labels["test"])}


def _rows(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """Pickle a batch as Python 2 has written CIFAR's."""
    raw, count = rows.tobytes(), len(rows)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([count]) + b"M" + rows.shape[1].to_bytes(2, "little") + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
    array += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def _cifar_python(of: Twenty) -> dict[str, bytes]:
    batch = _rows(of.pixels["train"]), of.labels["train"].tolist()
    named = {
        "data_batch_1": python2_pickle(batch[0][:6], batch[1][:6]),
        "data_batch_2": pickle.dumps({b"data": batch[0][6:], b"labels": batch[1][6:]}, protocol=2),
        "test_batch": pickle.dumps({"data": _rows(of.pixels["test"]), "labels": of.labels["test"].tolist()}),
        "batches.meta": pickle.dumps({"label_names": list(CLASSES)}, protocol=2),
    }
    return {f"cifar-10-batches-py/{name}": content for name, content in named.items()}


def _cifar_binary(of: Twenty) -> dict[str, bytes]:
    def records(part: str, rows: slice) -> bytes:
        pairs = zip(of.labels[part][rows], _rows(of.pixels[part][rows]), strict=True)
        return b"".join(bytes([label]) + row.tobytes() for label, row in pairs)

    named = {
        "data_batch_1.bin": records("train", slice(0, 6)),
        "data_batch_2.bin": records("train", slice(6, 12)),
        "test_batch.bin": records("test", slice(0, 8)),
        "batches.meta.txt": b"cat\ndog\n\n",
    }
    return {f"cifar-10-batches-bin/{name}": content for name, content in named.items()}


def _single_parquet(of: Twenty) -> dict[str, bytes]:
    return {f"{part}.parquet": parquet(of.pixels[part], of.labels[part]) for part in _COUNTS}


_NAMES = {"label_names": np.array(CLASSES)}
FORMATS: dict[str, Callable[[Twenty, Path], Path]] = {
    "a folder": lambda of, at: write(files(of), at, "folder"),
    "a zip": lambda of, at: write(files(of), at, "zip"),
    "a tar": lambda of, at: write(files(of), at, "tar"),
    "a tar.gz": lambda of, at: write(files(of), at, "tar.gz"),
    "an npz": lambda of, at: _npz(at, **_arrays(of), **_NAMES),
    "an npz with channels first": lambda of, at: _npz(
        at,
        **{name: each.transpose(0, 3, 1, 2) if each.ndim == 4 else each[:, None] for name, each in _arrays(of).items()},
        **_NAMES,
    ),
    "npy files in a folder": lambda of, at: write(_npys(of), at, "folder"),
    "npy files in a zip": lambda of, at: write(_npys(of), at, "zip"),
    "parquet in a folder": lambda of, at: write(_shards(of), at, "folder"),
    "parquet in a tar": lambda of, at: write(_single_parquet(of), at, "tar"),
    "CIFAR's pickles": lambda of, at: write(_cifar_python(of), at, "tar.gz"),
    "CIFAR's binary files": lambda of, at: write(_cifar_binary(of), at, "zip"),
}
"""What each form is called -> a function that writes the images into a folder, and returns their path."""


def zip_of(folder: Path, name: str, **members: bytes) -> Path:
    """Write an archive of files, whatever is in them."""
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return folder / name
