"""What the adversarial methods share: the inner attack, and what the update makes of the points it found.

The attack is APGD from the clean images on the cross-entropy, as in Croce & Hein 2022, and the update minimises the
cross-entropy of what came out. With the TRADES loss (Zhang et al. 2019, arXiv 1901.08573) the update minimises
CE(clean) + beta * KL(p_clean || p_adversarial), with the gradient through both, and the attack drives up that same
divergence from the answers that the model gave before it. The divergence has no slope at the clean image, so such an
attack starts a little beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks import AttackResult, frozen
from core.attacks.apgd import apgd
from core.attacks.compiling import Compiled
from core.attacks.forward import predict
from core.attacks.losses import Loss, cross_entropy, kl_divergence
from core.attacks.threat import LpThreat
from core.models.folding import Twin
from core.schema.catalog import Norm
from core.schema.events import NormCount
from core.schema.spec import Method
from core.training.methods import Share

# How far beside the images an attack on the divergence starts, as a pixel's standard deviation; TRADES has the same.
_NUDGE = 0.001


@dataclass(frozen=True)
class Aim:
    """What an attack drives up, and from where. The defaults are the attacks' own."""

    loss: Loss = cross_entropy
    targets: Tensor | None = None
    """(batch, classes) for the divergence: the logits to move away from."""
    start: Tensor | None = None
    """(batch, channels, height, width); None for the clean images."""


class Adversary:
    """Attacks training batches, counts per norm how they fared, and turns what it found into a loss."""

    # Training starts l1 attacks with a twentieth of the pixels, evaluation with a fifth.
    topk_fraction = 0.05

    def __init__(self, method: Method, eps: Mapping[Norm, float], generator: torch.Generator) -> None:
        self.counts = {norm: NormCount(seen=0, robust=0) for norm in method.norms}
        self.share = Share()
        self._steps = method.steps
        self._eps = {norm: eps[norm] for norm in method.norms}
        self._beta = method.beta
        self._generator = generator
        self.compiled: Compiled | None = None
        """Set for the attacks to go through a compiled network."""
        self._twin: Twin | None = None

    def attack(self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm) -> AttackResult:
        """Find the highest-loss points around the images, with the model in eval mode meanwhile, and count them."""
        aim = self.aim(model, images)
        result = apgd(
            self.quick(model, images),
            images,
            labels,
            LpThreat(norm, self._eps[norm]),
            steps=self._steps[norm],
            start=aim.start,
            targets=aim.targets,
            loss=aim.loss,
            topk_fraction=self.topk_fraction,
        )
        self.count(norm, result.robust)
        return result

    def quick(self, model: nn.Module, images: Tensor) -> nn.Module:
        """Give a model that computes the same in less time, for an attack on it in eval mode."""
        if self._twin is None:
            self._twin = Twin(model)
        with frozen(model):
            twin = self._twin.of(model, images)
            return self.compiled.of(twin, images) if self.compiled else twin

    def attack_each(self, model: nn.Module, images: Tensor, labels: Tensor) -> list[AttackResult]:
        """Attack the same images in every norm, in the order of `counts`."""
        return [self.attack(model, images, labels, norm) for norm in self.counts]

    def aim(self, model: nn.Module, images: Tensor) -> Aim:
        """Say what an attack on these images drives up, in whatever norm."""
        if self._beta is None:
            return Aim()
        with frozen(model):
            answers = predict(model, images)
        return Aim(kl_divergence, answers, self._beside(images))

    def _beside(self, images: Tensor) -> Tensor:
        """Change a few pixels of each image by very little, away from the nearer end of the box.

        So few that an l1 attack, which goes by what its start has changed, takes its first step on `topk_fraction`
        of them.
        """
        source = self._generator
        pixels = prod(images.shape[1:])
        changed = max(round(1.5 * self.topk_fraction * pixels), 1)

        def draw(kind: Callable[..., Tensor], numbers: int) -> Tensor:
            return self.share.draw(
                len(images), lambda count: kind(count, numbers, generator=source, device=source.device)
            )

        chances = draw(torch.rand, pixels)
        sizes = _NUDGE * draw(torch.randn, changed).abs()
        nudge = torch.zeros_like(chances).scatter(1, chances.topk(changed).indices, sizes)
        return images + nudge.to(images).view_as(images) * torch.where(images > 0.5, -1, 1)

    def count(self, norm: Norm, robust: Tensor) -> None:
        """Enter how a batch fared; robust (batch,): the images that stayed right throughout."""
        count = self.counts[norm]
        self.counts[norm] = NormCount(seen=count.seen + len(robust), robust=count.robust + int(robust.sum()))

    def logits(self, model: nn.Module, images: Tensor, *adversarial: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Look at adversarial batches, and for TRADES at the clean one: logits (batch, classes) of each, clean first.

        All go through the model in one pass, so batch norm takes its statistics from all of them together.
        """
        clean = () if self._beta is None else (images,)
        batches = (*clean, *adversarial)
        logits = list(model(torch.cat(batches)).chunk(len(batches)))
        return (logits.pop(0) if clean else None), logits

    def judge(self, clean: Tensor | None, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Turn the logits of one adversarial batch, and for TRADES of the clean one, into the mean loss."""
        if clean is None or self._beta is None:
            return F.cross_entropy(adversarial, labels)
        return F.cross_entropy(clean, labels) + self._beta * kl_divergence(adversarial, labels, clean).mean()

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor, *adversarial: Tensor) -> Tensor:
        """Turn adversarial batches into the mean of their losses."""
        clean, found = self.logits(model, images, *adversarial)
        return torch.stack([self.judge(clean, logits, labels) for logits in found]).mean()
