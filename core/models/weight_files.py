"""Read third-party weight files: safetensors and torch files, in the layouts of the field.

The weights may be a bare state dict or lie inside a training checkpoint. Their names may have the prefixes of wrappers
such as DataParallel. The normalisation may be buffers of the network, a layer before it, or stand beside it as in
MadryLab's robustness library. Files are untrusted: a torch file is a pickle, of which tensors and plain containers are
read and everything that would execute code is refused.
"""

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.schema.errors import BadWeights

# Averaged weights first: where a file has both, the published accuracy is that of the averaged ones.
_CONTAINERS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "network",
    "weights",
    "last",
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")
_NORMALISATION = re.compile(r"((normalize|normalizer|normalization|norm|0)\.)?(new_)?(?P<what>mean|std|mu|sigma)")
# Types that a network can load, unchanged or after a conversion to its precision.
_PLAIN = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@dataclass(frozen=True)
class ThirdPartyWeights:
    """The content of a weight file, with the names that the network itself uses."""

    weights: Mapping[str, Tensor]
    """Parameters and buffers."""
    mean: tuple[float, ...] = ()
    """Per channel, what the file says to subtract from images in [0, 1]; empty where it has no normalisation."""
    std: tuple[float, ...] = ()
    """Per channel, what it says to divide them by then."""
    key: str = ""
    """Path of the weights inside the file, such as "model.state_dict"; empty for a bare state dict."""


def read(path: Path, *, key: str = "") -> ThirdPartyWeights:
    """Read the weights in a file.

    key: path of the weights inside the file, such as "state_dict"; by default it is searched for. Raises BadWeights for
    a file that cannot be read, has no weights, contains code to execute, or contains two networks.
    """
    content = _content(path)
    found, taken = _take(content, path.name, key)
    weights: dict[str, Tensor] = {}
    for name, tensor in found.items():
        bare = strip_wrappers(name)
        # In MadryLab's files the attacker contains the network a second time.
        if bare.startswith("attacker."):
            continue
        _check_kind(tensor, name, path.name)
        if bare in weights and not _same(weights[bare], tensor):
            raise BadWeights(
                f"{path.name} contains two different tensors with the name {bare}",
                hint="the file contains two networks: save only the one you want",
                field="file",
            )
        weights[bare] = tensor
    statistics = {
        match["what"]: weights.pop(name) for name in list(weights) if (match := _NORMALISATION.fullmatch(name))
    }
    if weights and all(name.startswith("1.") for name in weights):  # Sequential(normalisation, network)
        weights = {strip_wrappers(name.removeprefix("1.")): tensor for name, tensor in weights.items()}
    mean, std = statistics.get("mean", statistics.get("mu")), statistics.get("std", statistics.get("sigma"))
    return ThirdPartyWeights(weights=weights, mean=_numbers(mean), std=_numbers(std), key=taken)


def _check_kind(tensor: Tensor, name: str, where: str) -> None:
    """Refuse a tensor that is not dense or not of a plain number type. Raises BadWeights."""
    kinds = {
        "has only a shape, no values": tensor.is_meta,
        "is quantised": tensor.is_quantized,
        "is sparse or nested, not dense": tensor.layout != torch.strided or tensor.is_nested,
        f"is of type {str(tensor.dtype).removeprefix('torch.')}": tensor.dtype not in _PLAIN,
    }
    if kind := next((kind for kind, applies in kinds.items() if applies), None):
        raise BadWeights(
            f"{name} in {where} {kind}",
            hint="load the weights with their original code, and save them as dense floating-point tensors",
            field="file",
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError as error:
        raise BadWeights(f"cannot read {path}: {error.strerror}", hint="check the path", field="file") from error
    if not begins:
        raise BadWeights(f"{path.name} is empty", hint="the download failed: download it again", field="file")
    if begins.lstrip().startswith(b"<"):
        raise BadWeights(
            f"{path.name} is a web page, not weights",
            hint="the download failed: open the URL in a browser, or download the file again",
            field="file",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Warnings about kinds of tensors that are refused below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BadWeights(
            f"{path.name} is not a safetensors file: {error}", hint="download it again", field="file"
        ) from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise BadWeights(
            f"{path.name} is not a torch file of tensors alone{what}; objects that could execute code are not read",
            hint="if you trust the file, load it with its original code and save only its weights, with "
            "torch.save(model.state_dict(), 'plain.pt'); then import that file",
            field="file",
        ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        struct.error,
    ) as error:
        # torch raises many classes for damaged files, and its messages seldom name the cause.
        raise BadWeights(
            f"{path.name} cannot be read as a torch file: it is damaged, cut off, or no weights file",
            hint="download it again, or save it again with torch.save(model.state_dict(), 'weights.pt')",
            field="file",
        ) from error


def _take(content: Any, name: str, key: str) -> tuple[dict[str, Tensor], str]:
    """Find the state dict inside the content of a file; return it with its path."""
    path: list[str] = []
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            raise BadWeights(f"{name} has no {key!r}", hint=f"it has: {_keys(content)}", field="key")
        content = content[part]
        path.append(part)
    # A mapping may contain itself.
    seen = {id(content)}
    while isinstance(content, Mapping) and not _is_state_dict(content):
        held = {part: content[part] for part in _CONTAINERS if isinstance(content.get(part), Mapping)}
        inner = next((part for part, its in held.items() if id(its) not in seen), None)
        if inner is None:
            break
        content = held[inner]
        seen.add(id(content))
        path.append(inner)
    found = content if isinstance(content, Mapping) else {}
    tensors = {str(label): value for label, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BadWeights(
            f"no weights were found in {name}",
            hint=f"it has: {_keys(content)}; give the path of the weights with --key, or save only a state dict",
            field="file",
        )
    return tensors, ".".join(path)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return ", ".join(str(key) for key in list(content)[:12]) or "nothing"


def strip_wrappers(name: str) -> str:
    """Remove the prefixes that wrappers such as DataParallel put before a parameter's name."""
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    return name


def _numbers(tensor: Tensor | None) -> tuple[float, ...]:
    # Rounded to the seven digits of a 32-bit number, so that 0.4914 stays 0.4914.
    return () if tensor is None else tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist())
