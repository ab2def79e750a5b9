"""The inner attack that the adversarial methods share: APGD from the clean images, as in Croce & Hein 2022."""

from collections.abc import Mapping

from torch import Tensor, nn

from core.attacks.apgd import apgd
from core.catalog import Norm
from core.events import NormCount
from core.spec import Method

# Training starts l1 attacks with a twentieth of the pixels, evaluation with a fifth.
_DENSITY = 0.05


class Adversary:
    """Attacks training batches and counts, per norm, how many images it was shown and how many withstood it."""

    def __init__(self, method: Method, eps: Mapping[Norm, float]) -> None:
        self.counts = {norm: NormCount(seen=0, robust=0) for norm in method.norms}
        self._steps = method.steps
        self._eps = eps

    def attack(self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm) -> Tensor:
        """Return the highest-loss points found around the images, with the model in eval mode meanwhile."""
        result = apgd(model, images, labels, norm, self._eps[norm], steps=self._steps[norm], density=_DENSITY)
        count = self.counts[norm]
        self.counts[norm] = NormCount(seen=count.seen + len(labels), robust=count.robust + int(result.robust.sum()))
        return result.adversarial
