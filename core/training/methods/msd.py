"""MSD: multi steepest descent, one attack that mixes the norms step by step (Maini et al. 2020, arXiv 1909.04068)."""

from torch import Tensor, nn

from core.attacks.msd import msd
from core.attacks.threat import UnionThreat
from core.training.methods import BatchLoss
from core.training.methods.adversary import Adversary


class Rule(Adversary):
    """Turns a batch into its loss under the one attack on the union of the balls."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> BatchLoss:
        """Attack the batch, then take the mean loss of what came out."""
        aim = self.aim(model, images)
        found = msd(
            self.quick(model, images),
            images,
            labels,
            UnionThreat.of(self._eps),
            steps=self._steps,
            start=aim.start,
            targets=aim.targets,
            loss=aim.loss,
        )
        for norm, robust in found.robust_under.items():
            self.count(norm, robust)
        return BatchLoss(self.loss(model, images, labels, found.adversarial), norm=None)
