"""The parts that the adversarial methods share: the inner attack, and the loss of the adversarial images.

The attack is APGD from the clean images on the cross-entropy, and the update minimises the cross-entropy of the
adversarial images (Croce & Hein 2022, arXiv 2105.12508). With the TRADES loss (Zhang et al. 2019, arXiv 1901.08573) the
update minimises CE(clean) + beta * KL(p_clean || p_adversarial), with the gradient through both terms, and the attack
maximises that divergence from the model's answers in eval mode. The divergence has zero gradient at the clean image, so
this attack starts a small distance from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import CHECKED, AttackResult, frozen
from core.attacks.apgd import apgd
from core.attacks.forward import predict
from core.attacks.losses import Loss, cross_entropy, kl_divergence
from core.attacks.threat import LpThreat
from core.data.split import Batch
from core.schema.catalog import Norm
from core.schema.method import Method
from core.schema.progress import NormCount
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import Shard

TOPK_FRACTION = 0.05
"""Fraction of the pixels that the first step of an l1 attack changes: 0.05 in training, 0.2 in evaluation."""

# Standard deviation, in pixel units, of the start of an attack on the divergence; TRADES uses the same.
_START_NOISE = 0.001


@dataclass(frozen=True)
class Objective:
    """The loss that an attack maximises, and its start. The defaults are those of the attacks."""

    loss: Loss = cross_entropy
    targets: Tensor | None = None
    """(batch, classes): for the divergence, the logits of the clean images."""
    start: Tensor | None = None
    """(batch, channels, height, width); None for the clean images."""


class AdversarialMethod:
    """Attacks training batches, and computes the loss of the adversarial images."""

    def __init__(
        self,
        method: Method,
        eps: Mapping[Norm, float],
        generator: torch.Generator,
        attacked: AttackedModel,
        label_smoothing: float,
    ) -> None:
        self.norms = method.norms
        """The attacked norms, in the order of the spec."""
        self._steps = method.steps
        self._eps = {norm: eps[norm] for norm in method.norms}
        self._beta = method.beta
        self._generator = generator
        self._attacked = attacked
        self._label_smoothing = label_smoothing

    def attack(self, model: nn.Module, batch: Batch, shard: Shard, norm: Norm) -> AttackResult:
        """Search the ball of one norm around each image for the point of highest loss, with the model in eval mode."""
        images, labels = batch
        objective = self.objective(model, images, shard)
        return apgd(
            self._attacked.of(model, images),
            images,
            labels,
            LpThreat(norm, self._eps[norm]),
            CHECKED,
            steps=self._steps[norm],
            start=objective.start,
            targets=objective.targets,
            loss=objective.loss,
            topk_fraction=TOPK_FRACTION,
        )

    def attack_each(self, model: nn.Module, batch: Batch, shard: Shard) -> dict[Norm, AttackResult]:
        """Attack the same images in every norm, in the order of `norms`."""
        return {norm: self.attack(model, batch, shard, norm) for norm in self.norms}

    def objective(self, model: nn.Module, images: Tensor, shard: Shard) -> Objective:
        """Return what an attack on images (batch, channels, height, width) maximises; the same for every norm."""
        if self._beta is None:
            return Objective()
        with frozen(model):
            answers = predict(model, images)
        return Objective(kl_divergence, answers, self._noisy_start(images, shard))

    def _noisy_start(self, images: Tensor, shard: Shard) -> Tensor:
        """Change a few pixels of each image by a small amount, away from the nearer end of [0, 1].

        An l1 attack adapts its sparsity to its start: with this number of pixels, its first step changes
        `TOPK_FRACTION` of them.
        """
        source = self._generator
        pixels = prod(images.shape[1:])
        changed = max(round(1.5 * TOPK_FRACTION * pixels), 1)

        def draw(kind: Callable[..., Tensor], numbers: int) -> Tensor:
            return shard.draw(len(images), lambda count: kind(count, numbers, generator=source, device=source.device))

        chances = draw(torch.rand, pixels)
        sizes = _START_NOISE * draw(torch.randn, changed).abs()
        noise = torch.zeros_like(chances).scatter(1, chances.topk(changed).indices, sizes)
        return images + noise.to(images).view_as(images) * torch.where(images > 0.5, -1, 1)

    def logits(self, model: nn.Module, images: Tensor, *adversarial: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Return the logits (batch, classes) of the clean images, for TRADES only, and of each adversarial batch.

        All images go through the model in one pass, so that batch norm takes its statistics from all of them.
        """
        clean = () if self._beta is None else (images,)
        batches = (*clean, *adversarial)
        logits = list(model(torch.cat(batches)).chunk(len(batches)))
        return (logits.pop(0) if clean else None), logits

    def loss_of_logits(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of one adversarial batch, given as logits (batch, classes); clean: None but for
        TRADES, whose cross-entropy of the clean images has smoothed labels and whose divergence needs none."""
        smoothing = self._label_smoothing
        if clean is None or self._beta is None:
            return F.cross_entropy(adversarial, labels, label_smoothing=smoothing)
        divergence = kl_divergence(adversarial, labels, clean).mean()
        return F.cross_entropy(clean, labels, label_smoothing=smoothing) + self._beta * divergence

    def loss(self, model: nn.Module, batch: Batch, *adversarial: Tensor) -> Tensor:
        """Return the mean of the losses of some adversarial batches (batch, channels, height, width)."""
        clean, found = self.logits(model, batch.images, *adversarial)
        return torch.stack([self.loss_of_logits(clean, logits, batch.labels) for logits in found]).mean()


def count(robust: Mapping[Norm, Tensor]) -> dict[Norm, NormCount]:
    """Count the images that were attacked and that stayed robust. robust: (batch,) bool, per attacked norm."""
    return {norm: NormCount(seen=len(points), robust=int(points.sum())) for norm, points in robust.items()}


def count_results(found: Mapping[Norm, AttackResult]) -> dict[Norm, NormCount]:
    """Count the images of an attack per norm."""
    return count({norm: result.robust for norm, result in found.items()})
