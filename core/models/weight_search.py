"""Find the weights inside the content of a weight file: which network is taken, and where the others are."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from core.inert_pickle import Inert
from core.models.torch_files import AnyTensor, StoredTensor, is_tensor
from core.schema.errors import BadWeights, shorten

_AVERAGED = re.compile(r"(?<![a-z])(ema|averaged?|swa|polyak|moving_average)(?![a-z])")
_CONTAINERS = (
    *("model_state_dict", "state_dict", "model", "net", "network", "weights", "last"),
    *("module", "params", "shadow"),
)
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|criterion|loss|grad|rng|metric|hyper", re.IGNORECASE)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")
# Left in the weights by profilers (thop) and by torch's AveragedModel.
_COUNTERS = {"total_ops", "total_params", "n_averaged"}
_DEEPEST = 8
_MOST_NAMED = 8
_ATTRIBUTES = ("_parameters", "_buffers")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class FoundWeights:
    """The weights that are taken, by the names that they have in the file."""

    tensors: Mapping[str, AnyTensor]
    key: str
    """Their path inside the file; empty for a bare state dict."""
    others: tuple[str, ...]
    """Paths of the weights that are not taken."""


def find_weights(content: Any, name: str, key: str) -> FoundWeights:
    """Find the state dict inside the content of a file.

    name: that of the file, for errors. key: a path of names, with dots between them; a name may also be what the names
    of the weights begin with, such as "ema" for "ema.conv.weight". Without it the weights are searched: averaged ones
    first, because the published accuracy is that of these. Raises BadWeights where there are none.
    """
    at, path = _follow(content, name, key) if key else (content, ())
    candidates = list(_networks(at, path, set()))
    taken = next(iter(sorted(candidates, key=lambda found: not found.averaged)), None)
    tensors = taken.tensors if taken else _tensors(at)
    if not tensors:
        raise BadWeights(f"no weights were found in {name}", hint=_hint(at), field="file")
    tensors, within, _ = _averaged_part(tensors)
    taken_key = ".".join((*(taken.path if taken else path), *within))
    others = [label for label, other in _everything(content) if label != taken_key and not _same(other, tensors)]
    kept = {label: tensor for label, tensor in tensors.items() if label.rpartition(".")[2] not in _COUNTERS}
    return FoundWeights(kept, show(taken_key), tuple(map(show, others[:_MOST_NAMED])))


def strip_wrappers(name: str) -> str:
    """Remove the prefixes that wrappers such as DataParallel put before a parameter's name."""
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    return name


@dataclass(frozen=True)
class _Network:
    path: tuple[str, ...]
    tensors: dict[str, AnyTensor]
    averaged: bool


def _entries(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a mapping, even of one whose class is unknown; empty for other values."""
    if isinstance(value, Inert):
        return value.entries or (value.state if isinstance(value.state, dict) else {})
    return value if isinstance(value, Mapping) else {}


def _tensors(value: Any) -> dict[str, AnyTensor]:
    """Return the tensors of a mapping, or those of a pickled network by the names of its state dict."""
    entries = _entries(value)
    if _is_module(value):
        return dict(_of_module(value))
    return {str(label): tensor for label, tensor in entries.items() if is_tensor(tensor)}


def _is_module(value: Any) -> TypeGuard[Inert]:
    return isinstance(value, Inert) and "_modules" in _entries(value)


def _same(one: Mapping[str, AnyTensor], other: Mapping[str, AnyTensor]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _of_module(module: Inert) -> Iterator[tuple[str, AnyTensor]]:
    """List the parameters and buffers of a pickled network, whose code is not needed for that."""
    waiting, seen = [("", module)], {id(module)}
    while waiting:
        prefix, at = waiting.pop()
        entries = _entries(at)
        for kind in _ATTRIBUTES:
            for label, tensor in _entries(entries.get(kind)).items():
                if is_tensor(tensor) and label not in _not_saved(entries):
                    yield f"{prefix}{label}", tensor
        for label, child in _entries(entries.get("_modules")).items():
            if isinstance(child, Inert) and id(child) not in seen and prefix.count(".") < 100:
                seen.add(id(child))
                waiting.append((f"{prefix}{label}.", child))


def _not_saved(entries: Mapping[Any, Any]) -> list[Any]:
    names = entries.get("_non_persistent_buffers_set")
    listed = names.arguments[0] if isinstance(names, Inert) and names.arguments else []
    return listed if isinstance(listed, list) else []


def _networks(value: Any, path: tuple[str, ...], seen: set[int], averaged: bool = False) -> Iterator[_Network]:
    """List the weights under the names that the field gives them, averaged ones first, then as `_CONTAINERS` has it."""
    # A mapping may contain itself.
    if id(value) in seen or len(path) > _DEEPEST:
        return
    seen.add(id(value))
    entries, tensors = _entries(value), _tensors(value)
    averaged = averaged or "n_averaged" in entries
    if tensors and (len(tensors) >= len(entries) or _is_module(value)):
        yield _Network(path, tensors, averaged)
        return
    found = False
    for label in _order(entries):
        is_averaged = averaged or _is_averaged(label)
        for network in _networks(entries[label], (*path, label), seen, is_averaged):
            found = True
            yield network
    if tensors and not found:
        yield _Network(path, tensors, averaged)


def _order(entries: Mapping[Any, Any]) -> list[str]:
    """List the names under which weights are looked for."""
    held = {label: value for label, value in entries.items() if isinstance(label, str) and _entries(value)}
    averaged = [label for label, value in held.items() if _is_averaged(label) or "n_averaged" in _entries(value)]
    named = [*averaged, *(label for label in _CONTAINERS if label in held and label not in averaged)]
    full = [label for label, value in held.items() if _looks_like_network(label, value)]
    # A name that is not known is taken where there is nothing else.
    return named or (full if len(full) == 1 and not any(map(is_tensor, entries.values())) else [])


def _is_averaged(label: str) -> bool:
    # modelEMA -> model_ema
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label).lower()
    return _AVERAGED.search(parts) is not None and not _NOT_WEIGHTS.search(label)


def _looks_like_network(label: str, value: Any) -> bool:
    return not _NOT_WEIGHTS.search(label) and any(_is_matrix(tensor) for tensor in _tensors(value).values())


def _is_matrix(tensor: AnyTensor) -> bool:
    dimensions = len(tensor.size) if isinstance(tensor, StoredTensor) else getattr(tensor, "ndim", 0)
    return dimensions > 1


def _everything(content: Any) -> Iterator[tuple[str, Mapping[str, AnyTensor]]]:
    """List the weights of all networks in a file, wherever they are, each with its path."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop(0)
        if id(value) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(value))
        if _looks_like_network("", value):
            whole = _tensors(value)
            averaged, within, beside = _averaged_part(whole)
            if within:
                yield ".".join((*path, *within)), averaged
                yield from ((".".join((*path, other)), _below(whole, other)) for other in beside)
            elif path:
                yield ".".join(path), whole
            if path or within or _is_module(value):
                continue
        waiting += [
            ((*path, label), inner)
            for label, inner in _entries(value).items()
            if isinstance(label, str) and not _NOT_WEIGHTS.search(label) and _entries(inner)
        ]


