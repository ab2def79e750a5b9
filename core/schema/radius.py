"""The radius of an l_p ball: how it is written in a spec, and how large it may be."""

import json
from collections.abc import Collection, Mapping, Sequence
from math import floor, isfinite, log, log10, prod, sqrt
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from core.schema.catalog import NORMS, Norm
from core.schema.fraction import read_fraction


def _read_radius(value: Any) -> Any:
    if type(value) is int or (type(value) is float and isfinite(value)):
        return value
    try:
        return read_fraction(value if isinstance(value, str) else "")
    except ValueError:
        raise PydanticCustomError("not_a_radius", 'give a finite number or a fraction such as "8/255"') from None


Radius = Annotated[float, BeforeValidator(_read_radius, json_schema_input_type=float | str), Field(gt=0)]
"""A radius in pixel units of images in [0, 1]."""


class UncoveredL2(NamedTuple):
    """An l2 ball that sticks out of the convex hull of the linf and the l1 ball."""

    covered: float
    """sqrt(eps_1 * eps_inf), about the radius of the largest l2 ball in the hull (Croce & Hein 2020, 2022)."""
    radius: float
    """eps_2."""


def find_uncovered_l2(attacked: Collection[Norm], eps: Mapping[Norm, float]) -> UncoveredL2 | None:
    """Return the l2 ball where training does not attack it and the other two balls need not cover it; else None.

    attacked: the norms that training attacks. eps: the radius per norm; None is returned where a norm is missing.
    """
    if "l2" in attacked or not eps.keys() >= set(NORMS):
        return None
    found = UncoveredL2(sqrt(eps["l1"] * eps["linf"]), eps["l2"])
    return found if found.covered < found.radius else None


def largest_radius(norm: Norm, shape: Sequence[int] | None) -> float | None:
    """Give the radius from which on every image can be turned into the same grey one, so that no classifier is robust.

    A ball of radius d^(1/p) / 2 around any image of d pixels reaches the uniform grey image. shape: of the images; only
    linf has a limit without one.
    """
    if norm == "linf":
        return 0.5
    if not shape:
        return None
    pixels = prod(shape)
    return 0.5 * {"l2": sqrt(pixels), "l1": pixels}[norm]


class ProposedRadii(NamedTuple):
    """Radii that images of a size are usually measured at, and how they were found."""

    eps: Mapping[Norm, str | float]
    """The radius per norm, as a spec has it."""
    how: str
    """Why these, in words."""

    def say(self) -> str:
        """Say what is proposed, and how it was found."""
        return f"for images of this size that could be {json.dumps(self.eps)}: {self.how}"


_LARGE_SIDE = 160
"""The shorter side from which on images are measured at the linf radius of ImageNet."""
_SMALL, _LARGE = 3 * 32 * 32, 3 * 224 * 224
"""Numbers in an image of CIFAR-10 and of ImageNet, between which the radii of l2 and l1 are interpolated."""


def propose_radii(shape: Sequence[int]) -> ProposedRadii:
    """Propose radii for natural images of a shape (channels, height, width).

    linf: 8/255, as for CIFAR-10, and 4/255, as for ImageNet, from a shorter side of 160 on. l1 follows the power law of
    the image's dimension that passes through the radii of both, 12 and 255 (Croce & Hein 2022); so does l2, through 0.5
    and 2, but is at most sqrt(eps_1 * eps_inf), so that E-AT with linf and l1 covers it.
    """
    dimension = prod(shape)
    linf = 4 if min(shape[1:]) >= _LARGE_SIDE else 8

    def between(small: float, large: float) -> float:
        power = log(large / small) / log(_LARGE / _SMALL)
        return _rounded(small * (dimension / _SMALL) ** power)

    l1 = between(12, 255)
    l2 = min(between(0.5, 2), _rounded_down(sqrt(l1 * linf / 255)))
    like = "ImageNet" if linf == 4 else "CIFAR-10"
    return ProposedRadii(
        {"linf": f"{linf}/255", "l2": l2, "l1": l1},
        f"linf as for {like}; l1 and l2 between those of CIFAR-10 and ImageNet by the {dimension:,} values "
        f"of an image; sqrt(l1 * linf) = {sqrt(l1 * linf / 255):.3g} covers l2",
    )


def _rounded(radius: float) -> float:
    """Round to two digits, from 100 on to three."""
    return float(f"{radius:.3g}" if radius >= 100 else f"{radius:.2g}")


def _rounded_down(radius: float) -> float:
    step = 10.0 ** (floor(log10(radius)) - 1)
    return float(f"{floor(radius / step + 1e-9) * step:.2g}")


def check_radius(norm: Norm, radius: float, shape: tuple[int, ...] | None) -> None:
    """Refuse a radius so large that no classifier can be robust at it, as one in units of 0 to 255 is.

    shape: of the images; only linf is checked without one. Raises PydanticCustomError with the JSON pointer of the
    radius in `ctx`.
    """
    limit = largest_radius(norm, shape)
    if limit is None or radius < limit:
        return
    hint = ""
    if radius / 255 < limit:
        hint = f'; for 0-255 units divide by 255: "{radius:g}/255" is {radius / 255:.4g}'
    raise PydanticCustomError(
        "eps_out_of_range",
        "{radius} is not below {limit}, where every image can be turned into the same grey one; eps is in "
        "pixel units of images in [0, 1]{hint}",
        {"norm": norm, "radius": f"{radius:g}", "limit": f"{limit:g}", "hint": hint, "pointer": f"/eps/{norm}"},
    )
