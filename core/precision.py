"""The arithmetic of training: float32, or bfloat16 inside the network and float32 around it."""

import torch
from torch import Tensor, nn

from core.spec import Precision


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
    """Give the model as training calls it; it shares all weights with the one given, which stays as it is.

    auto means bfloat16 on a GPU that computes in it, float32 elsewhere: on a CPU bfloat16 is no faster.
    """
    if precision == "auto":
        precision = (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        )
    return Bfloat16(model) if precision == "bf16" else model
