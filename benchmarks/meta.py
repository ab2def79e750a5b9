"""Build networks on the meta device without the drawing of random weights, which takes most of the time there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_DRAWING = ("normal_", "uniform_", "erfinv_", "zero_", "fill_", "clamp_", "mul_", "add_", "copy_")


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Skip what initialisation does with tensors of the meta device inside the block."""
    with ExitStack() as patches:
        for name in _DRAWING:
            method = getattr(torch.Tensor, name)

            def skip(tensor: Tensor, *arguments: Any, _method: Any = method, **options: Any) -> Tensor:
                return tensor if tensor.is_meta else _method(tensor, *arguments, **options)

            patches.enter_context(patch.object(torch.Tensor, name, skip))
        yield
