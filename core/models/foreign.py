"""The weights of others: from the files and layouts of the field to the parameters of a network of ours.

Read are safetensors and torch files: a bare state dict, or one inside a training checkpoint; with the prefixes that
wrappers leave; with the normalisation as buffers inside the network, in a layer before it, or beside it as MadryLab's
robustness library has it; with parameters that no network runs. A torch file is a pickle, and what it would execute is
refused: tensors and plain containers are all that is read from it.
"""

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.catalog import ARCHITECTURES
from core.errors import BadInput, BadWeights, UserError
from core.models import Blueprint, Normalized, build, describe

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
        if bare in weights and not torch.equal(weights[bare], tensor):
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


def _content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            begins = file.read(64).lstrip()
        if begins.startswith(b"<"):
            raise BadWeights(
                f"{path.name} is a web page, not weights",
                hint="the download failed: open the address in a browser, or download it anew",
                field="file",
            )
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadWeights(f"cannot read {path}: {error.strerror}", hint="check the path", field="file") from error
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
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # What torch raises for damaged files is no one class.
        raise BadWeights(
            f"{path.name} cannot be read as a torch file: {str(error).partition(chr(10))[0]}",
            hint="the file is damaged, or no weights file: download it anew",
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
    while isinstance(content, Mapping) and not _is_state_dict(content):
        inner = next((part for part in _CONTAINERS if isinstance(content.get(part), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
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
    """Lay weights beside a network, which may be on the meta device.

    Not counted are the batch counters of batch norm, which old files lack and nothing here uses, and the parameters
    that the field's checkpoints of this family hold without use.
    """
    weights = _by_the_names_of(network, weights)
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


def _by_the_names_of(network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename what a family's own code has renamed since its checkpoints were published."""
    renamed: Mapping[str, str] = getattr(network, "renamed", {})
    return {
        next((new + name.removeprefix(old) for old, new in renamed.items() if name.startswith(old)), name): tensor
        for name, tensor in weights.items()
    }


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load weights that fit into a model as `core.models.build` makes it; name those that it left out."""
    network = bare_network(model)
    weights = _by_the_names_of(network, weights)
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
    ten, eleven = (_outline(Blueprint(architecture, shape, classes)).state_dict() for classes in (10, 11))
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
            fits[entry.name] = compare(weights, _outline(Blueprint(entry.name, shape, classes)))
    return dict(sorted(fits.items(), key=lambda item: item[1].share, reverse=True))


def _outline(blueprint: Blueprint) -> nn.Module:
    """Build a network that has shapes and no numbers."""
    with torch.device("meta"):
        return bare_network(build(blueprint))


def convert(foreign: Foreign, blueprint: Blueprint, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network of a blueprint, in eval mode, with the weights of others; name the weights it left out.

    name: what the weights are called in errors. Raises BadWeights, with a report shape by shape, when they do not fit
    or are not numbers.
    """
    fit = compare(foreign.weights, _outline(blueprint))
    if not fit.whole:
        raise _misfit(foreign, blueprint, name, fit)
    if not all(torch.isfinite(tensor).all() for tensor in foreign.weights.values()):
        raise BadWeights(
            f"{name} holds weights that are not numbers", hint="use an earlier checkpoint of that run", field="file"
        )
    model = build(blueprint)
    left_out = fill(model, foreign.weights)
    return model.eval(), left_out


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
    if len(mean) != len(std) or len(mean) not in (0, channels) or not all(value > 0 for value in std):
        raise BadInput(
            f"mean {list(mean)} and std {list(std)} do not normalise images of {channels} channels",
            hint="give as many numbers as there are channels for each, std above 0, or neither",
            field="mean",
        )
