"""Floating-point precision: float32, or for training bfloat16 inside the network and float32 outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from core.schema.spec import Precision


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 inside the block.

    By default torch computes convolutions in TF32 on a GPU. Its 10 bits of mantissa change verdicts, and are not what
    `fp32` promises.
    """
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


class Bfloat16(nn.Module):
    """A network under torch's bfloat16 autocast, with float32 inputs and outputs.

    Perturbations, projections and losses stay in float32: the 8 bits of bfloat16 are too few for a step of eps / 10.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) for images."""
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = self.network(images)
        return logits.float()


def in_precision(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Return the model as training calls it; it shares all weights with `model`, which stays unchanged."""
    return Bfloat16(model) if resolve(precision, device) == "bf16" else model


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision to use on a device.

    auto is bfloat16 on a GPU that supports it, and float32 elsewhere: on a CPU without bfloat16 instructions it is no
    faster, and the result of a run should not depend on the CPU.
    """
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
