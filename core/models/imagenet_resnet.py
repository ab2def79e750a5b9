"""ResNet-50 for ImageNet with torchvision's layers and names, with ReLU or with GELU (Bai et al. 2021, 2111.05464)."""

from torch import nn


def imagenet_resnet_50(channels: int, classes: int, activation: type[nn.Module]) -> nn.Module:
    """Build a ResNet-50: images (batch, channels, height, width) of at least 32 x 32 pixels to logits (batch, classes).

    `activation` replaces every ReLU; it has no parameters, so the names of the parameters stay those of torchvision.
    """
    # Imported here, since torchvision takes a second to load.
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None, num_classes=classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    for module in list(network.modules()):
        if hasattr(module, "relu"):
            module.relu = activation()
    return network
