"""Training methods: how a batch becomes a loss.

A method is a file here, named as in `core.catalog.METHODS` with - as _, with a class `Rule`: made from (method, eps,
generator), called with (model, images, labels), it returns a `BatchLoss`. Its `counts` are all the state it has: what
they are set to, it goes on from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor, nn

from core.catalog import Norm
from core.events import NormCount
from core.spec import Method


@dataclass(frozen=True)
class BatchLoss:
    """What a method makes of a batch."""

    loss: Tensor
    """The scalar to minimise, with its graph."""
    norm: Norm | None
    """The norm that was attacked; None where none was, or several were."""


class TrainingRule(Protocol):
    """A method at work."""

    counts: dict[Norm, NormCount]

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Turn a batch into a loss. The model is in train mode and stays so."""


def build(method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> TrainingRule:
    """Make the rule of a method. generator: where its draws come from."""
    rule: TrainingRule = import_module(f"core.methods.{method.name.replace('-', '_')}").Rule(method, eps, generator)
    return rule
