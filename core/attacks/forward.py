"""Passes through a model in chunks, whose size changes time and memory but no result beyond rounding.

Attacks call a model only through these two functions. chunk_size: how many points go through it together, None for all.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

PointLoss = Callable[..., Tensor]
"""Turns logits (batch, classes), and tensors with a row per point, into a loss per point (batch,)."""


def predict(model: nn.Module, points: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Compute logits (batch, classes) without a graph."""
    with torch.no_grad():
        logits = [model(chunk) for (chunk,) in _chunks(chunk_size, points)]
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def loss_and_gradient(
    model: nn.Module, points: Tensor, loss: PointLoss, *details: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute logits (batch, classes), losses (batch,) and the losses' gradients with respect to the points.

    details: tensors (batch, ...) that the loss takes after the logits, such as labels. Parameters get no gradient.
    """
    found = []
    for chunk, *details_of_chunk in _chunks(chunk_size, points, *details):
        chunk = chunk.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(chunk)
            values = loss(logits, *details_of_chunk)
            (gradient,) = torch.autograd.grad(values.sum(), chunk)
        found.append((logits.detach(), values.detach(), gradient))
    if len(found) == 1:
        return found[0]
    logits, values, gradient = (torch.cat(column) for column in zip(*found, strict=True))
    return logits, values, gradient


def _chunks(chunk_size: int | None, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    if chunk_size is None or len(tensors[0]) <= chunk_size:
        yield tensors
        return
    yield from zip(*(tensor.split(chunk_size) for tensor in tensors), strict=True)
