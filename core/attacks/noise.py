"""Random numbers as AutoAttack draws them: a stream per logical batch, whatever is computed together.

AutoAttack seeds its generator anew for every batch and attack, and draws for the points of the batch that still stand.
So the numbers that a point gets depend on the seed and on its batch-mates, and on nothing else: several logical batches
can be attacked in one physical batch, or on several machines, and every point still gets the same numbers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Noise:
    """The streams of several logical batches whose points lie one after the other."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        """Seed a stream for each logical batch. sizes: points per batch, in the order in which they lie."""
        self._streams = [torch.Generator().manual_seed(seed) for _ in sizes]
        self._edges = torch.tensor([0, *sizes]).cumsum(0)

    @property
    def points(self) -> int:
        """How many points all batches hold."""
        return int(self._edges[-1])

    def normal(self, places: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(places), *shape) standard normal numbers; places (n,): which of all points, in rising order."""
        return self._draw(places, lambda count, stream: torch.randn(count, *shape, generator=stream))

    def uniform(self, places: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(places), *shape) numbers, uniform in [0, 1)."""
        return self._draw(places, lambda count, stream: torch.rand(count, *shape, generator=stream))

    def shared(self, places: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw once per batch that has points among `places`, and give each of its points the same numbers."""
        return self._draw(places, lambda count, stream: torch.rand(*shape, generator=stream).expand(count, *shape))

    def _draw(self, places: Tensor, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        batch = torch.bucketize(places.cpu(), self._edges[1:], right=True)
        counts = torch.bincount(batch, minlength=len(self._streams)).tolist()
        drawn = [draw(count, stream) for count, stream in zip(counts, self._streams, strict=True) if count]
        return torch.cat(drawn).to(places.device)
