"""Training methods: how a batch becomes a loss.

A method is a file here, named as in `core.schema.catalog.METHODS` with - as _, with a class `Rule`: made from
(method, eps, generator), called with (model, images, labels), it returns a `BatchLoss`. Its `counts` are all the
state it has: what they are set to, it goes on from. A batch may be computed in shares, one after the other or in
several processes: before each call `share` says which, and the results add up to that of the whole batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor, nn

from core.schema.catalog import Norm
from core.schema.events import NormCount
from core.schema.spec import Method


@dataclass(frozen=True)
class Share:
    """Which images of a batch a rule is called with."""

    first: int = 0
    """The place of the first of them in the batch."""
    whole: int | None = None
    """The size of the batch; None where they are all of it."""

    def draw(self, count: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Draw for the whole batch, and give what belongs to these `count` images: so each gets the same numbers
        whatever the share it is computed in. draw: makes a tensor with a row for each of so many images."""
        numbers = draw(count if self.whole is None else self.whole)
        return numbers[self.first : self.first + count]


@dataclass(frozen=True)
class BatchLoss:
    """What a method makes of a batch, or of a share of it."""

    loss: Tensor
    """A scalar to minimise, with its graph: a mean over the images."""
    norm: Norm | None
    """The norm that was attacked; None where none was, or several were."""
    some: Tensor | None = None
    """A scalar to minimise beside it, with its graph: a sum over some of the images, to be divided by how many those
    are in the whole batch."""
    count: int = 0
    """How many those are here."""

    def total(self) -> Tensor:
        """Put both together, where these images are the whole batch."""
        return self.loss if self.some is None else self.loss + self.some / (self.count or 1)


class TrainingRule(Protocol):
    """A method at work."""

    counts: dict[Norm, NormCount]
    share: Share

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Turn a batch into a loss. The model is in train mode and stays so."""


def build(method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> TrainingRule:
    """Make the rule of a method. generator: where its draws come from."""
    module = import_module(f"core.training.methods.{method.name.replace('-', '_')}")
    rule: TrainingRule = module.Rule(method, eps, generator)
    return rule
