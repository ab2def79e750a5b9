"""Passes through a model in chunks, whose size changes time and memory but no result beyond rounding.

Attacks call a model only through these functions. chunk_size: how many points go through it together, None for all.

The logits of a point may be NaN or infinite. Then they are no answer: `classify` gives no class, `fools` no error, and
the loss is the lowest there is, so that no attack prefers the point. A slope that is NaN is taken as zero.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.models.outputs import logits_of
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
