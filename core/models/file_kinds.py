"""Tell what an uploaded or downloaded weight file is by its content; its name does not count.

Only safetensors and torch files are read. Each other kind that people take for weights has a sentence of its own, with
what to do instead.
"""

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.models.torch_files import MAGIC
from core.models.weight_search import show
from core.schema.errors import BadWeights

Kind = Literal["safetensors", "archive", "stream"]
"""safetensors; a torch file of version 1.6 or later, which is a zip archive; or an older one, a stream of pickles."""

MAX_HEADER_BYTES = 100 * 2**20
"""Size of the header of a safetensors file, as the format limits it."""
_START_BYTES = 4096
_AGAIN = "download it again, or copy it again"
_STATE_DICT = "torch.save(model.state_dict(), 'plain.pt')"
_CONVERT = f"load it with its framework, copy its weights into the torch network, and save them with {_STATE_DICT}"
_EXPORTED = f"import the weights that it was exported from: {_STATE_DICT}"
_UNPACK = "unpack it, and import the weights file that is inside"
_PICTURE = "give the file of the weights; a data set is a zip of train/<class>/* and test/<class>/*"


@dataclass(frozen=True)
class _Sign:
    """Bytes by which a kind of file is known."""

    pattern: bytes
    """A regular expression that the start of the file matches."""
    what: str
    """Completes "the file ..."."""
    hint: str


