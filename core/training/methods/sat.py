"""Stochastic adversarial training (SAT): one norm per batch, drawn uniformly (Madaan et al. 2021, arXiv 2006.12135)."""

import torch
from torch import nn

from core.data.split import Batch
from core.training.methods.adversarial import AdversarialMethod, count_results
from core.training.methods.contract import BatchLoss, Counts, Shard


class SAT(AdversarialMethod):
    """The loss under one norm's attack; the norm is drawn for each batch."""

    def weights(self, counts: Counts) -> list[float]:
        """Return the probability of each norm to be drawn next, up to a common factor, in the order of `norms`."""
        del counts
        return [1.0] * len(self.norms)

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Draw a norm, attack in it, and return the mean loss of the adversarial images."""
        drawn = torch.multinomial(torch.tensor(self.weights(counts)), 1, generator=self._generator)
        norm = self.norms[int(drawn)]
        found = self.attack(model, batch, shard, norm)
        counted = count_results({norm: found})
        return BatchLoss.of(lambda: BatchLoss(self.loss(model, batch, found.adversarial), norm, counted))