def _averaged_part(
    tensors: dict[str, AnyTensor],
) -> tuple[dict[str, AnyTensor], tuple[str, ...], tuple[str, ...]]:
    """Take the averaged network of names such as "model.conv.weight" beside "model_ema.conv.weight".

    Returns its tensors, what their names began with, and what those of the other network begin with.
    """
    common = common_prefix(tensors)
    parts: dict[str, dict[str, AnyTensor]] = {}
    for name, tensor in tensors.items():
        head, dot, tail = name.removeprefix(common).partition(".")
        if dot:
            parts.setdefault(head, {})[tail] = tensor
    shapes = {head: {strip_wrappers(tail) for tail in part if _is_weight(tail)} for head, part in parts.items()}
    prefix = tuple(common.split(".")[:-1])
    for head in parts:
        others = [other for other in parts if other != head and shapes[other] == shapes[head]]
        if _is_averaged(head) and others:
            return parts[head], (*prefix, head), tuple(".".join((*prefix, other)) for other in others)
    return tensors, (), ()


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] not in {*_COUNTERS, "num_batches_tracked"}


def common_prefix(names: Mapping[str, object]) -> str:
    """Return what all names begin with, up to a dot: "a.b." for "a.b.weight" and "a.b.c.bias"."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False) if parts else ():
        if len(set(level)) > 1:
            break
        shared.append(f"{level[0]}.")
    return "".join(shared)


def cut_prefixes(weights: Mapping[str, _Value]) -> list[dict[str, _Value]]:
    """Rename weights in each way that cuts nothing, the first level of what all names begin with, the first two, ..."""
    levels = common_prefix(weights).split(".")[:-1]
    prefixes = ["".join(f"{level}." for level in levels[:count]) for count in range(len(levels) + 1)]
    return [
        {strip_wrappers(name.removeprefix(prefix)) if prefix else name: tensor for name, tensor in weights.items()}
        for prefix in prefixes
    ]


def _follow(content: Any, name: str, key: str) -> tuple[Any, tuple[str, ...]]:
    """Go down a path inside a file. Raises BadWeights where it leads nowhere."""
    path: tuple[str, ...] = ()
    rest = key
    while rest:
        entries, tensors = _entries(content), _tensors(content)
        # A name in the file may have dots itself: the longest that fits is meant.
        cuts = [rest[: dot.start()] for dot in re.finditer(r"\.|$", rest)][::-1]
        part = next((cut for cut in cuts if cut in entries or _below(tensors, cut)), None)
        if part is None:
            raise BadWeights(f"{name} has no {key!r}", hint=f"it has: {_names(content)}", field="key")
        content = entries[part] if part in entries else _below(tensors, part)
        path = (*path, part)
        rest = rest.removeprefix(part).removeprefix(".")
    return content, path


def _below(tensors: Mapping[str, AnyTensor], prefix: str) -> dict[str, AnyTensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _hint(content: Any) -> str:
    if _has_arrays(content):
        return "it has arrays of numpy: turn them into tensors with torch.from_numpy and save these with torch.save"
    return f"it has: {_names(content)}; give the path of the weights with --key, or save only a state dict"


def _has_arrays(content: Any) -> bool:
    """Return whether a value of numpy's stands in the place of weights."""
    values = [content, *_entries(content).values()]
    values += [inner for value in values[1:] for inner in _entries(value).values()]
    return any(isinstance(value, Inert) and value.name.startswith("numpy.") for value in values)


def _names(content: Any) -> str:
    if not isinstance(content, Mapping | Inert):
        return f"a {type(content).__name__}"
    if isinstance(content, Inert) and not _entries(content):
        return f"an object of {show(content.name)}"
    return ", ".join(show(str(label)) for label in list(_entries(content))[:12]) or "nothing"


def show(text: str) -> str:
    """Shorten a text of an untrusted file, and replace characters that cannot be shown."""
    return shorten("".join(character if character.isprintable() else "?" for character in text))
