"""Monitor a run: after each epoch, attack held-out training images in every norm of the spec.

The training attack runs on the same images. While it fools nearly as many images as a stronger attack, the robustness
is real; a growing gap means that training has overfitted to its own attack (catastrophic overfitting, Wong et al. 2020,
arXiv 2001.03994).
"""

import time
from functools import partial
from typing import Any

import torch
from torch import nn

from core.attacks import AttackOptions, AttackResult
from core.attacks.apgd import apgd, apgd_ce
from core.attacks.threat import LpThreat
from core.data.split import Split
from core.evaluation.rates import rate
from core.models.memory import ChunkSizer
from core.schema.catalog import Norm
from core.schema.events import Monitored, MonitoredAverage, Warned
from core.schema.progress import Rate
from core.schema.protocols import FAST_STEPS
from core.schema.spec import TrainingSpec
from core.training.methods.adversarial import TOPK_FRACTION

# Share of the held-out images that only the stronger attack fools, from which on a run warns. It is about 0.02 for the
# 10 steps of the paper, up to 0.1 for a few steps that work, and nearly the robust accuracy after catastrophic
# overfitting.
_DRIFT = 0.2


def monitor(
    model: nn.Module,
    held_out: Split,
    spec: TrainingSpec,
    *,
    step: int,
    epoch: float,
    chunk_size: int,
    averaged: nn.Module | None = None,
) -> Monitored:
    """Measure per-norm and union accuracy on the held-out images by APGD on the cross-entropy, 20 steps.

    The model is attacked in eval mode and returned in the mode it was in. step, epoch: training done so far.
    chunk_size: images that go through the model together, halved while they do not fit the memory. averaged: the model
    with the averaged weights of the run, which is measured, too; None for none.
    """
    begun = time.monotonic()
    images, labels = held_out.images(), held_out.labels
    training: dict[Norm, float] = {}
    chunks = ChunkSizer(chunk_size, images.device)

    def attack(model: nn.Module, norm: Norm, eps: float, chunk_size: int) -> AttackResult:
        # The same noise after every epoch, so that epochs differ only by the weights.
        options = AttackOptions(seed=spec.seed, chunk_size=chunk_size)
        return apgd_ce(model, images, labels, LpThreat(norm, eps), options, steps=FAST_STEPS)

    def measure(model: nn.Module) -> tuple[dict[Norm, float], Rate]:
        found = {norm: chunks.fit(partial(attack, model, norm, eps)).robust for norm, eps in spec.eps.items()}
        union = torch.stack(list(found.values())).all(0)
        return {norm: _share(robust) for norm, robust in found.items()}, rate(int(union.sum()), len(labels))

    def attack_as_training(norm: Norm, eps: float, chunk_size: int) -> AttackResult:
        settings: dict[str, Any] = {"topk_fraction": TOPK_FRACTION, "goal": "error"}
        options = AttackOptions(chunk_size=chunk_size)
        return apgd(model, images, labels, LpThreat(norm, eps), options, steps=spec.method.steps[norm], **settings)

    strong, union = measure(model)
    for norm, eps in spec.eps.items():
        if norm in spec.method.norms:
            training[norm] = _share(chunks.fit(partial(attack_as_training, norm, eps)).robust)
    of_average = None
    if averaged is not None:
        robust, union_of_average = measure(averaged)
        of_average = MonitoredAverage(robust=robust, union=union_of_average)
    return Monitored(
        step=step,
        epoch=epoch,
        examples=len(labels),
        robust=strong,
        training_attack=training,
        union=union,
        averaged=of_average,
        seconds=time.monotonic() - begun,
    )


def _share(right: torch.Tensor) -> float:
    return right.double().mean().item()


def alarm(monitored: Monitored) -> Warned | None:
    """Return a warning when the training attack fools far fewer images than the stronger attack; else None."""
    gaps: dict[Norm, float] = {norm: weak - monitored.robust[norm] for norm, weak in monitored.training_attack.items()}
    norm = max(gaps, key=lambda norm: gaps[norm], default=None)
    if norm is None or gaps[norm] < _DRIFT:
        return None
    return Warned(
        code="catastrophic_overfitting",
        message=f"on {monitored.examples} held-out images {100 * monitored.training_attack[norm]:.0f} % withstand the "
        f"training attack in {norm}, but only {100 * monitored.robust[norm]:.0f} % a stronger one: training has "
        "overfitted to its attack",
        remedy=f"raise method.steps.{norm} or lower learning_rate",
        threat=norm,
    )
