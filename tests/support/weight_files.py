"""Files that people take for weights, made by hand or by the library that writes them, with what is said of each."""

import gzip
import io
import json
import lzma
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable

import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

Make = Callable[[], bytes]


def saved(content: object, **options: object) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    """Return a tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def weights() -> dict[str, torch.Tensor]:
    """Return weights that fit no network."""
    return {"fc.weight": torch.ones(20, 30), "fc.bias": torch.ones(20)}


def _script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # It is deprecated; files of it are around.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def _cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def _repacked() -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(weights()))) as old,
        zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
_INDEX = json.dumps({"metadata": {"total_size": 10}, "weight_map": {"fc.weight": "model-00001.safetensors"}}).encode()
_ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x8f\x0e\n"
_SAVED_MODEL = b"\x08\x01\x12\xd9\x98\x02\n\xb4\x0f\x12\x1c\x0a\x05Const"
_GRAPH = b"\n\x1b\n\x05input\x12\x0bPlaceholder*\x0b\n\x05dtype"

NOT_WEIGHTS: dict[str, tuple[Make, str, str]] = {
    "a pointer of Git LFS": (lambda: _POINTER, "is a pointer of Git LFS", "git lfs pull"),
    "a web page": (lambda: b"<!DOCTYPE html><title>Google Drive</title>", "is a web page", "open the URL"),
    "a web page after a mark": (lambda: b"\xef\xbb\xbf\n <html>", "is a web page", "download the file again"),
    "the answer of a store": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied", "is XML", "download it again"),
    "JSON": (lambda: b'{"error": "Repository not found"}', "is JSON", "why it failed"),
    "an index of parts": (lambda: _INDEX, "split into several files", "merge the parts"),
    "TorchScript": (_script, "is a TorchScript program", "torch.jit.load"),
    "an exported program": (
        lambda: zipped({"p/archive_format": b"pt2", "p/data/weights/0": b"1"}),
        "is a program of torch.export",
        "torch.export.load",
    ),
    "a package": (lambda: zipped({"p/.data/extern_modules": b"", "p/m.pkl": b""}), "torch.package", "exported from"),
    "Keras, HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "as Keras writes weights", "copy its weights"),
    "Keras, zip": (
        lambda: zipped({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b"\x89HDF"}),
        "is a Keras model",
        "copy its weights",
    ),
    "ONNX": (lambda: _ONNX, "is an ONNX model", "exported from"),
    "SavedModel": (lambda: _SAVED_MODEL, "is a SavedModel of TensorFlow", "copy its weights"),
    "SavedModel, zip": (lambda: zipped({"m/saved_model.pb": b""}), "zip archive of a TensorFlow", "copy its weights"),
    "a graph of TensorFlow": (lambda: _GRAPH, "is a graph of TensorFlow", "copy its weights"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(40), "is a TensorFlow Lite model", "copy its weights"),
    "an index of TensorFlow": (
        lambda: b"\x00\x00\x03\x08\x01" + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "is the index of a TensorFlow checkpoint",
        "copy its weights",
    ),
    "gzip": (lambda: gzip.compress(saved(weights())), "is compressed with gzip", "gunzip"),
    "xz": (lambda: lzma.compress(b"x"), "is compressed with xz", "unxz"),
    "Zstandard": (lambda: b"\x28\xb5\x2f\xfd\x04\x58", "is compressed with Zstandard", "unzstd"),
    "tar": (lambda: tarred({"w.pt": saved(weights())}), "is a tar archive", "tar xf"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c\0\4", "is a 7-Zip archive", "unpack it"),
    "a zip around weights": (lambda: zipped({"out/best.pth": b"x"}), "with a weights file inside", "out/best.pth"),
    "a zip of images": (lambda: zipped({"train/cat/1.png": b"x"}), "zip archive of images", "temper datasets add"),
    "another zip": (lambda: zipped({"a.txt": b"x"}), "that torch did not write", "unpack it"),
    "an empty zip": (lambda: zipped({}), "is an empty zip archive", "download it again"),
    "numpy, one": (lambda: b"\x93NUMPY\x01\x00v\x00{'descr'", "is one array of numpy", "copy its weights"),
    "numpy, several": (lambda: zipped({"w.npy": b"\x93NUMPY"}), "numpy arrays (npz)", "copy its weights"),
    "MATLAB": (lambda: b"MATLAB 5.0 MAT-file, Platform", "is a file of MATLAB", "copy its weights"),
    "GGUF": (lambda: b"GGUF\x03\0\0\0", "of a language model", "image classifier"),
    "PNG": (lambda: _picture("PNG"), "is an image", "the file of the weights"),
    "JPEG": (lambda: _picture("JPEG"), "is an image", "the file of the weights"),
    "WebP": (lambda: _picture("WEBP"), "is an image", "the file of the weights"),
    "PDF": (lambda: b"%PDF-1.7\n", "is a PDF document", "the file of the weights"),
    "nothing": (lambda: b"", "is empty", "download it again"),
    "zeros": (lambda: bytes(10_000), "only zeros", "download it again"),
    "text": (lambda: b"hello, these are no weights", "is not a torch file, nor safetensors", "download it again"),
    "a torch file cut off": (lambda: _cut(saved(weights()), 0.7), "the end of its zip archive is missing", "again"),
    "an old torch file cut off": (
        lambda: _cut(saved(weights(), _use_new_zipfile_serialization=False), 0.8),
        "the file ends within a tensor",
        "download it again",
    ),
    "an old torch file cut off early": (
        lambda: _cut(saved(weights(), _use_new_zipfile_serialization=False), 0.05),
        "the file ends within the pickle",
        "download it again",
    ),
    "a torch file packed again": (_repacked, "packed again with compression", "zip -0"),
    "safetensors cut off": (lambda: save(weights())[:-10], "safetensors file that is damaged or cut off", "again"),
    "safetensors cut off early": (lambda: save(weights())[:20], "cut off within its header", "download it again"),
    "safetensors with a false header": (
        lambda: struct.pack("<Q", 2**39) + b"{" + bytes(20),
        "whose header is too long",
        "download it again",
    ),
}
"""Each with a maker of its content, a part of the sentence, and a part of the remedy."""
