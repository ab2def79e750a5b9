"""Read a pickle as data: an interpreter of pickle opcodes that imports nothing, calls nothing and has no classes.

Numbers, texts, lists, tuples and dicts are read as such. A name of a class or function stays a name (`Global`), and an
object made of it a record of its parts (`Inert`), which never acts. The only exceptions are the names in `builders`,
which the caller supplies, such as those that make a tensor of a storage. Memory is bounded by the size of the file and
`MAX_OPCODES`: a length that a pickle states is checked against the bytes that are left before they are read, and only
scalars are keys of a dict, because the hash of a nested tuple can take exponential time.
"""

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_OPCODES = 10_000_000
"""The opcodes that are read of one pickle; a checkpoint of the field has less than a million."""
_LONGEST_LINE = 4096
_MAX_INT_BYTES = 1024
_LARGEST_KEY = 2**64

# What a pickle names only to harm. Nothing of it would run; the file is refused, so that its owner learns of it.
_HARMFUL_MODULES = {
    *("os", "posix", "nt", "subprocess", "_posixsubprocess", "commands", "pty", "shutil", "socket"),
    *("runpy", "importlib", "ctypes", "_ctypes", "webbrowser"),
}
_HARMFUL_BUILTINS = {"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint"}


class UnreadablePickle(Exception):
    """The bytes are not a pickle, or end before it does."""


class HarmfulPickle(Exception):
    """The pickle names a function that runs commands or code. `name`: that function."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names."""

    name: str
    """Module and name, such as "numpy.dtype"."""


@dataclass(eq=False, slots=True)
class Inert:
    """An object that a pickle would make of a class or function: its parts, as far as they were read."""

    name: str
    """The class or function."""
    arguments: Any = ()
    """What it would have been called with."""
    state: Any = None
    """What it would have been given as its attributes."""
    entries: dict[Any, Any] = field(default_factory=dict)
    """What it would have been given as its items."""


Builder = Callable[[tuple[Any, ...]], Any]
"""Makes a value of the arguments of a call. Raises UnreadablePickle where these are not what they should be."""

_CONTAINERS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}


