"""Torch files, new and old, give the tensors that torch itself reads from them, and hostile ones give none."""

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.inert_pickle import UnreadablePickle
from core.models.torch_files import DamagedFile, StoredTensor, UnusableTensor, read_archive, read_stream
from core.models.weight_files import read
from core.schema.errors import BadWeights
from tests.support.weight_files import saved

_BASE = torch.arange(24, dtype=torch.float32)


class _Subclass(Tensor):
    pass


def _with_attribute() -> Tensor:
    tensor = torch.ones(2)
    tensor.note = "kept"  # type: ignore[attr-defined]
    return tensor


CONTENT: dict[str, Any] = {
    "types": {
        str(dtype): torch.arange(6).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    },
    "views": {"all": _BASE, "part": _BASE[3:9], "turned": _BASE.view(4, 6).T, "every second": _BASE[::2]},
    "shapes": {"scalar": torch.tensor(2.5), "empty": torch.ones(0, 3), "repeated": torch.ones(1).expand(5, 4)},
    "kinds": {"parameter": nn.Parameter(torch.ones(2)), "subclass": torch.ones(2).as_subclass(_Subclass)},
    "attributes": {"tensor": _with_attribute()},
    "a state dict": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),
}


def _archive(content: Any) -> bytes:
    return saved(content)


def _stream(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def _pickle(protocol: int) -> Callable[[Any], bytes]:
    return lambda content: pickle.dumps(content, protocol)


@pytest.mark.parametrize("write", [_archive, _stream, _pickle(2), _pickle(4)], ids=["new", "old", "pickle2", "pickle4"])
@pytest.mark.parametrize("what", list(CONTENT))
def test_tensors_are_those_that_were_saved(what: str, write: Callable[[Any], bytes], tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(write(CONTENT[what]))
    found = read_archive(path) if write is _archive else read_stream(path)
    assert found.keys() == CONTENT[what].keys()
    for name, expected in CONTENT[what].items():
        tensor = found[name]
        assert isinstance(tensor, StoredTensor)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor.load(), expected.detach().as_subclass(Tensor))


def test_tensors_that_share_numbers_read_them_once(tmp_path: Path) -> None:
    torch.save({"one": _BASE, "other": _BASE.view(4, 6)}, tmp_path / "w.pt")
    found = read_archive(tmp_path / "w.pt")
    assert found["one"].load().data_ptr() == found["other"].load().data_ptr()


def test_numbers_of_the_other_byte_order_are_turned(tmp_path: Path) -> None:
    other = "big" if sys.byteorder == "little" else "little"
    with zipfile.ZipFile(io.BytesIO(saved({"w": _BASE}))) as old, zipfile.ZipFile(tmp_path / "w.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data/0"):
                content = _BASE.numpy().byteswap().tobytes()
            new.writestr(name, other if name.endswith("byteorder") else content)
    assert torch.equal(read_archive(tmp_path / "w.pt")["w"].load(), _BASE)
    assert torch.equal(torch.load(tmp_path / "w.pt")["w"], _BASE)


def test_only_the_weights_that_are_taken_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"w": torch.ones(2, 2)}, "optimizer": {"m": torch.ones(1000)}}, path)
    content = bytearray(path.read_bytes())
    # The numbers of the optimiser are behind the end of the file.
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("w/data/1")
    content[entry.header_offset : entry.header_offset + 4] = b"none"
    path.write_bytes(content)
    assert torch.equal(read(path).weights["w"], torch.ones(2, 2))
    with pytest.raises(BadWeights, match="not where the archive says"):
        read(path, key="optimizer")


def _rebuilt(arguments: bytes, function: str = "_rebuild_tensor_v2", numbers: int = 4) -> bytes:
    """Write an archive whose pickle makes one tensor of a storage of float32 numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    made = f"ctorch._utils\n{function}\n".encode() + b"(" + storage + arguments + b"tR"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}X\x01\x00\x00\x00w" + made + b"s.")
        archive.writestr("w/data/0", bytes(4 * numbers))
    return file.getvalue()


def _long(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


HOSTILE = {
    "beyond its storage": b"K\x00(K\x05t(K\x01t\x89}",
    "beyond by its offset": b"K\x01(K\x04t(K\x01t\x89}",
    "beyond by its stride": b"K\x00(K\x02t(K\x09t\x89}",
    "with a negative offset": b"J\xff\xff\xff\xff(K\x02t(K\x01t\x89}",
    "with a negative size": b"K\x00(J\xff\xff\xff\xfft(K\x01t\x89}",
    "with a negative stride": b"K\x00(K\x02t(J\xff\xff\xff\xfft\x89}",
    "with an enormous size": b"K\x00(" + _long(2**62) + _long(2**62) + b"t(K\x00K\x00t\x89}",
    "with an empty enormous size": b"K\x00(K\x00" + _long(2**62) + b"t(K\x00K\x00t\x89}",
    "with too few strides": b"K\x00(K\x02K\x02t(K\x01t\x89}",
    "with a size that is not one": b"K\x00(Nt(K\x01t\x89}",
    "with no size": b"K\x00NN\x89}",
    "with too few arguments": b"",
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_tensor_outside_its_storage_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(_rebuilt(HOSTILE[what]))
    with pytest.raises(UnreadablePickle):
        read_archive(tmp_path / "w.pt")
    with pytest.raises(BadWeights, match="cannot be read as a torch file"):
        read(tmp_path / "w.pt")


def test_a_tensor_that_repeats_few_numbers_too_often_is_not_made(tmp_path: Path) -> None:
    size = b"K\x00(M\xff\xffM\xff\xfft(K\x00K\x00t\x89}"
    (tmp_path / "w.pt").write_bytes(_rebuilt(size))
    assert isinstance(read_archive(tmp_path / "w.pt")["w"], UnusableTensor)
    with pytest.raises(BadWeights, match=r"w in w\.pt repeats few numbers"):
        read(tmp_path / "w.pt")


def test_a_storage_that_is_larger_than_its_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(_rebuilt(b"K\x00(K\x04t(K\x01t\x89}", numbers=3))
    with pytest.raises(DamagedFile, match="ends within a tensor"):
        read_archive(tmp_path / "w.pt")["w"].load()


def test_a_file_within_a_file_within_a_file_is_not_opened(tmp_path: Path) -> None:
    inner = pickle.dumps(torch.ones(2).untyped_storage(), 4)
    load = b"ctorch.storage\n_load_from_bytes\n(B"
    nested = _stream(torch.ones(2).untyped_storage())
    for _ in range(3):
        nested = load + struct.pack("<I", len(nested)) + nested + b"tR."
    (tmp_path / "w.pt").write_bytes(b"\x80\x04" + nested)
    (tmp_path / "one.pt").write_bytes(inner)
    assert type(read_stream(tmp_path / "one.pt")).__name__ == "Storage"
    assert type(read_stream(tmp_path / "w.pt")).__name__ == "Inert"
