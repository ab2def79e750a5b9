"""Match third-party weights with the networks of the catalogue, and load them into one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from core.models import Blueprint, build, describe
from core.models.normalisation import Normalized
from core.models.recognition import resembling
from core.models.weight_files import ThirdPartyWeights
from core.models.weight_search import cut_prefixes, strip_wrappers
from core.schema.catalog import ARCHITECTURES, find_architecture
from core.schema.errors import BadInput, BadWeights, DoesNotFit, UserError


@dataclass(frozen=True)
class Fit:
    """The comparison of weights with a network, name by name and shape by shape."""

    missing: Mapping[str, tuple[int, ...]]
    """Parameters of the network that the weights lack."""
    unexpected: Mapping[str, tuple[int, ...]]
    """Weights that the network has no parameter for."""
    different: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Parameters whose shapes differ: the network's shape, then that of the weights."""
    shared: int
    """Number of parameters with equal name and shape."""

    @property
    def whole(self) -> bool:
        """Whether all names and shapes agree."""
        return not (self.missing or self.unexpected or self.different)

    @property
    def share(self) -> float:
        """The fraction of all names that agree, in [0, 1]."""
        return self.shared / (self.shared + len(self.missing) + len(self.unexpected) + len(self.different))

    def report(self) -> str:
        """Return a text of several lines: the number of misfits of each kind, then their names."""
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


