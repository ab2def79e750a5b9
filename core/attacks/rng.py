"""Random numbers as AutoAttack draws them: a stream per logical batch, whatever is computed together.

AutoAttack seeds its generator again for every batch and attack, and draws for the points of the batch that are still
robust. So the numbers that a point gets depend on the seed and on its batch-mates, and on nothing else: several logical
batches can be attacked in one physical batch, or on several machines, and every point still gets the same numbers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Noise:
    """The streams of several logical batches, whose points follow one another."""

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        """Seed a stream for each logical batch. sizes: points per batch, in the order in which they lie."""
        self.seed = seed
        self.sizes = tuple(sizes)
        self._streams = [torch.Generator().manual_seed(seed) for _ in sizes]
        self._edges = torch.tensor([0, *sizes]).cumsum(0)

    def normal(self, indices: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(indices), *shape) standard normal numbers; indices (n,): among all points, in rising order."""
        return self._draw(indices, lambda count, stream: torch.randn(count, *shape, generator=stream))

    def uniform(self, indices: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(indices), *shape) numbers, uniform in [0, 1)."""
        return self._draw(indices, lambda count, stream: torch.rand(count, *shape, generator=stream))

    def counts(self, indices: Tensor) -> list[int]:
        """Count the indices (n,) in each batch."""
        batch = torch.bucketize(indices.cpu(), self._edges[1:], right=True)
        counts: list[int] = torch.bincount(batch, minlength=len(self._streams)).tolist()
        return counts

    def shared_and_own(self, counts: Sequence[int], shared: int, own: int) -> tuple[Tensor, Tensor]:
        """Draw `shared` numbers per batch and then `own` per point, uniform in [0, 1); counts: points in each batch.

        Returns (points, shared), with the same numbers for all points of a batch, and (points, own), on the host. One
        draw per batch: a stream gives the same numbers one by one as together.
        """
        drawn = [
            (count, torch.rand(shared + count * own, generator=stream))
            for count, stream in zip(counts, self._streams, strict=True)
            if count
        ]
        first = [numbers[:shared].expand(count, shared) for count, numbers in drawn]
        rest = [numbers[shared:].view(count, own) for count, numbers in drawn]
        return (first[0], rest[0]) if len(drawn) == 1 else (torch.cat(first), torch.cat(rest))

    def state(self) -> Tensor:
        """Give the state of the streams: (batches, bytes) of uint8."""
        return torch.stack([stream.get_state() for stream in self._streams])

    def restore(self, state: Tensor) -> None:
        """Continue from the state of streams of the same batches."""
        for stream, row in zip(self._streams, state, strict=True):
            # A copy, since torch 2.14 crashes on a view of a tensor.
            stream.set_state(row.cpu().clone())

    def _draw(self, indices: Tensor, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        counts = self.counts(indices)
        drawn = [draw(count, stream) for count, stream in zip(counts, self._streams, strict=True) if count]
        return torch.cat(drawn).to(indices.device)