class Unpickler:
    """Reads pickles from a file, one after another as `load` is called."""

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        *,
        builders: Mapping[str, Builder],
        persistent: Callable[[Any], Any] = lambda _: Inert("persistent id"),
    ) -> None:
        """Size: the bytes of the file. builders: what makes values, by name. persistent: resolves persistent ids."""
        self._file, self._size = file, size
        self._builders, self._persistent = builders, persistent
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []

    def load(self) -> Any:
        """Read the next pickle. Raises UnreadablePickle and HarmfulPickle."""
        self._memo, self._stack, self._marks = {}, [], []
        try:
            for _ in range(MAX_OPCODES):
                opcode = self._read(1)
                if opcode == b".":
                    return self._stack.pop()
                if (act := _ACTIONS.get(opcode)) is None:
                    raise UnreadablePickle(f"unknown opcode {opcode!r}")
                act(self)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error) as error:
            # A stack that is too short, an unknown memo, a text that is not UTF-8, an operand of a wrong type.
            raise UnreadablePickle(str(error)) from error
        raise UnreadablePickle(f"more than {MAX_OPCODES:,} opcodes")

    def _read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise UnreadablePickle("the file ends within the pickle")
        return self._file.read(count)

    def _line(self) -> bytes:
        line = self._file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise UnreadablePickle("a line has no end")
        return line[:-1]

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._read(struct.calcsize(layout)))
        assert isinstance(number, int)
        return number

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _text(self, length: int) -> None:
        self._push(self._read(length).decode("utf-8", "surrogatepass"))

    def _old_text(self, length: int) -> None:
        """Push a text of Python 2, whose encoding is not stated."""
        content = self._read(length)
        try:
            self._push(content.decode())
        except UnicodeDecodeError:
            self._push(content.decode("latin-1"))

    def _long(self, length: int) -> None:
        if not 0 <= length <= _MAX_INT_BYTES:
            raise UnreadablePickle("an integer is too long")
        self._push(int.from_bytes(self._read(length), "little", signed=True))

    def _int_line(self) -> None:
        line = self._line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.rstrip(b"L")))

    def _string_line(self) -> None:
        decoded, _ = codecs.escape_decode(self._line().strip()[1:-1])
        self._push(decoded.decode("latin-1"))

    def _unicode_line(self) -> None:
        self._push(self._line().decode("raw-unicode-escape"))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _name(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnreadablePickle("a name is not a text")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        builtin = module == "builtins" and name.partition(".")[0] in _HARMFUL_BUILTINS
        if builtin or module.partition(".")[0] in _HARMFUL_MODULES:
            raise HarmfulPickle(f"{module}.{name}")
        return Global(f"{module}.{name}")

    def _global_line(self) -> Global:
        module = self._line().decode()
        return self._name(module, self._line().decode())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._name(module, name))

    def _make(self, what: Any, arguments: Any) -> None:
        """Push what a call would make: a dict, what a builder makes, else a record of the call."""
        name = what.name if isinstance(what, Global) else "a call"
        if name in self._builders and isinstance(arguments, tuple):
            self._push(self._builders[name](arguments))
        elif name in _CONTAINERS:
            made: dict[Any, Any] = {}
            self._push(made)
            # Python 2 gives the items of an OrderedDict as the argument.
            if name == "collections.OrderedDict" and arguments and isinstance(arguments[0], list):
                _fill(made, [part for pair in arguments[0] for part in pair[:2]])
        else:
            self._push(Inert(name, arguments))

    def _reduce(self) -> None:
        arguments, what = self._stack.pop(), self._stack.pop()
        self._make(what, arguments)

    def _new_with_keywords(self) -> None:
        del self._stack[-1]
        self._reduce()

    def _object(self) -> None:
        what, *arguments = self._pop_mark()
        self._make(what, tuple(arguments))

    def _instance(self) -> None:
        what = self._global_line()
        self._make(what, tuple(self._pop_mark()))

    def _build(self) -> None:
        """Keep the state beside a record; other values have none, such as a dict with attributes."""
        state = self._stack.pop()
        if isinstance(made := self._stack[-1], Inert):
            made.state = state

    def _append(self, items: list[Any]) -> None:
        if isinstance(made := self._stack[-1], list):
            made.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        made = self._stack[-1]
        if isinstance(made, dict | Inert):
            _fill(made if isinstance(made, dict) else made.entries, items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        # An empty stack above a mark: the mark is what is popped.
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._marks.pop()

    def _tuple(self, count: int) -> None:
        made = tuple(self._stack[-count:])
        if len(made) < count:
            raise UnreadablePickle("the stack is too short")
        self._stack[-count:] = [made]

    def _dict_of_mark(self) -> None:
        made: dict[Any, Any] = {}
        _fill(made, self._pop_mark())
        self._push(made)

    def _set_of_mark(self) -> None:
        self._push(Inert("builtins.frozenset", (self._pop_mark(),)))

    def _persistent_line(self) -> None:
        self._push(self._persistent(self._line().decode()))


def _fill(target: dict[Any, Any], items: list[Any]) -> None:
    target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if _is_key(key))


def _is_key(key: Any) -> bool:
    # The hash of a tuple of tuples may take for ever, and integers can be chosen so that all hashes are equal.
    return isinstance(key, str | bytes | float | bool | None) or (type(key) is int and abs(key) < _LARGEST_KEY)


def _pushing(value: Callable[[Unpickler], Any]) -> Callable[[Unpickler], None]:
    def push(pickle: Unpickler) -> None:
        pickle._push(value(pickle))

    return push


def _with_length(read: Callable[[Unpickler, int], None], layout: str) -> Callable[[Unpickler], None]:
    def act(pickle: Unpickler) -> None:
        length = pickle._number(layout)
        if length < 0:
            raise UnreadablePickle("a length is negative")
        read(pickle, length)

    return act


def _read_bytes(pickle: Unpickler, length: int) -> None:
    pickle._push(pickle._read(length))


def _extension(layout: str) -> Callable[[Unpickler], None]:
    """Push a name for a class of the process's own table of extensions, which is not looked at."""
    return _pushing(lambda pickle: Global(f"extension {pickle._number(layout)}"))


