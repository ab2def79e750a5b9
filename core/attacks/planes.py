"""Steps onto planes inside the box, with the bits of AutoAttack.

The shortest step that brings a linear function to zero without leaving the box is the projection of FAB (Croce & Hein
2020, arXiv 1907.02044, section 3.1), which sorts the pixels by where they reach the edge of the box. Here it is
computed in the order in which AutoAttack computes it, because the differences are not small on a network that hides
its gradients:

- In l2, AutoAttack does not move pixels with a slope up to 1e-8, but counts them among those that make up the height.
  Where most slopes are of that size, the step is another one: by half of the box in one pixel, in 193 of 200 cases.
- In l2, a pixel with a slope far below the others' ends so late that its time magnifies the rounding of the others'.
- In l1, AutoAttack's search ends a pixel early in some cases where the number of pixels is a power of two.
"""

from math import ceil, log2

import torch
from torch import Tensor

from core.schema.catalog import Norm

# AutoAttack does not move pixels with a slope up to this in l2 and l1; the square of a smaller one may underflow.
_FLAT = 1e-8
_NEVER = 1e12


def step_onto_plane(points: Tensor, slope: Tensor, height: Tensor, norm: Norm) -> Tensor:
    """Find the shortest step inside the box that brings a linear function down, or up, to zero.

    slope (batch, channels, height, width): the gradient of each function. points: of the same shape, a point for each
    function, or several such batches stacked (count, batch, ...); height (batch,) or (count, batch): the value there.
    The steps have the shape of the points. Where a function is zero nowhere in the box, the step goes as far towards
    zero as the box allows. Pixels without slope stay. By rounding a step may miss the plane or leave the box.
    """
    towards = torch.where(height[..., None, None, None] < 0, 1.0, -1.0) * slope.sign()
    room = torch.where(towards > 0, 1 - points, points).flatten(-3)
    steepness, drop = slope.abs().flatten(-3).expand_as(room), height.abs()[..., None]
    find = {"linf": _move_alike, "l2": _move_by_slope, "l1": _move_steepest_first}[norm]
    return towards * find(steepness, room, drop).view_as(points)


# All of these take steepness and room (..., pixels), drop (..., 1), none negative, and return how far each pixel goes.


def _move_alike(steepness: Tensor, room: Tensor, drop: Tensor) -> Tensor:
    """linf: move all pixels with a slope one common distance, each until its room ends."""
    order = room.argsort(dim=-1).flip(-1)
    widest_first = steepness.gather(-1, order)
    whole = (steepness * room).sum(-1, keepdim=True)
    widest_room = room.gather(-1, order)
    # In column k, minus what is made up when all pixels go as far as that of rank k: the wider ones go that far, too,
    # the others to their ends.
    rates = widest_first.cumsum(-1)
    excess = (widest_first * widest_room).cumsum(-1) - whole
    negated = excess - rates * widest_room
    none_ends = -drop > negated[..., -1:]
    pixels = room.shape[-1]
    last = _last_where(-drop > negated, pixels - 1, pixels).masked_fill(none_ends, pixels - 1)
    distance = ((-drop - excess.gather(-1, last)) / -rates.gather(-1, last)).clamp(min=0)
    in_reach = -drop > -whole
    found = torch.where(none_ends, distance, torch.where(in_reach, distance.minimum(room), room))
    return torch.where(steepness > 0, found, 0)


def _move_by_slope(steepness: Tensor, room: Tensor, drop: Tensor) -> Tensor:
    """l2: move pixels in proportion to their slope for one common time, each until its room ends."""
    ends = (room / steepness).clamp(max=_NEVER).masked_fill(steepness < _FLAT, _NEVER)
    ordered, order = ends.sort(-1)
    reach = torch.where(steepness > _FLAT, ends * steepness, 0)
    following = torch.nn.functional.pad(ordered[..., 1:], (0, 1))
    ordered, following = (times.masked_fill(times == _NEVER, 0) for times in (ordered, following))
    squares = steepness.square().gather(-1, order)
    rate = squares.sum(-1, keepdim=True)
    left = rate - squares.cumsum(-1)
    first = rate * ordered[..., :1]
    # In column k, minus what is made up by the time at which the pixel of rank k ends.
    negated = torch.cat([-first, ((ordered - following) * left).cumsum(-1) - first], -1)[..., :-1]
    none_ends = negated[..., :1] + drop < 0
    in_reach = drop - (reach * steepness).sum(-1, keepdim=True) <= 0
    pixels = room.shape[-1]
    last = _last_where(negated + drop > 0, pixels - 1, pixels)
    left_then = left.gather(-1, last)
    time = (negated.gather(-1, last) + drop) / left_then + ordered.gather(-1, last)
    time = time.masked_fill(left_then == 0, 0)
    found = torch.where(in_reach & (time <= ends), time * steepness, reach)
    found = torch.where(none_ends, drop / rate * steepness, found)
    return torch.where(steepness > _FLAT, found, 0)


def _move_steepest_first(steepness: Tensor, room: Tensor, drop: Tensor) -> Tensor:
    """l1: move the steepest pixels, one after the other, each as far as it has room."""
    pixels = room.shape[-1]
    order = (1 / steepness).clamp(max=_NEVER).argsort(dim=-1)
    ordered, ordered_room = steepness.gather(-1, order), room.gather(-1, order)
    missing = torch.cat([drop, -(ordered * ordered_room)], -1).cumsum(-1)
    # With a power of two of pixels, AutoAttack's search may end one pixel early: that one then goes beyond its room.
    last = _last_where(missing > 0, pixels + 1, pixels).clamp(max=pixels - 1)
    distance = missing.gather(-1, last) / ordered.gather(-1, last)
    ranks = torch.arange(pixels, device=room.device)
    partly = torch.where(ranks < last, ordered_room, torch.where(ranks == last, distance, 0))
    found = torch.where(missing[..., -1:] < 0, partly, ordered_room)
    return torch.zeros_like(room).scatter(-1, order, torch.where(ordered > _FLAT, found, 0))


def _last_where(holds: Tensor, end: int, pixels: int) -> Tensor:
    """Search by halving for the last column of holds (..., columns) below `end` that is true: (..., 1), 0 if none is.

    Where rounding lets a column hold after one that does not, the result depends on which columns are looked at, and
    that is as in AutoAttack: it starts from 0 and `end`, and halves as often as suffices for as many columns as pixels.
    """
    low = torch.zeros_like(holds[..., :1], dtype=torch.long)
    high = torch.full_like(low, end)
    for _ in range(ceil(log2(pixels))):
        middle = (low + high) // 2
        here = holds.gather(-1, middle)
        low, high = torch.where(here, middle, low), torch.where(here, high, middle)
    return low
