"""ResNet-50 for ImageNet as torchvision builds and names it, with ReLU, or with GELU (Bai et al. 2021, 2111.05464)."""

from torch import nn


def imagenet_resnet_50(channels: int, classes: int, activation: type[nn.Module]) -> nn.Module:
    """Build it: images (batch, channels, height, width), at least 32 pixels a side, to logits (batch, classes).

    Every ReLU is replaced by `activation`, which has no parameters, so that the names stay torchvision's.
    """
    # torchvision takes a second to load, which only those pay who use it.
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None, num_classes=classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    for module in list(network.modules()):
        if hasattr(module, "relu"):
            module.relu = activation()
    return network
