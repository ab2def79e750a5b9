"""FAB-T and Square as pyautoattack computes them (Croce & Hein 2020, Andriushchenko et al. 2020; MIT licence).

The library seeds and uses torch's global generator and writes parameter gradients; here it runs on a copy of the one
and without the other, so that these attacks keep the contract of `core.attacks`.
"""

from collections.abc import Callable

import torch
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from core.attacks import AttackResult, frozen
from core.attacks.losses import cross_entropy
from core.catalog import Norm

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def fab_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
    eps: float,
    *,
    generator: torch.Generator,
    targets: int = 9,
) -> AttackResult:
    """Look for the closest boundary towards each of the likeliest wrong classes. `loss` is the cross-entropy."""
    with frozen(model), torch.no_grad():
        targets = min(targets, model(images[:1]).shape[1] - 1)
    attack = FABAttack_PT(
        model,
        norm=_NAMES[norm],
        eps=eps,
        n_restarts=1,
        n_iter=100,
        seed=generator.initial_seed(),
        verbose=False,
        device=images.device,
    )
    attack.targeted = True
    attack.n_target_classes = targets
    return _run(attack.perturb, model, images, labels)


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
    eps: float,
    *,
    generator: torch.Generator,
    queries: int = 5000,
) -> AttackResult:
    """Search at random with square-shaped changes, without gradients. `loss` is the cross-entropy."""
    attack = SquareAttack(
        model,
        p_init=0.8,
        n_queries=queries,
        eps=eps,
        norm=_NAMES[norm],
        n_restarts=1,
        seed=generator.initial_seed(),
        verbose=False,
        device=images.device,
        resc_schedule=False,
    )
    return _run(attack.perturb, model, images, labels)


def _run(perturb: Callable[[Tensor, Tensor], Tensor], model: nn.Module, images: Tensor, labels: Tensor) -> AttackResult:
    devices = [images.device] if images.device.type == "cuda" else []
    with frozen(model), torch.random.fork_rng(devices=devices):
        # The library views tensors flat, which only works on contiguous ones.
        adversarial = perturb(images.contiguous(), labels).detach()
        with torch.no_grad():
            logits = model(adversarial)
    return AttackResult(adversarial, logits.argmax(1) == labels, cross_entropy(logits, labels, labels))
