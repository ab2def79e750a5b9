"""Random numbers of each point, which depend on the seed and the point's own pixels alone.

A point gets the same numbers in whatever batch, shard or order it is attacked, and a search that was interrupted needs
no state to continue: the numbers are a hash of seed, image and counter (SplitMix64, Steele et al. 2014, OOPSLA), which
is computed for all points at once.
"""

import torch
from torch import Tensor

_WORD = 2**64
# The increment and the multipliers of SplitMix64, as signed words.
_GOLDEN, _FIRST, _SECOND = (word - _WORD for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
# Numbers of one step are counted from a multiple of this.
_PER_STEP = 2**32


class PointNumbers:
    """The random numbers of a number of points."""

    def __init__(self, seed: int, images: Tensor) -> None:
        """images (points, channels, height, width): what distinguishes the points."""
        self._keys = _hash(torch.tensor(seed, device=images.device) + _hash_images(images))

    def pick(self, indices: Tensor | slice) -> "PointNumbers":
        """Give the numbers of some of the points; indices: (n,), a mask (points,) or a slice."""
        return self._with(self._keys[indices])

    def shared(self, batch_sizes: tuple[int, ...] | None) -> "PointNumbers":
        """Give every point the numbers of its batch, which depend on all points of it.

        batch_sizes: points per batch, in the order in which they lie; None for one batch.
        """
        parts = self._keys.split(list(batch_sizes)) if batch_sizes else [self._keys]
        return self._with(torch.cat([_hash(part.sum()).expand(len(part)) for part in parts]))

    def uniform(self, step: int, count: int) -> Tensor:
        """Draw (points, count) numbers, uniform in [0, 1), of float32. The same step gives the same numbers again."""
        counters = torch.arange(count, device=self._keys.device) + step * _PER_STEP
        words = _hash(self._keys[:, None] + _hash(counters))
        # A float32 holds 24 bits exactly.
        return _shift(words, 40).float() / 2**24

    def normal(self, step: int, count: int) -> Tensor:
        """Draw (points, count) standard normal numbers, of float32 (Box & Muller 1958)."""
        half = -(-count // 2)
        radius, angle = self.uniform(step, 2 * half).unflatten(1, (2, half)).unbind(1)
        length = (-2 * (1 - radius).log()).sqrt()
        angle = 2 * torch.pi * angle
        return torch.cat([length * angle.cos(), length * angle.sin()], 1)[:, :count]

    def integers(self, step: int, count: int, below: Tensor | int) -> Tensor:
        """Draw (points, count) integers in [0, below), of int64; below: an integer, or a tensor that broadcasts."""
        drawn = (self.uniform(step, count) * below).long()
        # The product may round up to the bound.
        return torch.minimum(drawn, torch.as_tensor(below, device=drawn.device) - 1)

    def _with(self, keys: Tensor) -> "PointNumbers":
        other = object.__new__(PointNumbers)
        other._keys = keys
        return other


def _hash_images(images: Tensor) -> Tensor:
    """Hash each image to a word, (points,) of int64."""
    # Adding zero makes -0.0 the same as 0.0.
    pixels = (images.detach().float() + 0.0).contiguous().flatten(1).view(torch.int32).long()
    weights = _hash(torch.arange(pixels.shape[1], device=pixels.device)) | 1
    return (_hash(pixels) * weights).sum(1)


def _hash(words: Tensor) -> Tensor:
    """Mix the bits of words of int64, whose arithmetic wraps around."""
    words = words * _GOLDEN + _GOLDEN
    words = (words ^ _shift(words, 30)) * _FIRST
    words = (words ^ _shift(words, 27)) * _SECOND
    return words ^ _shift(words, 31)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift right, and fill with zeros; torch fills with the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
