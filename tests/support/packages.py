"""A package that offers networks to Temper, installed as a folder on the path."""

from pathlib import Path

import pytest

_CODE = """
from torch import nn


class Tiny(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        channels, height, width = shape
        self.norm = nn.GroupNorm(1, channels)
        self.fc = nn.Linear(channels * height * width, classes)

    def forward(self, images):
        return self.fc(self.norm(images).flatten(1))


def raising(shape, classes):
    raise ValueError("no such size")


def number(shape, classes):
    return 7


word = "Tiny"
"""
_ENTRY_POINTS = """
[temper.architectures]
tiny = tiny_networks:Tiny
missing = no_such_networks:Net
word = tiny_networks:word
raising = tiny_networks:raising
number = tiny_networks:number
"""


def write_package(folder: Path) -> Path:
    """Write the package with its entry points; return the folder to put on the path."""
    site = folder / "packages"
    information = site / "tiny_networks-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "tiny_networks.py").write_text(_CODE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-networks\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(_ENTRY_POINTS)
    return site


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package for this process, for one test."""
    monkeypatch.syspath_prepend(write_package(folder))