_SIGNS = (
    _Sign(
        rb"version https://git-lfs",
        "is a pointer of Git LFS, which stands for the weights in a repository, not the weights themselves",
        "run git lfs pull in that repository, or download the file through the web page of the repository",
    ),
    _Sign(
        rb"\s*(\xef\xbb\xbf)?\s*<(\?xml|Error\b)",
        "is XML, such as the answer of a store that refuses access, not weights",
        "the download failed: open the file in an editor to see why, and download it again",
    ),
    _Sign(
        rb"\s*(\xef\xbb\xbf)?\s*<[!a-zA-Z]",
        "is a web page, not weights",
        "the download failed: open the URL in a browser, or download the file again",
    ),
    _Sign(
        rb"\s*\{[^\x00]*\"weight_map\"",
        "is the index of weights that are split into several files, not weights",
        "merge the parts into one file: load them with safetensors or torch.load, join the dicts, and save the result",
    ),
    _Sign(
        rb"\s*[\[{]\s*[\"\]}\[{]",
        "is JSON, not weights",
        "give the file of the weights that lies beside it; if it was a download, the text in it says why it failed",
    ),
    _Sign(rb"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes weights, not a torch file", _CONVERT),
    _Sign(rb"\x08\x01\x12", "is a SavedModel of TensorFlow, not a torch file", _CONVERT),
    _Sign(rb"\x08[\x02-\x20](\x12|\x3a|\x42|\x1a|\x22|\x2a|\x32)", "is an ONNX model, not a torch file", _EXPORTED),
    _Sign(
        rb"\x0a[\x01-\xff][\x00-\x7f]?\x0a[\x01-\x7f][ -~]+\x12[\x01-\x7f][A-Z][A-Za-z0-9]+",
        "is a graph of TensorFlow, not a torch file",
        _CONVERT,
    ),
    _Sign(rb"(?s)....TFL3", "is a TensorFlow Lite model, not a torch file", _CONVERT),
    _Sign(rb"GGUF", "is a GGUF file of a language model, not an image classifier", "import an image classifier"),
    _Sign(rb"\x93NUMPY", "is one array of numpy, not the weights of a network", _CONVERT),
    _Sign(rb"MATLAB 5\.0", "is a file of MATLAB, not a torch file", _CONVERT),
    _Sign(rb"\x1f\x8b", "is compressed with gzip", f"{_UNPACK}: gunzip, or tar xzf for a .tar.gz"),
    _Sign(rb"\xfd7zXZ\x00", "is compressed with xz", f"{_UNPACK}: unxz, or tar xJf for a .tar.xz"),
    _Sign(rb"BZh[1-9]1AY&SY", "is compressed with bzip2", f"{_UNPACK}: bunzip2, or tar xjf for a .tar.bz2"),
    _Sign(rb"\x28\xb5\x2f\xfd", "is compressed with Zstandard", f"{_UNPACK}: unzstd"),
    _Sign(rb"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", _UNPACK),
    _Sign(rb"Rar!\x1a\x07", "is a RAR archive", _UNPACK),
    _Sign(rb"(?s).{257}ustar", "is a tar archive", f"{_UNPACK}: tar xf"),
    _Sign(rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|(?s:RIFF....WEBP)", "is an image, not weights", _PICTURE),
    _Sign(rb"%PDF-", "is a PDF document, not weights", "give the file of the weights"),
    _Sign(rb"\x7fELF|MZ\x90\x00", "is a program, not weights", "give the file of the weights"),
)

_MEMBERS = (
    # Names of entries by which a zip archive is known: the first that fits decides.
    _Sign(
        rb"([^/]*/)?(code/|constants\.pkl$)",
        "is a TorchScript program, which contains code",
        "load it with torch.jit.load where you trust it, and save its weights: "
        "torch.save(program.state_dict(), 'plain.pt')",
    ),
    _Sign(
        rb"([^/]*/)?(serialized_exported_program\.json|archive_format|models/[^/]*\.json)$",
        "is a program of torch.export, which contains code",
        "load it with torch.export.load where you trust it, and save its weights: "
        "torch.save(program.state_dict, 'plain.pt')",
    ),
    _Sign(rb"([^/]*/)?\.data/extern_modules$", "is a package of torch.package, which contains code", _EXPORTED),
    _Sign(rb"model\.weights\.h5$", "is a Keras model, not a torch file", _CONVERT),
    _Sign(rb".*\.npy$", "is an archive of numpy arrays (npz), not a torch file", _CONVERT),
    _Sign(rb"(.*/)?saved_model\.pb$", "is a zip archive of a TensorFlow SavedModel, not a torch file", _CONVERT),
)
_WEIGHTS = re.compile(r"\.(safetensors|pth?|ckpt|bin|tar|pkl)$", re.IGNORECASE)
_IMAGES = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?)$", re.IGNORECASE)
# The last bytes of the index beside a TensorFlow checkpoint, a table of LevelDB.
_LEVELDB = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def find_kind(path: Path, *, field: str = "file") -> Kind:
    """Tell the format of a weight file by its content.

    field: the input that the error is about. Raises BadWeights for any file that is not of these formats, with what it
    is and what to do.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_LEVELDB)))
            end = file.read()
    except OSError as cause:
        raise BadWeights(f"cannot read {path}: {cause.strerror}", hint="check the path", field=field) from cause

    def error(what: str, hint: str) -> BadWeights:
        return BadWeights(f"{path.name} {what}", hint=hint, field=field)

    if not start:
        raise error("is empty", "the download failed: download it again")
    # First, for its first byte, the length of its header, can be any of those below.
    if start[8:9] == b"{" and not any(start[5:8]):
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise error("is a safetensors file whose header is too long", _AGAIN)
        if length > size - 8:
            raise error("is a safetensors file that is cut off within its header", _AGAIN)
        return "safetensors"
    if start.startswith(b"PK"):
        _check_archive(path, field)
        return "archive"
    if MAGIC in start[:16]:
        return "stream"
    for sign in _SIGNS:
        if re.match(sign.pattern, start):
            raise error(sign.what, sign.hint)
    if end == _LEVELDB:
        raise error("is the index of a TensorFlow checkpoint, not a torch file", _CONVERT)
    if not any(start):
        raise error("contains only zeros at its start: the download was reserved and not filled", "download it again")
    if re.match(rb"\x80[\x02-\x05]", start) or (start[:1] in b"(}]c" and b"\n" in start):
        return "stream"
    raise error(
        "is not a torch file, nor safetensors: it is damaged, cut off, or no weights file",
        "download it again, or save it again with torch.save(model.state_dict(), 'weights.pt')",
    )


def _check_archive(path: Path, field: str) -> None:
    """Refuse a zip archive that torch.save did not write. Raises BadWeights."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError) as error:
        raise BadWeights(
            f"{path.name} cannot be read as a torch file: it is damaged, cut off, or no weights file, because the end "
            "of its zip archive is missing",
            hint="download it again, or save it again with torch.save(model.state_dict(), 'weights.pt')",
            field=field,
        ) from error
    for sign in _MEMBERS:
        if any(re.match(sign.pattern, name.encode(errors="replace")) for name in names):
            raise BadWeights(f"{path.name} {sign.what}", hint=sign.hint, field=field)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return
    if not names:
        what, hint = "is an empty zip archive", _AGAIN
    elif weights := next((name for name in names if _WEIGHTS.search(name)), None):
        what, hint = "is a zip archive with a weights file inside", f"unpack it, and import {show(weights)}"
    elif any(_IMAGES.search(name) for name in names):
        what, hint = "is a zip archive of images, not weights", "add it as a data set: temper datasets add"
    else:
        what, hint = "is a zip archive that torch did not write", "unpack it, and give the file of the weights"
    raise BadWeights(f"{path.name} {what}", hint=hint, field=field)
