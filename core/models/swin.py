"""Swin transformers (Liu et al. 2021, arXiv 2103.14030) under the names of their authors, and those of MIMIR.

timm has the networks, and names a few layers differently today.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

_WIDTHS_HEADS_WINDOWS = {"b": (128, (4, 8, 16, 32), 7), "l": (192, (6, 12, 24, 48), 14)}


def mimir_swin(size: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a Swin transformer as Xu et al. 2024 (MIMIR, arXiv 2312.04960) train it: its layer norms add 1e-6.

    size: b, with windows of 7 patches, or l, with windows of 14. It maps images (batch, *shape), whose sides are
    multiples of 32, to logits (batch, classes).
    """
    # Imported here, since timm takes seconds to load.
    from timm.models.swin_transformer import SwinTransformer

    width, heads, window = _WIDTHS_HEADS_WINDOWS[size]
    channels, height, _ = shape
    layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)
    network: nn.Module = SwinTransformer(
        img_size=height,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depths=(2, 2, 18, 2),
        num_heads=heads,
        window_size=window,
        drop_path_rate=0.0,
        norm_layer=layer_norm,
    )
    know_names_of_authors(network)
    return network


def know_names_of_authors(network: nn.Module) -> None:
    """Add to a Swin transformer of timm's how its authors' checkpoints name its parameters.

    There a stage ends with the layer that halves the image, with which timm starts the next stage, and the checkpoint
    has tensors that timm computes.
    """
    downsample = {f"layers.{stage}.downsample.": f"layers.{stage + 1}.downsample." for stage in range(3)}
    network.renamed = ({**downsample, "head.": "head.fc."},)  # type: ignore[assignment]  # no tensor
    network.unused = tuple(_computed(network))  # type: ignore[assignment]  # no tensor


def _computed(network: nn.Module) -> Iterator[str]:
    for name, _ in network.named_modules():
        if name.endswith(".attn"):
            yield f"{name}.relative_position_index"
            yield f"{name.removesuffix('attn')}attn_mask"