_ACTIONS: Mapping[bytes, Callable[[Unpickler], object]] = {
    # Names and calls.
    b"c": _pushing(Unpickler._global_line),
    b"\x93": Unpickler._stack_global,
    b"\x82": _extension("<B"),
    b"\x83": _extension("<H"),
    b"\x84": _extension("<i"),
    b"R": Unpickler._reduce,
    b"\x81": Unpickler._reduce,  # NEWOBJ
    b"\x92": Unpickler._new_with_keywords,
    b"o": Unpickler._object,
    b"i": Unpickler._instance,
    b"b": Unpickler._build,
    b"P": Unpickler._persistent_line,
    b"Q": lambda pickle: pickle._push(pickle._persistent(pickle._stack.pop())),
    # Containers.
    b"(": Unpickler._mark,
    b")": _pushing(lambda _: ()),
    b"]": _pushing(lambda _: []),
    b"}": _pushing(lambda _: {}),
    b"\x8f": _pushing(lambda _: Inert("builtins.set")),
    b"\x90": Unpickler._pop_mark,  # ADDITEMS: a set has no use here
    b"\x91": Unpickler._set_of_mark,
    b"a": lambda pickle: pickle._append([pickle._stack.pop()]),
    b"e": lambda pickle: pickle._append(pickle._pop_mark()),
    b"s": Unpickler._set_item,
    b"u": lambda pickle: pickle._set_items(pickle._pop_mark()),
    b"t": lambda pickle: pickle._push(tuple(pickle._pop_mark())),
    b"l": lambda pickle: pickle._push(pickle._pop_mark()),
    b"d": Unpickler._dict_of_mark,
    b"\x85": lambda pickle: pickle._tuple(1),
    b"\x86": lambda pickle: pickle._tuple(2),
    b"\x87": lambda pickle: pickle._tuple(3),
    # Stack and memo.
    b"0": Unpickler._pop,
    b"1": Unpickler._pop_mark,
    b"2": lambda pickle: pickle._push(pickle._stack[-1]),
    b"p": lambda pickle: pickle._put(int(pickle._line())),
    b"q": lambda pickle: pickle._put(pickle._number("<B")),
    b"r": lambda pickle: pickle._put(pickle._number("<I")),
    b"\x94": lambda pickle: pickle._put(len(pickle._memo)),
    b"g": lambda pickle: pickle._push(pickle._memo[int(pickle._line())]),
    b"h": lambda pickle: pickle._push(pickle._memo[pickle._number("<B")]),
    b"j": lambda pickle: pickle._push(pickle._memo[pickle._number("<I")]),
    # Values.
    b"N": _pushing(lambda _: None),
    b"\x88": _pushing(lambda _: True),
    b"\x89": _pushing(lambda _: False),
    b"J": _pushing(lambda pickle: pickle._number("<i")),
    b"K": _pushing(lambda pickle: pickle._number("<B")),
    b"M": _pushing(lambda pickle: pickle._number("<H")),
    b"I": Unpickler._int_line,
    b"L": Unpickler._int_line,
    b"\x8a": _with_length(Unpickler._long, "<B"),
    b"\x8b": _with_length(Unpickler._long, "<i"),
    b"F": _pushing(lambda pickle: float(pickle._line())),
    b"G": _pushing(lambda pickle: struct.unpack(">d", pickle._read(8))[0]),
    b"S": Unpickler._string_line,
    b"T": _with_length(Unpickler._old_text, "<i"),
    b"U": _with_length(Unpickler._old_text, "<B"),
    b"V": Unpickler._unicode_line,
    b"X": _with_length(Unpickler._text, "<I"),
    b"\x8c": _with_length(Unpickler._text, "<B"),
    b"\x8d": _with_length(Unpickler._text, "<Q"),
    b"B": _with_length(_read_bytes, "<I"),
    b"C": _with_length(_read_bytes, "<B"),
    b"\x8e": _with_length(_read_bytes, "<Q"),
    b"\x96": _with_length(_read_bytes, "<Q"),
    b"\x97": _pushing(lambda _: Inert("buffer")),
    b"\x98": lambda _: None,
    # Framing.
    b"\x80": lambda pickle: pickle._read(1),
    b"\x95": lambda pickle: pickle._read(8),
}
