"""XCiTs of 12 layers (El-Nouby et al. 2021, arXiv 2106.09681), as Debenedetti et al. 2022 (arXiv 2209.07399) make them
robust: patches of 16 pixels for ImageNet, and of 4 for images of 32 x 32.

timm has the layers, but neither the two larger networks nor the small patches.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

_WIDTHS_AND_HEADS = {"s12": (384, 8), "m12": (512, 8), "l12": (768, 16)}

OLD_NAMES: Mapping[str, str] = {"pos_embeder.": "pos_embed."}
"""timm's name for a layer when robust XCiTs were published, and its name today."""


def xcit(size: str, shape: tuple[int, int, int], classes: int, *, patch: int) -> nn.Module:
    """Build an XCiT: images (batch, *shape), whose sides are multiples of 16, to logits (batch, classes).

    size: s12, m12 or l12. patch: 16, or 4 for a network whose first two convolutions keep the size of the image.
    """
    # Imported here, since timm takes seconds to load.
    from timm.models.xcit import Xcit

    width, heads = _WIDTHS_AND_HEADS[size]
    channels, height, _ = shape
    network: Any = Xcit(
        img_size=height,
        patch_size=16,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=12,
        num_heads=heads,
        tokens_norm=True,
    )
    if patch == 4:
        embedding = network.patch_embed
        for convolution in (embedding.proj[0], embedding.proj[2]):
            convolution[0].stride = (1, 1)
        embedding.patch_size = 4
    network.renamed = (OLD_NAMES,)
    built: nn.Module = network
    return built
