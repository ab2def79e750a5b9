"""The model zoo: robust weights that others have published, by their names in RobustBench.

The entries are data and stand in model_zoo.toml. They are the models that Croce & Hein 2022 (arXiv 2105.12508)
fine-tune. Temper downloads none of them: the user downloads a file and gives it to `python -m core import-weights FILE
--published NAME`, which takes network and normalisation from the entry.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from core.schema.catalog import Entry, Norm, read_entries


@dataclass(frozen=True, kw_only=True)
class PublishedEntry(Entry):
    """Published weights: robust to one norm."""

    dataset: str
    """The data set they were trained on, by its name in the catalogue."""
    norm: Norm
    """The norm they were made robust to."""
    eps: float
    """The radius they were made robust at, in pixel units of images in [0, 1]."""
    architecture: str
    """The network, by its name in the catalogue."""
    mean: tuple[float, ...] = ()
    """Per channel, the mean subtracted from images in [0, 1]; empty without normalisation."""
    std: tuple[float, ...] = ()
    """Per channel, the standard deviation that images are divided by; empty without normalisation."""
    clean: float | None = None
    """Published accuracy on clean images; null where it is not known."""
    robust: float | None = None
    """Published accuracy under AutoAttack at this norm and radius; null where it is not known."""
    licence: str | None = None
    """The licence of the weights; null where none is stated: ask the authors."""
    source: str
    """Where to download the file."""


PUBLISHED = read_entries(PublishedEntry, tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8")))


def find_published(name: str) -> list[PublishedEntry]:
    """Find published weights by full name, or by its last part, which several entries may share."""
    return [entry for entry in PUBLISHED.values() if name in (entry.name, entry.name.rpartition("/")[2])]
