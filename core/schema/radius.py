"""The radius of an l_p ball: how it is written in a spec, and how large it may be."""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite, prod, sqrt
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
