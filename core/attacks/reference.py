"""AutoAttack as pyautoattack computes it (Croce & Hein 2020; MIT licence): the `reference` engine of an evaluation.

Each logical batch is a call of its `run_standard_evaluation` with one attack. The library uses torch's global generator
and writes parameter gradients; here it runs on a copy of the generator and without parameter gradients, so that it
keeps the contract of `core.attacks`.
"""

from typing import Literal

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

from core.attacks import DEFAULTS, Attack, AttackOptions, AttackResult, Steps, frozen
from core.attacks.arguments import check_labels
from core.attacks.forward import fools, is_answered, loss_of
from core.attacks.losses import cross_entropy
from core.attacks.threat import LpThreat
from core.models.outputs import logits_of
from core.schema.catalog import Norm
from core.schema.errors import BadInput
from core.schema.protocols import AttackName

NAMES: dict[Norm, Literal["Linf", "L2", "L1"]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@Attack
def reference(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: LpThreat,
    options: AttackOptions = DEFAULTS,
    *,
    name: AttackName,
    steps: int | None = None,
) -> Steps:
    """Run one attack of AutoAttack's standard version. `loss` is the cross-entropy.

    name: the attack. steps: run APGD-CE once with this number of iterations, in place of AutoAttack's restarts and
    iterations.
    `check_classes` tells beforehand whether the library can attack a model.
    `options.chunk_size` and `options.state` are ignored: the library computes a whole logical batch in one pass.
    """
    yield from ()
    norm, eps, sizes = NAMES[threat.norm], threat.eps, options.batch_sizes or (len(images),)
    devices = [images.device] if images.device.type == "cuda" else []
    with frozen(model), torch.no_grad():
        model = _Logits(model).eval()
        logits = model(images[:1])
        if not options.checked:
            check_labels(labels, logits.shape[1])
        attack = AutoAttack(model, norm=norm, eps=eps, seed=options.seed, version="standard", device=images.device)
        attack.attacks_to_run = [name]
        if steps is not None:
            attack.apgd = APGDAttack(
                model,
                n_iter=steps,
                norm=norm,
                eps=eps,
                seed=options.seed,
                device=images.device,
                use_largereps=attack.apgd.use_largereps,
                logger=attack.logger,
            )
        # The library assumes nine wrong classes, and fails where there are fewer.
        for targeted in (attack.apgd_targeted, attack.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, logits.shape[1] - 1)
        found = []
        for points, answers in zip(images.split(sizes), labels.split(sizes), strict=True):
            with torch.random.fork_rng(devices=devices):
                # The library flattens tensors by `view`, which needs contiguous ones.
                adversarial, _ = attack.run_standard_evaluation(points.contiguous(), answers, batch_size=len(points))
            found.append(adversarial.detach())
        adversarial = torch.cat(found)
        logits = model(adversarial)
    return AttackResult(
        adversarial,
        robust=~fools(logits, labels),
        loss=loss_of(cross_entropy, logits, labels, labels),
        not_finite=~is_answered(logits),
    )


class _Logits(nn.Module):
    """A model whose logits the library can take as they come."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        return logits_of(self.model(images), len(images))


def check_classes(classes: int, *, targeted: bool) -> None:
    """Raise BadInput where the library cannot attack a model with this number of classes."""
    if targeted and classes < 4:
        raise BadInput(
            f"pyautoattack's targeted attack takes four classes or more, the model has {classes}",
            hint="leave evaluation.engine at temper, or use evaluation.protocol fast",
            field="evaluation.engine",
        )
