"""Pickles as data: no opcode runs code, and no pickle takes more memory or time than its size allows."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import enum
import io
import pathlib
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import inert_pickle
from core.inert_pickle import Global, HarmfulPickle, Inert, Unpickler, UnreadablePickle
from tests.support import canary

_MODULE = "tests.support.canary"
_SING = f"c{_MODULE}\nsing\n".encode()
_CANARY = f"c{_MODULE}\nCanary\n".encode()
_CODES = {1: 0xC1, 2: 0xC1C1, 4: 0x0C1C1C1C}
"""Codes of copyreg's registry, one for each width."""
_NAMES = {1: "sing", 2: "Canary", 4: "sing_again"}
"""What they stand for: the registry has one code for a name."""


def read(content: bytes, **options: Any) -> Any:
    return Unpickler(io.BytesIO(content), len(content), builders={}, **options).load()


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    canary.SUNG.clear()
    yield
    canary.SUNG.clear()


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


CALLS = {
    "REDUCE": _SING + b")R.",
    "REDUCE of a stacked name": _text(_MODULE) + _text("sing") + b"\x93)R.",
    "BUILD": _CANARY + b")R}b.",
    "INST": f"(i{_MODULE}\nsing\n.".encode(),
    "OBJ": b"(" + _SING + b"o.",
    "NEWOBJ": _CANARY + b")\x81.",
    "NEWOBJ_EX": _CANARY + b")}\x92.",
    "EXT1": b"\x82" + struct.pack("<B", _CODES[1]) + b")R.",
    "EXT2": b"\x83" + struct.pack("<H", _CODES[2]) + b")R.",
    "EXT4": b"\x84" + struct.pack("<i", _CODES[4]) + b")R.",
    "APPEND": _CANARY + b")\x81Na.",
    "APPENDS": _CANARY + b")\x81(Ne.",
    "SETITEM": _CANARY + b")\x81NNs.",
    "SETITEMS": _CANARY + b")\x81(NNu.",
    "ADDITEMS": _CANARY + b")\x81(N\x90.",
}


@pytest.mark.parametrize("opcode", list(CALLS))
def test_no_opcode_that_calls_runs_anything(opcode: str) -> None:
    with contextlib.ExitStack() as registered:
        for width, code in _CODES.items():
            copyreg.add_extension(_MODULE, _NAMES[width], code)
            registered.callback(copyreg.remove_extension, _MODULE, _NAMES[width], code)
        registered.callback(copyreg.clear_extension_cache)
        assert isinstance(read(CALLS[opcode]), Inert)
        assert canary.SUNG == []
        # The canary is one that sings.
        pickle.loads(CALLS[opcode])
        assert canary.SUNG != []


@pytest.mark.parametrize("content", [b"cfresh_canary\nsing\n.", _text("fresh_canary") + _text("sing") + b"\x93."])
def test_a_named_module_is_not_imported(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fresh_canary.py").write_text("from tests.support import canary\nsing = canary.sing('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(content) == Global("fresh_canary.sing")
    assert "fresh_canary" not in sys.modules
    pickle.loads(content)
    assert canary.SUNG
    del sys.modules["fresh_canary"]


@pytest.mark.parametrize("content", [b"Pstorage 0\n.", _text("storage 0") + b"Q."])
def test_a_persistent_id_is_resolved_by_the_reader_alone(content: bytes) -> None:
    assert read(content, persistent=lambda given: ["resolved", given]) == ["resolved", "storage 0"]
    assert isinstance(read(content), Inert)


@pytest.mark.parametrize("name", ["posix system", "os system", "subprocess Popen", "builtins eval", "__builtin__ exec"])
def test_a_name_that_can_only_harm_is_reported(name: str) -> None:
    with pytest.raises(HarmfulPickle) as caught:
        read(f"c{name.replace(' ', chr(10))}\n(S'true'\ntR.".encode())
    assert caught.value.name == name.replace(" ", ".").replace("__builtin__", "builtins")


class _Colour(enum.Enum):
    RED = 1


_PLAIN = {"a": [1, -2, 2.5, None, True, False], "b": ("x" * 300, "ä", 10**30), 5: {"c": ()}, None: {}}
_OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1),
    "path": pathlib.PurePosixPath("/data/cifar"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "enum": _Colour.RED,
    "numpy": [np.float64(87.3), np.arange(4), np.dtype("int8"), np.random.default_rng(0).bit_generator.state],
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "complex": 1j,
    "bytearray": bytearray(b"x"),
    "function": sys.getsizeof,
    "method": [1].append,
    "slice": slice(1, 2),
    "deque": collections.deque([1]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_has_them(protocol: int) -> None:
    assert read(pickle.dumps(_PLAIN, protocol)) == _PLAIN


@pytest.mark.parametrize("protocol", range(3, 6))
def test_bytes_are_read_as_such(protocol: int) -> None:
    assert read(pickle.dumps(b"\x00\xff" * 300, protocol)) == b"\x00\xff" * 300


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("what", list(_OBJECTS))
def test_objects_beside_the_values_are_records(what: str, protocol: int) -> None:
    content = pickle.dumps({"before": 1, "object": _OBJECTS[what], "after": [2]}, protocol)
    found = read(content)
    assert (found["before"], found["after"]) == (1, [2])


def test_a_shared_and_a_cyclic_value_are_read_once() -> None:
    inner: dict[str, Any] = {"w": 1}
    inner["self"] = inner
    found = read(pickle.dumps([inner, inner]))
    assert found[0] is found[1] is found[0]["self"]


HOSTILE = {
    "nothing": b"",
    "no end": b"}",
    "an empty stack": b".",
    "no mark": b"t.",
    "an unknown opcode": b"\xff.",
    "an unknown memo": b"h\x05.",
    "a long text": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "a long bytearray": b"\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a long text of protocol 1": b"X" + struct.pack("<I", 2**31) + b"x.",
    "a negative length": b"T" + struct.pack("<i", -5) + b"x.",
    "a huge integer": b"\x8b" + struct.pack("<i", 2**30) + b"x.",
    "a negative integer length": b"\x8b" + struct.pack("<i", -1) + b"x.",
    "digits without end": b"I" + b"9" * 5000 + b"\n.",
    "a name without end": b"c" + b"a" * 100_000,
    "half a pair": b"}(Nu.",
    "a name that is a number": b"K\x01K\x02\x93.",
    "a text that is not UTF-8": b"\x8c\x02\xff\xfe.",
    "a short tuple": b"N\x87.",
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_what_is_not_a_pickle_is_refused_without_memory(what: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadablePickle):
            read(HOSTILE[what])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_memo_index_takes_no_memory_of_its_size() -> None:
    tracemalloc.start()
    assert read(b"Nr" + struct.pack("<I", 2**32 - 1) + b".") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_deep_nesting_is_read_and_freed() -> None:
    depth = 50_000
    assert isinstance(read(b"]" * depth + b"a" * (depth - 1) + b"."), list)
    assert isinstance(read(b"N" + b"\x85" * depth + b"."), tuple)


def test_keys_whose_hash_takes_for_ever_are_left_out() -> None:
    # A tuple of two equal tuples, sixty times: its hash visits 2**60 values.
    assert read(b"}N" + b"2\x86" * 60 + b"Ns.") == {}
    colliding = [b"\x8a\x10" + (number * (2**61 - 1) << 6).to_bytes(16, "little") + b"N" for number in range(2000)]
    assert len(read(b"}(" + b"".join(colliding) + b"u.")) < 100


def test_the_number_of_opcodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(UnreadablePickle, match="more than 1,000 opcodes"):
        read(b"]0" * 1000 + b"N.")
