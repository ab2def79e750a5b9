"""One part of a data set: pixels as bytes, and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images and labels of the training or the test part."""

    pixels: Tensor
    """(examples, channels, height, width) uint8."""
    labels: Tensor
    """(examples,) int64 class indices."""
    white: int = 255
    """The pixel value that means 1.0."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """Move the part to a device."""
        return Split(self.pixels.to(device), self.labels.to(device), self.white)

    def first(self, examples: int) -> "Split":
        """Take the first so many examples, or all where there are fewer."""
        return Split(self.pixels[:examples], self.labels[:examples], self.white)

    def pick(self, index: Tensor) -> "Split":
        """Take the examples at `index` (n,)."""
        return Split(self.pixels[index], self.labels[index], self.white)

    def images(self) -> Tensor:
        """Return the images as (examples, channels, height, width) in [0, 1], in torch's default dtype."""
        return self.pixels.to(torch.get_default_dtype()) / self.white
