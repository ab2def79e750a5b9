"""Training methods: a batch of images becomes a loss to minimise.

Each method is a file here with a class, an entry in `_METHODS` below, and an entry of the same name in
`core.schema.catalog.METHODS`. `core.training.methods.contract` says what it is called with and what it returns.
"""

from collections.abc import Mapping
from typing import Protocol

import torch

from core.schema.catalog import Norm
from core.schema.method import Method
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.avg import AVG
from core.training.methods.contract import TrainingMethod
from core.training.methods.e_at import EAT
from core.training.methods.max import MAX
from core.training.methods.msd import MSD
from core.training.methods.nat import Natural
from core.training.methods.pat import PAT
from core.training.methods.ramp import RAMP
from core.training.methods.sat import SAT
from core.training.methods.single import SingleNorm


class _Constructor(Protocol):
    def __call__(
        self,
        method: Method,
        eps: Mapping[Norm, float],
        generator: torch.Generator,
        attacked: AttackedModel,
        label_smoothing: float,
    ) -> TrainingMethod: ...


_METHODS: Mapping[str, _Constructor] = {
    "nat": Natural,
    "single": SingleNorm,
    "sat": SAT,
    "avg": AVG,
    "max": MAX,
    "msd": MSD,
    "e-at": EAT,
    "ramp": RAMP,
    "pat": PAT,
}


def build(
    method: Method,
    eps: Mapping[Norm, float],
    generator: torch.Generator,
    attacked: AttackedModel | None = None,
    *,
    label_smoothing: float = 0.0,
) -> TrainingMethod:
    """Build a method from its part of the spec.

    eps: the radius per norm, in pixel units of images in [0, 1]. generator: the source of the method's random numbers.
    attacked: the faster form of the model that its attacks use; by default one that is folded and not compiled.
    label_smoothing: in [0, 1), of the cross-entropy of its updates; its attacks know nothing of it.
    """
    return _METHODS[method.name](method, eps, generator, attacked or AttackedModel(), label_smoothing)
