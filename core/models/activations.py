"""Activation functions, by the names with which the name of a network may end."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: Mapping[str, Activation] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus}
"""None of them has parameters: the weights of a network do not show which one it was trained with."""
