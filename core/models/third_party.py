"""The weights of others: from the files and layouts of the field to the parameters of a network of ours.

Read are safetensors and torch files: a bare state dict, or one inside a training checkpoint; with the prefixes that
wrappers leave; with the normalisation as buffers inside the network, in a layer before it, or beside it as MadryLab's
robustness library has it; with parameters that no network runs. A torch file is a pickle, and what it would execute is
refused: tensors and plain containers are all that is read from it.
"""

import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.models import Blueprint, Normalized, build, describe
from core.schema.catalog import ARCHITECTURES
from core.schema.errors import BadInput, BadWeights, UserError

# Averaged weights first: where a file holds both, the published figures are theirs.
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


# What a network of ours can take over as it is, or after a change of precision.
_PLAIN = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@dataclass(frozen=True)
class Foreign:
    """What a file of others holds, by the names that the network itself would use."""

    weights: Mapping[str, Tensor]
    """Parameters and buffers."""
    mean: tuple[float, ...] = ()
    """The file's own normalisation, in units of the images that its network takes; empty where it holds none."""
    std: tuple[float, ...] = ()
    """What the images are divided by after that."""
    key: str = ""
    """Where in the file the weights were; empty for a bare state dict."""


@dataclass(frozen=True)
class Fit:
    """How weights and a network fit, name by name and shape by shape."""

    missing: Mapping[str, tuple[int, ...]]
    """What the network needs and the weights lack."""
    unexpected: Mapping[str, tuple[int, ...]]
    """What the weights hold and the network lacks."""
    different: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """What both have in different shapes: the network's, then the weights'."""
    shared: int
    """How many names both have in the same shape."""

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unexpected or self.different)

    @property
    def share(self) -> float:
        """How much of both is shared, in [0, 1]."""
        return self.shared / (self.shared + len(self.missing) + len(self.unexpected) + len(self.different))

    def report(self) -> str:
        """Say in lines what does not fit: how many names of each kind, then the names."""
        counts = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.different}
        summary = ", ".join(f"{len(names)} {kind}" for kind, names in counts.items() if names)
        return "\n  ".join([f"{self.shared} parameters fit, {summary}", *self._lines(most=8)])

    def _lines(self, *, most: int) -> Iterator[str]:
        kinds = {
            "missing": [f"{name} {list(shape)}" for name, shape in self.missing.items()],
            "unexpected": [f"{name} {list(shape)}" for name, shape in self.unexpected.items()],
            "another shape": [
                f"{name} {list(theirs)}, the network has {list(ours)}"
                for name, (ours, theirs) in self.different.items()
            ],
        }
        for kind, entries in kinds.items():
            yield from (f"{kind}: {entry}" for entry in entries[:most])
            if len(entries) > most:
                yield f"{kind}: {len(entries) - most} more"


def read(path: Path, *, key: str = "") -> Foreign:
    """Read the weights in a file. key: where in the file they are, such as "state_dict"; by default that is found.

    Raises BadWeights for a file that is none, holds no weights, holds something to execute, or holds two networks.
    """
    content = _content(path)
    found, taken = _take(content, path.name, key)
    weights: dict[str, Tensor] = {}
    for name, tensor in found.items():
        bare = _bare(name)
        # MadryLab's attacker owns the network a second time.
        if bare.startswith("attacker."):
            continue
        _check_kind(tensor, name, path.name)
        if bare in weights and not _same(weights[bare], tensor):
            raise BadWeights(
                f"{path.name} holds two different tensors that both mean {bare}",
                hint="the file holds two networks: save the one you want alone",
                field="file",
            )
        weights[bare] = tensor
    statistics = {
        match["what"]: weights.pop(name) for name in list(weights) if (match := _NORMALISATION.fullmatch(name))
    }
    if weights and all(name.startswith("1.") for name in weights):  # Sequential(normalisation, network)
        weights = {_bare(name.removeprefix("1.")): tensor for name, tensor in weights.items()}
    mean, std = statistics.get("mean", statistics.get("mu")), statistics.get("std", statistics.get("sigma"))
    return Foreign(weights=weights, mean=_numbers(mean), std=_numbers(std), key=taken)


