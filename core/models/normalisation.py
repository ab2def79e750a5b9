"""Input normalisation: a part of the model, so that perturbations are in pixel units of images in [0, 1]."""

import torch
from torch import Tensor, nn

from core.schema.errors import BadInput


class Normalized(nn.Module):
    """A network after its input normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def check_normalisation(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse a mean and standard deviation per channel that cannot normalise images. Raises BadInput."""
    if len(mean) != len(std) or len(mean) not in (0, channels) or not _normalises(mean, std):
        raise BadInput(
            f"mean {list(mean[:16])} and std {list(std[:16])} do not normalise images of {channels} channels",
            hint="give one number per channel for each, with std above 0, or leave both out",
            field="mean",
        )


def _normalises(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether black and white stay finite, in the 32 bits that the model computes in."""
    shift, scale = (torch.tensor(values, dtype=torch.float64).float() for values in (mean, std))
    pixels = torch.tensor([[0.0], [1.0]])
    return bool((scale > 0).all() and torch.isfinite(scale).all() and torch.isfinite((pixels - shift) / scale).all())
