"""The arithmetic: float32, or in training bfloat16 inside the network and float32 around it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from core.schema.spec import Precision


@contextmanager
def full_float32() -> Iterator[None]:
    """Let float32 be float32 for as long as the block runs, and then again what it was.

    By default torch convolves in TF32 on a GPU, which keeps 10 bits of a number: more than lies between many a verdict
    and the other, and not what `fp32` says.
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
    """A network that computes in bfloat16 what torch's autocast holds safe, and takes and gives float32.

    So perturbations, projections and losses keep float32: bfloat16 has 8 bits, too few for a step of eps / 10.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = self.network(images)
        return logits.float()


def in_precision(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Give the model as training calls it; it shares all weights with the one given, which stays as it is."""
    return Bfloat16(model) if resolve(precision, device) == "bf16" else model


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Say what a precision comes to on a device.

    auto means bfloat16 on a GPU that computes in it, float32 elsewhere: on a CPU without instructions for it bfloat16
    is no faster, and what comes of a run is not to depend on which CPU it was.
    """
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
