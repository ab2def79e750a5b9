"""The model zoo: weights that others have published, by their names in RobustBench.

The entries are data and stand in model_zoo.toml: the l_p leaderboards of RobustBench, and the models that Croce & Hein
2022 (arXiv 2105.12508) fine-tune. Temper downloads none of them: the user downloads a file and gives it to `python -m
core import-weights FILE --published NAME`, which takes network and normalisation from the entry. Networks that Temper
cannot fine-tune are refused by name.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from core.schema.catalog import Entry, Norm, read_entries

Preprocessing = Literal["", "Res256Crop224", "BicubicRes256Crop224", "BicubicRes224Crop224", "Res224", "Crop288"]
"""How RobustBench makes the images of ImageNet: Res256 resizes the shorter side to 256 pixels, bilinearly or
bicubically, Crop224 cuts out the centre, and Res224 resizes both sides to 224. Empty for other data sets."""


@dataclass(frozen=True, kw_only=True)
class PublishedEntry(Entry):
    """Published weights: robust to one norm, or to none."""

    dataset: str
    """The data set they were trained on, by its name in the catalogue."""
    norm: Norm | None = None
    """The norm they were made robust to; null for weights that no attack was used to train."""
    eps: float | None = None
    """The radius at which `robust` is measured, in pixel units of images in [0, 1]; null without a norm."""
    architecture: str
    """The network, by its name in the catalogue."""
    mean: tuple[float, ...] = ()
    """Per channel, the mean subtracted from images in [0, 1]; empty without normalisation."""
    std: tuple[float, ...] = ()
    """Per channel, the standard deviation that images are divided by; empty without normalisation."""
    preprocessing: Preprocessing = ""
    """How the images were made that `clean` and `robust` are measured on."""
    clean: float | None = None
    """Published accuracy on clean images; null where it is not known."""
    robust: float | None = None
    """Published robust accuracy at this norm and radius, under AutoAttack or a stronger attack; null where it is not
    known."""
    licence: str | None = None
    """The licence of the weights; null where none is stated: ask the authors."""
    sha256: str | None = None
    """SHA-256 of the file, or its first digits where no more is published; null where it is not known."""
    source: str
    """Where to download the file."""


@dataclass(frozen=True, kw_only=True)
class RefusedEntry(Entry):
    """A published model that Temper cannot fine-tune or evaluate as one network."""

    dataset: str
    """The data set it was trained on, by its name in the catalogue."""
    norm: Norm
    """The norm it was made robust to."""
    reason: str
    """Why it is refused."""
    source: str
    """The paper."""


_ENTRIES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
PUBLISHED = read_entries(PublishedEntry, {name: entry for name, entry in _ENTRIES.items() if "reason" not in entry})
REFUSED = read_entries(RefusedEntry, {name: entry for name, entry in _ENTRIES.items() if "reason" in entry})

_Named = TypeVar("_Named", bound=Entry)


def find_published(name: str) -> list[PublishedEntry]:
    """Find published weights by full name, or by its last part, which several entries may share."""
    return _find(name, PUBLISHED.values())


def find_refused(name: str) -> list[RefusedEntry]:
    """Find published models that are refused, by full name or by its last part."""
    return _find(name, REFUSED.values())


def _find(name: str, entries: Iterable[_Named]) -> list[_Named]:
    return [entry for entry in entries if name in (entry.name, entry.name.rpartition("/")[2])]
