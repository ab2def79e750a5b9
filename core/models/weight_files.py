"""Read third-party weight files: safetensors and torch files, in the layouts of the field.

The weights may be a bare state dict or lie inside a training checkpoint. Their names may have the prefixes of wrappers
such as DataParallel. The normalisation may be buffers of the network, a layer before it, or stand beside it as in
MadryLab's robustness library. Files are untrusted: `core.inert_pickle` reads a torch file as data, and runs
nothing of it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.inert_pickle import HarmfulPickle, UnreadablePickle
from core.models.file_kinds import find_kind
from core.models.torch_files import (
    AnyTensor,
    DamagedFile,
    RepackedFile,
    UnusableTensor,
    read_archive,
    read_stream,
)
from core.models.weight_search import common_prefix, find_weights, show, strip_wrappers
from core.schema.errors import BadWeights

_NORMALISATION = re.compile(r"((normalize|normalizer|normalization|norm|0)\.)?(new_)?(?P<what>mean|std|mu|sigma)")
_MAX_CHANNELS = 16
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
    others: tuple[str, ...] = ()
    """Paths of the weights in the file that are not taken, such as those that are not averaged."""


def read(path: Path, *, key: str = "") -> ThirdPartyWeights:
    """Read the weights in a file.

    key: path of the weights inside the file, such as "state_dict"; by default it is searched for, averaged weights
    first. Raises BadWeights for a file that cannot be read, has no weights, or mixes two networks under one name.
    """
    found = find_weights(_content(path), path.name, key)
    weights: dict[str, Tensor] = {}
    for name, tensor in found.tensors.items():
        bare = strip_wrappers(name)
        # In MadryLab's files the attacker contains the network a second time.
        if bare.startswith("attacker."):
            continue
        loaded = _load(tensor, name, path.name)
        if bare in weights and not _same(weights[bare], loaded):
            raise BadWeights(
                f"{path.name} contains two different tensors with the name {show(bare)}",
                hint="the file contains two networks: save only the one you want",
                field="file",
            )
        weights[bare] = loaded
    statistics = take_statistics(weights)
    mean, std = statistics.get("mean", statistics.get("mu")), statistics.get("std", statistics.get("sigma"))
    return ThirdPartyWeights(weights, _numbers(mean), _numbers(std), found.key, found.others)


def take_statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors of a normalisation out of the weights; return them by what they are: mean, std, mu, sigma."""
    prefix = common_prefix(weights)
    taken = {}
    for name in list(weights):
        match = _NORMALISATION.fullmatch(strip_wrappers(name.removeprefix(prefix)))
        if match and weights[name].numel() <= _MAX_CHANNELS:
            taken[match["what"]] = weights.pop(name)
    return taken


def _load(tensor: AnyTensor, name: str, where: str) -> Tensor:
    """Read the numbers of a tensor that is dense and of a plain type. Raises BadWeights for any other."""
    if isinstance(tensor, UnusableTensor):
        raise _unusual(name, where, tensor.kind)
    if tensor.dtype not in _PLAIN:
        raise _unusual(name, where, f"is of type {str(tensor.dtype).removeprefix('torch.')}")
    if isinstance(tensor, Tensor):
        return tensor
    with _errors_of(where):
        return tensor.load()


def _unusual(name: str, where: str, kind: str) -> BadWeights:
    return BadWeights(
        f"{show(name)} in {where} {kind}",
        hint="load the weights with their original code, and save them as dense floating-point tensors",
        field="file",
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _content(path: Path) -> Any:
    kind = find_kind(path)
    with _errors_of(path.name):
        if kind == "safetensors":
            return load_file(path)
        return read_archive(path) if kind == "archive" else read_stream(path)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Raise BadWeights for what goes wrong when a file of this name is read."""
    try:
        yield
    except SafetensorError as error:
        raise BadWeights(
            f"{name} is a safetensors file that is damaged or cut off: {error}",
            hint="download it again, or save it again",
            field="file",
        ) from error
    except HarmfulPickle as error:
        raise BadWeights(
            f"{name} is not a torch file of tensors alone: it calls {show(error.name)}, as malicious files do; nothing "
            "of it was run",
            hint="do not load it with any other program; if you trust where it is from, load it with its original code "
            "and save only its weights, with torch.save(model.state_dict(), 'plain.pt'), and import that file",
            field="file",
        ) from error
    except RepackedFile as error:
        raise BadWeights(
            f"{name} is a torch file that was packed again with compression, which torch does not write",
            hint="unpack it and pack it without compression (zip -0), or save it again with torch.save",
            field="file",
        ) from error
    except (UnreadablePickle, DamagedFile, OSError) as error:
        raise BadWeights(
            f"{name} cannot be read as a torch file: it is damaged, cut off, or no weights file ({error})",
            hint="download it again, or save it again with torch.save(model.state_dict(), 'weights.pt')",
            field="file",
        ) from error


def _numbers(tensor: Tensor | None) -> tuple[float, ...]:
    # Rounded to the seven digits of a 32-bit number, so that 0.4914 stays 0.4914.
    return () if tensor is None else tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist())
