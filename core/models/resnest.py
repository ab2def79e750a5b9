"""ResNeSt-152 for small images (Zhang et al. 2020, arXiv 2004.08955), as Sehwag et al. 2021 train it.

timm's layers with four splits and SiLU; the stem keeps the size of the image (arXiv 2104.09425).
"""

from typing import Any

from torch import nn


def resnest_152(channels: int, classes: int) -> nn.Module:
    """Build the network: images (batch, channels, height, width), at least 8 pixels a side, to logits."""
    # Imported here, since timm takes seconds to load.
    from timm.layers.split_attn import SplitAttn
    from timm.models.resnest import ResNestBottleneck
    from timm.models.resnet import ResNet

    # timm's ResNet takes any block; its annotation names two.
    block: Any = ResNestBottleneck
    network: Any = ResNet(
        block,
        (3, 8, 36, 3),
        num_classes=classes,
        in_chans=channels,
        stem_type="deep",
        stem_width=64,
        avg_down=True,
        act_layer=nn.SiLU,
        block_args={"radix": 4, "avd": True, "avd_first": False},
    )
    network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
    for module in network.modules():
        # timm passes the activation on to all layers but this one.
        if isinstance(module, SplitAttn):
            module.act0, module.act1 = nn.SiLU(), nn.SiLU()
    built: nn.Module = network
    return built