def _check_kind(tensor: Tensor, name: str, where: str) -> None:
    """Refuse a tensor that does not hold plain numbers, one beside the other. Raises BadWeights."""
    kinds = {
        "has no numbers, only a shape": tensor.is_meta,
        "is quantised": tensor.is_quantized,
        "is sparse or nested, not dense": tensor.layout != torch.strided or tensor.is_nested,
        f"is of type {str(tensor.dtype).removeprefix('torch.')}": tensor.dtype not in _PLAIN,
    }
    if kind := next((kind for kind, applies in kinds.items() if applies), None):
        raise BadWeights(
            f"{name} in {where} {kind}",
            hint="load the weights with the code that they came with, and save them as dense floating-point tensors",
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
        raise BadWeights(f"{path.name} is empty", hint="the download failed: download it anew", field="file")
    if begins.lstrip().startswith(b"<"):
        raise BadWeights(
            f"{path.name} is a web page, not weights",
            hint="the download failed: open the address in a browser, or download it anew",
            field="file",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Of kinds of tensors that are refused in a moment.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BadWeights(
            f"{path.name} is not a safetensors file: {error}", hint="download it anew", field="file"
        ) from error
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise BadWeights(
            f"{path.name} is not a torch file of tensors alone{what}; what a file could execute is not read",
            hint="where you trust it, load it with the code it came with and save its weights alone, by "
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
        # What torch raises for damaged files is no one class, and seldom says what is wrong with them.
        raise BadWeights(
            f"{path.name} cannot be read as a torch file: it is damaged, cut off, or no weights file",
            hint="download it anew, or save it again with torch.save(model.state_dict(), 'weights.pt')",
            field="file",
        ) from error


def _take(content: Any, name: str, key: str) -> tuple[dict[str, Tensor], str]:
    """Find the state dict inside what a file holds, and say where it was."""
    path: list[str] = []
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            raise BadWeights(f"{name} holds no {key!r}", hint=f"it holds: {_keys(content)}", field="key")
        content = content[part]
        path.append(part)
    # A mapping may hold itself.
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
            hint=f"it holds: {_keys(content)}; say where the weights are with --key, or save a state dict alone",
            field="file",
        )
    return tensors, ".".join(path)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return ", ".join(str(key) for key in list(content)[:12]) or "nothing"


def _bare(name: str) -> str:
    """Cut what wrappers have put before a name, and nothing from within it."""
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    return name


def _numbers(tensor: Tensor | None) -> tuple[float, ...]:
    # Rounded to the seven digits that a 32-bit number knows, so that 0.4914 stays 0.4914.
    return () if tensor is None else tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist())


def compare(weights: Mapping[str, Tensor], network: nn.Module) -> Fit:
    """Lay weights beside a network, which may be on the meta device, name by name; see also `by_the_names_of`.

    Not counted are the batch counters of batch norm, which old files lack and nothing here uses, and the parameters
    that the field's checkpoints of this family hold without use.
    """
    unused: tuple[str, ...] = getattr(network, "unused", ())
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not _counts_batches(name)}
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in weights.items()
        if not _counts_batches(name) and not name.startswith(unused)
    }
    both = [name for name in ours if name in theirs]
    return Fit(
        missing={name: shape for name, shape in ours.items() if name not in theirs},
        unexpected={name: shape for name, shape in theirs.items() if name not in ours},
        different={name: (ours[name], theirs[name]) for name in both if ours[name] != theirs[name]},
        shared=sum(ours[name] == theirs[name] for name in both),
    )


