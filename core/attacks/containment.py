"""Bring points that an attack found inside the threat, where they lie outside by rounding.

AutoAttack's projection in l1 adds up many rounded pixels, and its result may be longer than the radius, by up to 7.7e-3
at 3 x 224 x 224. AutoAttack counts such a point as fooled; what is handed out or kept as a proof should lie inside.
"""

import torch
from torch import Tensor, nn

from core.attacks.forward import fools, predict
from core.attacks.threat import LpThreat

# The projection works in float64, on this number of points at a time.
_AT_ONCE = 64


def bring_inside(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    fooled: Tensor,
    threat: LpThreat,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace the fooled points outside the threat by their exact projections, where these fool the model as well.

    adversarial (batch, channels, height, width): what an attack found; fooled (batch,) bool: where it fools the model,
    which is in eval mode. Returns the points, and (batch,) bool: the fooled ones whose projections do not fool the
    model; these stay as they are.
    """
    inside, outside = adversarial, torch.zeros_like(fooled)
    for part in fooled.nonzero().squeeze(1).split(_AT_ONCE):
        part = part[~threat.contains_exactly(images[part], adversarial[part])]
        if len(part) == 0:
            continue
        projected = threat.project(images[part], adversarial[part])
        still = fools(predict(model, projected, chunk_size=chunk_size), labels[part])
        if inside is adversarial:
            inside = adversarial.clone()
        inside[part[still]] = projected[still]
        outside[part[~still]] = True
    return inside, outside
