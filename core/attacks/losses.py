"""Losses that attacks maximise, one value per point.

Every loss takes (logits, labels, targets) with logits (batch, classes), labels (batch,) and targets (batch,), the class
to move towards, and returns (batch,). The untargeted ones ignore the targets; for the divergence they are the logits
(batch, classes) to move away from.

The difference of logits ratio (DLR) is from Croce & Hein 2020 (arXiv 2003.01690, sections 4 and 4.2). It is defined for
3 classes or more, its targeted form for 4 or more. With fewer classes the scale is taken from the logits there are;
with 2 it is one, since any ratio of differences would then be constant and have no gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the true class."""
    del targets
    return F.cross_entropy(logits, labels, reduction="none")


def kl_divergence(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """KL(softmax targets || softmax logits), the divergence from the logits `targets` (batch, classes)."""
    del labels
    return F.kl_div(logits.log_softmax(1), targets.log_softmax(1), reduction="none", log_target=True).sum(1)


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Best wrong logit minus the true one (Carlini & Wagner 2017); positive where the model is wrong."""
    del targets
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.amax(1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Best wrong logit minus the true one, over the gap between the first and the third logit."""
    del targets
    ordered = logits.sort(1).values
    best_is_right = logits.argmax(1) == labels
    best_wrong = ordered[:, -2].where(best_is_right, ordered[:, -1])
    scale = ordered[:, -1] - ordered[:, -3] + _TINY if logits.shape[1] > 2 else 1.0
    return (best_wrong - _pick(logits, labels)) / scale


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Target logit minus the true one, over the gap between the first and the mean of the third and fourth logit."""
    ordered = logits.sort(1).values
    match logits.shape[1]:
        case 1 | 2:
            scale: Tensor | float = 1.0
        case 3:
            scale = ordered[:, -1] - ordered[:, -3] + _TINY
        case _:
            scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + _TINY
    return (_pick(logits, targets) - _pick(logits, labels)) / scale


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)
