"""ConvNeXts and vision transformers whose patches come from a stem of convolutions (Singh et al. 2023).

The paper is arXiv 2303.01870. The networks are timm's; only what makes patches of the image is replaced.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.timm_classifier import timm_classifier

# The channels of each layer of the stem, and its strides.
_CONVNEXTS = {
    "t": ("convnext_tiny", (48, 96), (2, 2)),
    "s": ("convnext_small", (48, 96), (2, 2)),
    "b": ("convnext_base", (64, 96, 128), (2, 2, 1)),
    "l": ("convnext_large", (96, 144, 192), (2, 2, 1)),
}
_TRANSFORMERS = {"s": ("deit_small_patch16_224", 384), "b": ("vit_base_patch16_224", 768)}
_STEM_OF_TRANSFORMERS = (48, 96, 192, 384)


def convnext_with_conv_stem(size: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a ConvNeXt: images (batch, *shape), at least 32 pixels a side, to logits (batch, classes).

    size: t, s, b or l.
    """
    name, widths, strides = _CONVNEXTS[size]
    network = timm_classifier(name, shape, classes)
    network.stem = _Stem(_layers(shape[0], widths, strides))
    return network


def vit_with_conv_stem(size: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a vision transformer: images (batch, *shape), whose sides are multiples of 16, to logits (batch, classes).

    size: s or b.
    """
    name, width = _TRANSFORMERS[size]
    network = timm_classifier(name, shape, classes)
    layers = _layers(shape[0], _STEM_OF_TRANSFORMERS, (2, 2, 2, 2))
    network.patch_embed.proj = _Stem([*layers, nn.Conv2d(_STEM_OF_TRANSFORMERS[-1], width, 1)])  # type: ignore[union-attr]
    return network


class _Stem(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images)


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, height, width)."""

    def forward(self, features: Tensor) -> Tensor:
        channels_last = features.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _layers(channels: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise((channels, *widths)), strides, strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        layers += [convolution, _ChannelNorm(outputs, eps=1e-6), nn.GELU()]
    return layers
