"""The catalogue: norms, data sets, architectures, base models and methods by name, with the defaults that each brings.

The entries are data and stand in catalog.toml. `core.schema.spec` takes its defaults from them, and the service lists
them. Plain dataclasses, because every import of the schema loads them.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from core.schema.fraction import read_fraction

Kind = Literal["finetune", "train", "evaluate"]
"""What a run does."""

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

Augmentation = Literal["none", "crop-flip", "resized-crop-flip"]

Optimizer = Literal["sgd", "adamw"]

EXTRA_SHARE = 0.5
"""The share of a second data set in each batch, by default."""
DOWNLOADS = Path("~/.cache/temper")
"""Folder of downloaded data sets, each in a folder with its name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of the catalogue."""

    name: str
    """The name that a spec uses."""
    description: str
    """What it is, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set that Temper loads by name, and the recipe that fits it."""

    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    """Number of classes."""
    train_examples: int
    """Images in the training part."""
    test_examples: int
    """Images in the test part."""
    eps: dict[Norm, float]
    """The usual radius per norm, in pixel units of images in [0, 1]."""
    epochs: int
    """Epochs of a fine-tuning run."""
    train_epochs: int
    """Epochs of a run from random weights."""
    batch_size: int
    """Images per training step."""
    steps: dict[Norm, int]
    """Steps of the training attack per norm."""
    weight_decay: float
    """Weight decay of SGD."""
    augmentation: Augmentation
    """How training changes an image before it is attacked."""
    preprocessing: dict[str, int | str] = field(default_factory=dict)
    """How its images are brought to one size; empty for images that all have one."""
    bound: float = 0.5
    """The LPIPS distance that perceptual adversarial training allows (Laidlaw et al. 2021)."""
    streamed: bool = False
    """Whether it is too large for memory and is read from the files of a folder, which the run must be given."""
    downloaded: bool = False
    """Whether a run that is given no path downloads it to the folder `DOWNLOADS`, or finds it there."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureEntry(Entry):
    """A network that Temper builds by name."""

    shape: tuple[int, int, int] | None = None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The default of the highest learning rate of a run, with that optimiser."""
    optimizer: Optimizer = "sgd"
    """The default optimiser, from which the defaults of schedule, warm-up, momentum and weight decay follow."""
    variant_of: str | None = None
    """The usual network of the same weights, from which it differs outside them, such as in its activation."""


@dataclass(frozen=True, kw_only=True)
class FamilyEntry(Entry):
    """Networks that Temper builds by a name that says their depth, width and activation, or their name in a library."""

    pattern: str
    """A regular expression that their names match as a whole; its group `depth` is 4 more than a multiple of 6."""
    learning_rate: float
    """The default of the highest learning rate of a run, with that optimiser."""
    optimizer: Optimizer = "sgd"
    """The default optimiser."""
    variants: tuple[str, ...] = ()
    """Endings of the names of networks with the same weights that compute something else, such as -silu."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """Weights that Temper ships: robust to one norm, ready to be fine-tuned."""

    architecture: str
    """The network the weights belong to."""
    dataset: str
    """The data set they were trained on."""
    norm: Norm
    """The norm they were made robust to."""
    eps: float
    """The radius they were made robust at."""
    sha256: str
    """Hash of the weights file."""


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A way to turn a batch of images and labels into a loss."""

    norms: tuple[Norm, ...] | None = None
    """The norms it attacks by default; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float] = field(default_factory=dict)
    """The options it takes beside norms and steps, each with its default."""


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def read_entries(kind: type[AnyEntry], tables: Mapping[str, Mapping[str, Any]]) -> Mapping[str, AnyEntry]:
    """Make an entry of each TOML table, which is named after it. Raises TypeError for an unknown or a missing key."""
    return {
        name: kind(name=name, **{key: _to_python(key, value) for key, value in table.items()})
        for name, table in tables.items()
    }


def _to_python(key: str, value: Any) -> Any:
    """Make of what TOML has what the entries have: tuples of its arrays, and floats of radii written as fractions."""
    match value:
        case list():
            return tuple(value)
        case dict():
            return {name: _to_python(key, inner) for name, inner in value.items()}
        case str() if key == "eps":
            return read_fraction(value)
    return value


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
DATASETS = read_entries(DatasetEntry, _TABLES["datasets"])
ARCHITECTURES = read_entries(ArchitectureEntry, _TABLES["architectures"])
FAMILIES = read_entries(FamilyEntry, _TABLES["families"])
MODELS = read_entries(ModelEntry, _TABLES["models"])
METHODS = read_entries(MethodEntry, _TABLES["methods"])

TIMM = "timm/"
"""Prefix of the name of a network that the timm library builds."""
PACKAGED = "own/"
"""Prefix of the name of a network that a package offers, which the operator has installed beside the workers."""
PACKAGES = "temper.architectures"
"""The group of entry points by which a package offers networks."""
OWN_CLASS = "own:"
"""Prefix of the name of a network that is a class of the user's own, before its module and name."""
TORCHVISION = "torchvision/"
"""Prefix of the name of a network that the torchvision library builds."""


def find_architecture(name: str) -> ArchitectureEntry | None:
    """Find a network by name: one of ARCHITECTURES, or of one of FAMILIES; None for any other name.

    Only the run finds out whether timm, torchvision or an installed package has a network of that name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    family = _find_family(name)
    if family is None:
        return None
    return ArchitectureEntry(
        name=name, description=family.description, learning_rate=family.learning_rate, optimizer=family.optimizer
    )


def variants_of(name: str) -> tuple[str, ...]:
    """Name the networks that have the same weights as this one and compute something else."""
    family = _find_family(name)
    endings = family.variants if family else ()
    others = [entry.name for entry in ARCHITECTURES.values() if entry.variant_of == name]
    return (*others, *(f"{name}{ending}" for ending in endings if _find_family(f"{name}{ending}")))


def _find_family(name: str) -> FamilyEntry | None:
    for family in FAMILIES.values():
        match = re.fullmatch(family.pattern, name)
        if match and int(match.groupdict().get("depth", 4)) % 6 == 4:
            return family
    return None
