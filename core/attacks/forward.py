"""Passes through a model in chunks, whose size changes time and memory but no result beyond rounding.

Attacks call a model only through these functions. chunk_size: how many points go through it together, None for all.

A network may answer a point with NaN or infinity, and so may its gradient. Such an answer is no answer: `classify` gives
no class, `fools` no error, and the loss is the lowest there is, so that no attack prefers the point. A slope that is NaN
is taken as zero.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.schema.errors import BadInput
from core.schema.report import NO_CLASS

PointLoss = Callable[..., Tensor]
"""Turns logits (batch, classes), and tensors with a row per point, into a loss per point (batch,)."""

# The slope taken for an infinite one: larger than any other that matters, and its square does not overflow in a sum.
_STEEPEST = 1e15


class Pass(NamedTuple):
    """A forward and a backward pass."""

    logits: Tensor
    """(batch, classes)."""
    loss: Tensor
    """(batch,): -inf where a logit is not finite."""
    gradient: Tensor
    """(batch, channels, height, width): of each loss with respect to its point; all its entries are finite."""
    nan_gradients: Tensor
    """(batch,) bool: whether an entry of the gradient was NaN, and is taken as zero."""


def logits_of(output: object, points: int) -> Tensor:
    """Take the logits (batch, classes) of a number of points out of what a network returned.

    They may also come as (batch, classes, 1, 1), in a tuple of one element, or as the attribute `logits` of an object.
    Raises BadInput for anything else.
    """
    found = output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output
    found = found if isinstance(found, Tensor) else getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.dim() == 4 and found.shape[2:] == (1, 1):
        found = found.flatten(1)
    fits = isinstance(found, Tensor) and found.dim() == 2 and len(found) == points and found.shape[1] > 1
    if isinstance(found, Tensor) and fits and found.is_floating_point():
        return found
    raise BadInput(
        f"the model answers {points} images with {_describe(output)}; logits ({points}, classes) of floating point, for "
        "two classes or more, are needed",
        hint="wrap the model in a module whose forward returns the logits alone",
        field="model",
    )


def _describe(output: object) -> str:
    """Describe what a network returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)} elements"
    if isinstance(output, dict):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, list(output)[:5]))}"
    return f"an object of the type {type(output).__name__}"


def is_answered(logits: Tensor) -> Tensor:
    """Tell for logits (batch, classes) where all are finite: (batch,) bool."""
    return logits.isfinite().all(1)


def classify(logits: Tensor) -> Tensor:
    """Give the class of the largest logit (batch,); NO_CLASS where a logit is not finite."""
    return logits.argmax(1).where(is_answered(logits), NO_CLASS)


def fools(logits: Tensor, labels: Tensor) -> Tensor:
    """Tell where the model is wrong: (batch,) bool. Logits that are not finite prove no error."""
    return (logits.argmax(1) != labels) & is_answered(logits)


def loss_of(loss: PointLoss, logits: Tensor, *details: Tensor) -> Tensor:
    """Compute the loss per point (batch,); -inf where a logit is not finite or the loss is NaN."""
    return _lowest_where_undefined(loss(logits, *details), logits)


def _lowest_where_undefined(values: Tensor, logits: Tensor) -> Tensor:
    return values.masked_fill(~is_answered(logits) | values.isnan(), -torch.inf)


def predict(model: nn.Module, points: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Compute logits (batch, classes) without a graph."""
    with torch.no_grad():
        logits = [logits_of(model(chunk), len(chunk)) for (chunk,) in _chunks(chunk_size, points)]
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def loss_and_gradient(
    model: nn.Module, points: Tensor, loss: PointLoss, *details: Tensor, chunk_size: int | None = None
) -> Pass:
    """Compute logits, losses, and the losses' gradients with respect to the points.

    details: tensors (batch, ...) that the loss takes after the logits, such as labels. Parameters get no gradient.
    """
    found = []
    for chunk, *details_of_chunk in _chunks(chunk_size, points, *details):
        chunk = chunk.detach().requires_grad_()
        with torch.enable_grad():
            logits = logits_of(model(chunk), len(chunk))
            values = loss(logits, *details_of_chunk)
            slope = _slope(values.sum(), chunk)
        logits = logits.detach()
        values = _lowest_where_undefined(values.detach(), logits)
        gradient = slope.nan_to_num(nan=0.0, posinf=_STEEPEST, neginf=-_STEEPEST)
        found.append(Pass(logits, values, gradient, slope.isnan().flatten(1).any(1)))
    return found[0] if len(found) == 1 else Pass(*map(torch.cat, zip(*found, strict=True)))


def _slope(total: Tensor, points: Tensor) -> Tensor:
    """Compute the gradient of a scalar; zero where the network hides it, as one that detaches its input does."""
    if not total.requires_grad:
        return torch.zeros_like(points)
    (slope,) = torch.autograd.grad(total, points, allow_unused=True)
    return torch.zeros_like(points) if slope is None else slope


def _chunks(chunk_size: int | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    if chunk_size is None or len(tensors[0]) <= chunk_size:
        yield tensors
        return
    yield from zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
