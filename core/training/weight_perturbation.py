"""Adversarial weight perturbation (AWP, Wu, Xia & Wang 2020, arXiv 2004.05884).

The gradient of an update is taken at weights at which the loss of the same adversarial batch is higher, so that
training prefers weights whose neighbours are robust, too. The perturbation is one step of ascent per layer, of a length
relative to that of the layer's weights: v = strength * |w| * g / |g|. The images are attacked at the weights w.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed(model: nn.Module, strength: float) -> Iterator[None]:
    """Move each layer's weights along their gradients inside the block, and restore them to the bit afterwards.

    The gradients are read at the beginning of the block, and may then be replaced. Kernels and matrices move; biases
    and the weights of norm layers do not. strength: the length of the step relative to that of the weights.
    """
    layers = [parameter for parameter in model.parameters() if parameter.dim() > 1 and parameter.grad is not None]
    before = [layer.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                assert layer.grad is not None
                # A gradient of zero moves nothing.
                direction = layer.grad / layer.grad.norm().clamp(min=torch.finfo(layer.dtype).tiny)
                layer.add_(direction * (strength * layer.norm()))
        yield
    finally:
        with torch.no_grad():
            for layer, weights in zip(layers, before, strict=True):
                layer.copy_(weights)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restore all buffers after the block, such as the running statistics that a pass in train mode updates."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in zip(model.buffers(), before, strict=True):
                buffer.copy_(values)