def by_the_names_of(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give weights that `read` has read the names that a network has for them.

    A family's own code may have renamed a part since its checkpoints were published, and what looks like a wrapper's
    prefix may be a network's own, as "network." is VOLO's.
    """
    renamed: Mapping[str, str] = getattr(network, "renamed", {})
    own = network.state_dict().keys()
    cut = {_bare(name): name for name in own if _bare(name) not in own}

    def rename(name: str) -> str:
        new = next((new + name.removeprefix(old) for old, new in renamed.items() if name.startswith(old)), name)
        return cut.get(new, new)

    return {rename(name): tensor for name, tensor in weights.items()}


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load weights that fit into a model as `core.models.build` makes it; name those that it left out."""
    network = bare_network(model)
    weights = by_the_names_of(network, weights)
    names = network.state_dict().keys()
    network.load_state_dict(
        {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
            if name in names
        },
        strict=False,
    )
    return tuple(name for name in weights if name not in names)


def bare_network(model: nn.Module) -> nn.Module:
    """Return the network inside a model, without the normalisation before it."""
    return model.network if isinstance(model, Normalized) else model


def count_classes(weights: Mapping[str, Tensor], architecture: str, shape: tuple[int, int, int]) -> int | None:
    """Read off how many classes weights of an architecture tell apart; None where they do not fit it in that place."""
    outline = _outline(Blueprint(architecture, shape, 10))
    weights = by_the_names_of(outline, weights)
    ten, eleven = outline.state_dict(), _outline(Blueprint(architecture, shape, 11)).state_dict()
    for name, tensor in ten.items():
        if tensor.shape != eleven[name].shape:
            found = weights.get(name)
            return None if found is None or found.dim() != tensor.dim() else found.shape[0]
    return None


def fitting(weights: Mapping[str, Tensor], shape: tuple[int, int, int]) -> dict[str, Fit]:
    """Say how weights fit each architecture of the catalogue that takes such images, the best first."""
    fits = {}
    for entry in ARCHITECTURES.values():
        if entry.shape in (None, shape):
            classes = count_classes(weights, entry.name, shape) or 10
            fits[entry.name] = _fit(weights, _outline(Blueprint(entry.name, shape, classes)))
    return dict(sorted(fits.items(), key=lambda item: item[1].share, reverse=True))


def _fit(weights: Mapping[str, Tensor], network: nn.Module) -> Fit:
    return compare(by_the_names_of(network, weights), network)


def _outline(blueprint: Blueprint) -> nn.Module:
    """Build a network that has shapes and no numbers."""
    with torch.device("meta"):
        return bare_network(build(blueprint))


def convert(foreign: Foreign, blueprint: Blueprint, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network of a blueprint, in eval mode, with the weights of others; name the weights it left out.

    name: what the weights are called in errors. Raises BadWeights, with a report shape by shape, when they do not fit
    or are not numbers.
    """
    outline = _outline(blueprint)
    fit = _fit(foreign.weights, outline)
    if not fit.whole:
        raise _misfit(foreign, blueprint, name, fit)
    _check_types(by_the_names_of(outline, foreign.weights), outline, name)
    model = build(blueprint)
    left_out = fill(model, foreign.weights)
    # In the network's own precision, in which a large number of another may be none.
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise BadWeights(
            f"{name} holds weights that are not numbers, or too large for 32 bits",
            hint="use an earlier checkpoint of that run",
            field="file",
        )
    return model.eval(), left_out


def _check_types(weights: Mapping[str, Tensor], network: nn.Module, where: str) -> None:
    """Refuse whole numbers where a network computes with fractions: they were rounded. Raises BadWeights."""
    for name, ours in network.state_dict().items():
        if ours.is_floating_point() and name in weights and not weights[name].is_floating_point():
            raise BadWeights(
                f"{name} in {where} holds whole numbers of type {str(weights[name].dtype).removeprefix('torch.')}, "
                "where the network has floating-point ones",
                hint="the weights were rounded: import them as they were before that",
                field="file",
            )


def _misfit(foreign: Foreign, blueprint: Blueprint, name: str, fit: Fit) -> UserError:
    fits = fitting(foreign.weights, blueprint.shape)
    whole = [known for known, other in fits.items() if other.whole]
    best = next(iter(fits), None)
    if blueprint.architecture in whole:
        classes = count_classes(foreign.weights, blueprint.architecture, blueprint.shape)
        hint = f"they tell {classes} classes apart, not {blueprint.classes}: add --classes {classes}"
    elif whole:
        hint = f"they fit {' or '.join(whole)}: give that as --architecture"
    elif fit.share > 0.5 and (best is None or fit.share >= fits[best].share):
        hint = "it is the network that comes closest, but the file is not whole, or from a variant of it"
    elif best and fits[best].share > 0.5:
        hint = f"{best} comes closest: {fits[best].share:.0%} of the names and shapes are its own"
    else:
        hint = (
            f"no network for images of {describe(blueprint.shape)} comes close; known: {', '.join(ARCHITECTURES)}, and "
            "timm/ with timm's names"
        )
    return BadWeights(f"{name} does not fit {blueprint.architecture}: {fit.report()}", hint=hint, field="architecture")


def check_normalisation(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse a normalisation that is none. Raises BadInput."""
    if len(mean) != len(std) or len(mean) not in (0, channels) or not _normalises(mean, std):
        raise BadInput(
            f"mean {list(mean[:16])} and std {list(std[:16])} do not normalise images of {channels} channels",
            hint="give as many numbers as there are channels for each, std above 0, or neither",
            field="mean",
        )


def _normalises(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether black and white are numbers afterwards, in the 32 bits that they are computed in."""
    shift, scale = (torch.tensor(values, dtype=torch.float64).float() for values in (mean, std))
    pixels = torch.tensor([[0.0], [1.0]])
    return bool((scale > 0).all() and torch.isfinite(scale).all() and torch.isfinite((pixels - shift) / scale).all())
