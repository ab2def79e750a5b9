"""MSD: multi steepest descent, one attack that mixes the norms step by step (Maini et al. 2020, arXiv 1909.04068)."""

from torch import nn

from core.attacks import CHECKED
from core.attacks.msd import msd
from core.attacks.threat import UnionThreat
from core.data.split import Batch
from core.training.methods.adversarial import AdversarialMethod, count
from core.training.methods.contract import BatchLoss, Counts, Shard


class MSD(AdversarialMethod):
    """The loss under one attack on the union of the balls."""

    def __call__(self, model: nn.Module, batch: Batch, shard: Shard, counts: Counts) -> BatchLoss:
        """Attack the batch and return the mean loss of the adversarial images."""
        del counts
        images, labels = batch
        objective = self.objective(model, images, shard)
        found = msd(
            self._attacked.of(model, images),
            images,
            labels,
            UnionThreat.of(self._eps),
            CHECKED,
            steps=self._steps,
            start=objective.start,
            targets=objective.targets,
            loss=objective.loss,
        )
        counted = count(found.robust_under)
        return BatchLoss.of(lambda: BatchLoss(self.loss(model, batch, found.adversarial), norm=None, counts=counted))
