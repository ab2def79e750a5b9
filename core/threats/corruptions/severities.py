"""The severities of the common corruptions: those of CIFAR-10-C for small images, those of ImageNet-C for others."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from core.schema.errors import BadInput
from core.schema.suggestions import did_you_mean
from core.schema.threats import COMMON, SEVERITIES, STANDARD_CORRUPTIONS, THREATS

Table = Literal["cifar", "imagenet"]

STANDARD = tuple(name.removeprefix(COMMON) for name in STANDARD_CORRUPTIONS)
"""The corruptions over which the field averages, in the order of the paper."""
NAMES = tuple(name.removeprefix(COMMON) for name in THREATS if name.startswith(COMMON))
"""All corruptions: the standard ones, and those that the paper leaves to the choice of settings."""

_FIELD = "evaluation.unseen"
_IMAGENET_SIDE = 64
"""Pixels of the shorter side from which on ImageNet's severities apply."""
_LEAST_SIDES = {"defocus_blur": 3, "glass_blur": 3, "elastic_transform": 3, "pixelate": 2, "spatter": 2}
"""Pixels of the shorter side that a corruption needs: to reflect the image at its border, or to have an inner pixel."""

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def table_of(shape: Sequence[int]) -> Table:
    """Name the severities that apply to images of this shape (channels, height, width)."""
    return "imagenet" if min(shape[-2:]) >= _IMAGENET_SIDE else "cifar"


def arguments_of(name: str, severity: int, shape: Sequence[int]) -> dict[str, float]:
    """Give the arguments of a corruption's function at a severity, for images of this shape."""
    table = _TABLES[table_of(shape)][name]
    return {key: value[severity - 1] if isinstance(value, list) else value for key, value in table.items()}


def check_corruption(name: str, severity: int, shape: Sequence[int]) -> None:
    """Raise BadInput for a corruption or severity that does not exist, and images that are too small for it.

    shape: of an image, (channels, height, width).
    """
    if name not in NAMES:
        raise BadInput(f"there is no corruption {name!r}", hint=did_you_mean(str(name), NAMES), field=_FIELD)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise BadInput(
            f"the severity of {name} is {severity!r}, not 1, 2, 3, 4 or 5",
            hint="1 is the weakest severity, 5 the strongest",
            field=_FIELD,
        )
    least, (height, width) = _LEAST_SIDES.get(name, 1), shape[-2:]
    if min(height, width) < least:
        raise BadInput(
            f"images of {height} x {width} pixels are too small for {name}, which takes {least} x {least} or more",
            hint=f"leave {name} out",
            field=_FIELD,
        )
