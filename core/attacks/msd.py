"""Multi steepest descent (Maini et al. 2020, arXiv 1909.04068, algorithm 1): one attack on the union of several balls.

Every round tries the steepest step in each norm from the current point, projects each onto its own ball, and continues
from the candidate of highest loss. So a point may change from ball to ball.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, AttackOptions, AttackResult, frozen
from core.attacks.arguments import with_check
from core.attacks.forward import classify, fools, is_answered, loss_and_gradient, loss_of, predict
from core.attacks.losses import Loss, cross_entropy
from core.attacks.threat import UnionThreat
from core.data.points import check_points
from core.geometry import ascend, per_image, project
from core.schema.catalog import Norm

# Length of all steps together, in radii, whatever their number, after Madry et al. (2018): the steps of the MSD paper,
# about a tenth of the radius, are meant for 50 of them.
_REACH = 2.5


@dataclass(frozen=True, kw_only=True)
class MsdResult(AttackResult):
    """What the attack found, per point; `adversarial` lies in one of the balls."""

    robust_under: dict[Norm, Tensor]
    """(batch,) bool per norm: whether the model stayed right at the start and at every candidate of this norm."""


def msd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: UnionThreat,
    options: AttackOptions = DEFAULTS,
    *,
    steps: Mapping[Norm, int],
    start: Tensor | None = None,
    targets: Tensor | None = None,
    loss: Loss = cross_entropy,
    topk_fraction: float = 0.01,
) -> MsdResult:
    """Search the union of the balls for points of high loss, from `start` (default: the images), without randomness.

    steps: per norm; a norm gives a candidate in each of its first `steps[norm]` rounds, with steps of 2.5 eps / steps.
    topk_fraction: share of pixels, in [0, 1], that an l1 step changes, at least one pixel; the paper changes 5 to 20 of
    the 3,072 of CIFAR-10. `adversarial` is the iterate of highest loss, the start included. A round costs a forward and
    a backward pass for the gradient, and a forward pass for each candidate.
    """
    if not options.checked:
        check_points(images, labels)
        threat.check(images.shape[1:])
    targets = labels if targets is None else targets
    chunk_size = options.chunk_size
    each = torch.ones(len(images), dtype=images.dtype, device=images.device)
    current = images if start is None else start
    with frozen(model):
        logits, best_loss, gradient, nan_gradients = loss_and_gradient(
            model, current, loss if options.checked else with_check(loss), labels, targets, chunk_size=chunk_size
        )
        best = current.clone()
        right = (classify(logits) == labels) if start is None else ~fools(logits, labels)
        not_finite = ~is_answered(logits)
        robust_under = dict.fromkeys(steps, right)
        for done in range(max(steps.values())):
            if done:
                _, _, gradient, without = loss_and_gradient(
                    model, current, loss, labels, targets, chunk_size=chunk_size
                )
                nan_gradients = nan_gradients | without
            # A pixel at the edge of the box cannot move further: an l1 step on it would be lost.
            blocked = ((gradient > 0) & (current >= 1)) | ((gradient < 0) & (current <= 0))
            gradient = gradient.masked_fill(blocked, 0)
            highest, origin = torch.full_like(best_loss, -torch.inf), current
            for ball in (ball for ball in threat if done < steps[ball.norm]):
                norm, eps = ball.norm, ball.eps
                size = _REACH * eps / steps[norm]
                step = ascend(gradient, norm, size * each, topk_fraction=topk_fraction * each)
                candidate = project(images, origin + step, norm, eps)
                logits = predict(model, candidate, chunk_size=chunk_size)
                values = loss_of(loss, logits, labels, targets)
                robust_under[norm] = robust_under[norm] & ~fools(logits, labels)
                not_finite = not_finite | ~is_answered(logits)
                higher = values > highest
                highest = torch.where(higher, values, highest)
                current = torch.where(per_image(higher, images), candidate, current)
            better = highest > best_loss
            best_loss = torch.where(better, highest, best_loss)
            best = torch.where(per_image(better, images), current, best)
    robust = torch.stack(list(robust_under.values())).all(0)
    return MsdResult(best, robust, best_loss, not_finite, nan_gradients, robust_under=robust_under)
