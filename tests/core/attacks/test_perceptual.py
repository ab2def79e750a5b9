"""The perceptual distance by hand, and the attack that is bounded by it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from core.attacks.perceptual import logits_and_features, perceptual
from core.attacks.threat import PerceptualThreat
from core.models.preact_resnet import PreActResNet8
from core.schema.errors import BadInput


def _noise(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def _distances(model: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    return (logits_and_features(model, images)[1] - logits_and_features(model, others)[1]).norm(dim=1)


class _TwoMaps(nn.Module):
    """The image as a map of features, and its mean over pairs of columns as a second one of another resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.pairs, self.point = nn.Identity(), nn.AvgPool2d((1, 2)), nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.point(self.pairs(self.own(images))).flatten(1)


def test_the_distance_compares_directions_over_channels_and_weighs_resolutions_alike() -> None:
    image = torch.tensor([0.6, 0.8]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    other = image.clone()
    other[0, :, 0, 0] = torch.tensor([0.8, 0.6])
    # Of the four positions of the first map one differs, by |(0.6, 0.8) - (0.8, 0.6)|: squared 0.08, over 4.
    # Of the two of the second one differs, by |(0.6, 0.8) - (0.7, 0.7) / |(0.7, 0.7)||, squared, over 2.
    halfway = torch.tensor([0.6, 0.8]) - torch.tensor([0.5, 0.5]).sqrt()
    squared = 0.08 / 4 + float(halfway.square().sum()) / 2
    assert float(_distances(_TwoMaps(), image, other)) == pytest.approx(squared**0.5, rel=1e-5)
    assert float(_distances(_TwoMaps(), image, 0.5 * image)) == pytest.approx(0, abs=1e-6), "brightness is no direction"


def test_the_last_map_of_each_resolution_counts() -> None:
    model = PreActResNet8(3, 10).eval()
    _, features = logits_and_features(model, torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8 + 128 * 4 * 4)


class _Tokens(nn.Module):
    """Four tokens of two channels, as a transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images.flatten(2).transpose(1, 2)).mean(1)


def test_tokens_are_positions() -> None:
    image = torch.tensor([0.6, 0.8]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    other = image.clone()
    other[0, :, 0, 0] = torch.tensor([0.8, 0.6])
    assert float(_distances(_Tokens(), image, other)) == pytest.approx((0.08 / 4) ** 0.5, rel=1e-5)


def test_a_model_without_feature_maps_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(BadInput, match="no feature maps") as caught:
        perceptual(
            model,
            torch.rand(2, 1, 4, 4),
            torch.zeros(2, dtype=torch.long),
            PerceptualThreat(0.5),
            noise=torch.zeros(2, 1, 4, 4),
        )
    assert caught.value.field == "method"


def test_points_fall_and_stay_near_the_bound(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:64] for part in test_digits)
    with torch.no_grad():
        right = base(images).argmax(1) == labels
    fallen, reached = [], []
    for bound in (0.1, 0.5):
        result = perceptual(base, images, labels, PerceptualThreat(bound), noise=_noise(images))
        with torch.no_grad():
            answers = base(result.adversarial).argmax(1)
            reached.append(float(_distances(base, images, result.adversarial)[right].mean()))
        assert result.adversarial.min() >= 0
        assert result.adversarial.max() <= 1
        assert not (result.robust & (answers != labels)).any()
        fallen.append(int((answers != labels).sum()))
    assert fallen[0] < 32 < fallen[1]
    assert reached[0] < reached[1]
    assert 0.5 < reached[1] < 0.65, "the fine holds the points near the bound"


def test_images_that_the_model_has_wrong_are_left_alone(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images = test_digits[0][:8]
    with torch.no_grad():
        labels = base(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % 10
    result = perceptual(base, images, labels, PerceptualThreat(0.5), noise=_noise(images), steps=2)
    assert torch.equal(result.adversarial[:4], images[:4])
    assert not result.robust[:4].any()
    assert (result.adversarial[4:] != images[4:]).flatten(1).any(1).all()


def test_model_and_random_state_are_left_as_they_were(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    base.train()
    weights, state = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    images, labels = (part[:8] for part in test_digits)
    first, again = (
        perceptual(base, images, labels, PerceptualThreat(0.5), noise=_noise(images), steps=2) for _ in range(2)
    )
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(torch.get_rng_state(), state)
    assert base.training
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.parameters())
    assert not any(module._forward_hooks for module in base.modules())