def compare(weights: Mapping[str, Tensor], network: nn.Module) -> Fit:
    """Compare weights with a network, which may be on the meta device; see also `with_names_of`.

    Ignores the batch counters of batch norm, which old files lack and evaluation does not use, and the parameters that
    published checkpoints of this family contain without use (`unused` of the network).
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


def with_names_of(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from `core.models.weight_files.read` to the names that a network uses.

    The code of a family may have renamed modules since its checkpoints were published (`renamed` of the network: for
    each way in which checkpoints name them, how names began, and how they begin today). A
    prefix that wrappers use may be part of a network's own names, as "network." is for VOLO. And what all names of the
    weights begin with, such as "backbone.", is cut where more of them are then names of the network.
    """
    renamings: tuple[Mapping[str, str], ...] = getattr(network, "renamed", ())
    own = network.state_dict().keys()
    cut = {strip_wrappers(name): name for name in own if strip_wrappers(name) not in own}

    def rename(name: str, renaming: Mapping[str, str]) -> str:
        new = next((new + name.removeprefix(old) for old, new in renaming.items() if name.startswith(old)), name)
        return cut.get(new, new)

    tries = [
        {rename(name, renaming): tensor for name, tensor in named.items()}
        for named in cut_prefixes(weights)
        for renaming in ({}, *renamings)
    ]
    return max((found for found in tries if len(found) == len(weights)), key=lambda found: len(found.keys() & own))


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def load_into(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load matching weights into a model from `core.models.build`; return the names of those that it does not use."""
    network = without_normalisation(model)
    weights = with_names_of(network, weights)
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


def without_normalisation(model: nn.Module) -> nn.Module:
    """Return the network of a model, without the normalisation before it."""
    return model.network if isinstance(model, Normalized) else model


def load_into_own(model: nn.Module, source: ThirdPartyWeights, where: str) -> None:
    """Load third-party weights into a network of the user's own, in place; all names and shapes must agree.

    where: the name of their file, for errors. Raises BadWeights.
    """
    weights = {**source.weights, **_statistics_of(model, source)}
    fit = _fit(weights, model)
    if not fit.whole:
        raise BadWeights(
            f"the weights in {where} do not fit {type(model).__qualname__}: {fit.report()}",
            hint="give the weights of this class, or make it as it was when they were saved, such as with as many "
            "classes",
            field="weights",
        )
    renamed = with_names_of(model, weights)
    _check_types(renamed, model, where)
    model.load_state_dict({name: renamed[name] for name in model.state_dict() if name in renamed}, strict=False)
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise BadWeights(
            f"{where} contains weights that are NaN, infinite, or too large for {type(model).__qualname__}",
            hint="use an earlier checkpoint of that run",
            field="weights",
        )


def _statistics_of(model: nn.Module, source: ThirdPartyWeights) -> dict[str, Tensor]:
    """Give the normalisation that was taken out of a file back to a network that has it as buffers of its own."""
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        values = {"mean": source.mean, "mu": source.mean, "std": source.std, "sigma": source.std}.get(
            name.rpartition(".")[2]
        )
        if name not in source.weights and values and len(values) == tensor.numel():
            found[name] = torch.tensor(values, dtype=tensor.dtype).view(tensor.shape)
    return found


def count_classes(weights: Mapping[str, Tensor], architecture: str, shape: tuple[int, int, int]) -> int | None:
    """Return the number of classes of some weights, from the shape of the last layer; None where they lack that layer.

    shape: channels, height and width of the images.
    """
    outline = _outline(Blueprint(architecture, shape, 10))
    weights = with_names_of(outline, weights)
    ten, eleven = outline.state_dict(), _outline(Blueprint(architecture, shape, 11)).state_dict()
    for name, tensor in ten.items():
        if tensor.shape != eleven[name].shape:
            found = weights.get(name)
            return None if found is None or found.dim() != tensor.dim() else found.shape[0]
    return None


def fit_to_architectures(weights: Mapping[str, Tensor], shape: tuple[int, int, int]) -> dict[str, Fit]:
    """Compare weights with each architecture of the catalogue that they resemble and that takes such images, and with
    those that they may belong to; best fit first.

    shape: channels, height and width of the images.
    """
    found = {}
    for name in resembling(weights):
        fit = _fit_to(weights, name, shape)
        if fit is not None:
            found[name] = fit
    return dict(sorted(found.items(), key=lambda item: item[1].share, reverse=True))


def fits(weights: Mapping[str, Tensor], architecture: str, shape: tuple[int, int, int]) -> bool:
    """Return whether weights fit a network for images of this shape, with as many classes as they have."""
    fit = _fit_to(weights, architecture, shape)
    return fit is not None and fit.whole


def _fit_to(weights: Mapping[str, Tensor], architecture: str, shape: tuple[int, int, int]) -> Fit | None:
    entry = find_architecture(architecture)
    if entry is None or entry.shape not in (None, shape):
        return None
    try:
        classes = count_classes(weights, architecture, shape) or 10
        return _fit(weights, _outline(Blueprint(architecture, shape, classes)))
    except (BadInput, DoesNotFit):
        # A library lacks it, or it takes no such images.
        return None


def _fit(weights: Mapping[str, Tensor], network: nn.Module) -> Fit:
    return compare(with_names_of(network, weights), network)


@lru_cache(maxsize=32)
def _outline(blueprint: Blueprint) -> nn.Module:
    """Build a network on the meta device: shapes without values. It is shared: do not change it."""
    with torch.device("meta"):
        return without_normalisation(build(blueprint))


def convert(source: ThirdPartyWeights, blueprint: Blueprint, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network of a blueprint with third-party weights, in eval mode.

    Returns the model and the names of the weights that it does not use. name: that of the file, for errors. Raises
    BadWeights when the weights do not fit, with a report of names and shapes, and when they are NaN or infinite.
    """
    outline = _outline(blueprint)
    fit = _fit(source.weights, outline)
    if not fit.whole:
        raise _misfit(source, blueprint, name, fit)
    _check_types(with_names_of(outline, source.weights), outline, name)
    model = build(blueprint)
    left_out = load_into(model, source.weights)
    # In the network's precision, in which a large 64-bit number overflows.
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise BadWeights(
            f"{name} contains weights that are NaN, infinite, or too large for 32 bits",
            hint="use an earlier checkpoint of that run",
            field="file",
        )
    return model.eval(), left_out


def _check_types(weights: Mapping[str, Tensor], network: nn.Module, where: str) -> None:
    """Refuse integers where the network has floating-point parameters. Raises BadWeights."""
    for name, ours in network.state_dict().items():
        if ours.is_floating_point() and name in weights and not weights[name].is_floating_point():
            raise BadWeights(
                f"{name} in {where} has integers of type {str(weights[name].dtype).removeprefix('torch.')}, "
                "where the network has floating-point numbers",
                hint="the weights were rounded or quantised: import the original floating-point weights",
                field="file",
            )


def _misfit(source: ThirdPartyWeights, blueprint: Blueprint, name: str, fit: Fit) -> UserError:
    fits = fit_to_architectures(source.weights, blueprint.shape)
    whole = [known for known, other in fits.items() if other.whole]
    best = next(iter(fits), None)
    if blueprint.architecture in whole:
        classes = count_classes(source.weights, blueprint.architecture, blueprint.shape)
        hint = f"they have {classes} classes, not {blueprint.classes}: add --classes {classes}"
    elif whole:
        hint = f"they fit {' or '.join(whole)}: set --architecture to that"
    elif fit.share > 0.5 and (best is None or fit.share >= fits[best].share):
        hint = "it is the closest network, but the file is incomplete, or from a variant of it"
    elif best and fits[best].share > 0.5:
        hint = f"{best} comes closest: {fits[best].share:.0%} of the names and shapes agree"
    else:
        hint = (
            f"no network for images of {describe(blueprint.shape)} comes close; known: {', '.join(ARCHITECTURES)}, "
            "Wide ResNets of any depth and width, torchvision/ and timm/ with their own names"
        )
    return BadWeights(f"{name} does not fit {blueprint.architecture}: {fit.report()}", hint=hint, field="architecture")
