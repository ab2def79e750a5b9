"""Wide ResNets of single papers: another last layer, another input, or an activation that is trained, too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.wide_resnet import WideResNet


class HypersphereWideResNet(WideResNet):
    """Logits are the cosines between features and the weights of the classes (Pang et al. 2020, arXiv 2002.08619)."""

    def __init__(self, depth: int, width: int, *, channels: int, classes: int) -> None:
        super().__init__(depth, width, channels=channels, classes=classes)
        self.fc = nn.Linear(64 * width, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) in [-1, 1] for images."""
        return F.linear(F.normalize(self.features(images)), F.normalize(self.fc.weight))


class StandardisedWideResNet(WideResNet):
    """Each image is standardised by its own mean and standard deviation (Ding et al. 2020, arXiv 1812.02637)."""

    def features(self, images: Tensor) -> Tensor:
        """Return the inputs of the last layer, (batch, 64 * width)."""
        mean = images.mean((1, 2, 3), keepdim=True)
        # The smallest divisor is that of TensorFlow's per_image_standardization. The clamp comes before the root, whose
        # gradient is infinite at the variance 0 of an image of one colour.
        variance = images.var((1, 2, 3), keepdim=True).clamp(min=1 / images[0].numel())
        return super().features((images - mean) / variance.sqrt())


class PSSiLU(nn.Module):
    """Parametric shifted SiLU (Dai et al. 2022, arXiv 2110.05626): x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.full((1,), 1e-8))

    def forward(self, values: Tensor) -> Tensor:
        """Apply the function to each value."""
        alpha, beta = self.alpha.abs(), self.beta.abs()
        return values * (torch.sigmoid(alpha * values) - beta) / (1 - beta)


class PSSiLUWideResNet(WideResNet):
    """One PSSiLU, whose two parameters are trained, takes the place of every ReLU."""

    def __init__(self, depth: int, width: int, *, channels: int, classes: int) -> None:
        activation = PSSiLU()
        # The method is no module, so the blocks do not repeat the two parameters under names of their own.
        super().__init__(depth, width, channels=channels, classes=classes, activation=activation.forward)
        self.activation = activation
        blocks = (depth - 4) // 6
        # In published checkpoints each block has the two parameters again.
        copies = (f"block{group}.layer.{block}.activation." for group in (1, 2, 3) for block in range(blocks))
        self.unused = (*WideResNet.unused, *copies)
