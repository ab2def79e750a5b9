"""The perceptual distance by hand, and the attack that is bounded by it."""

import copy

import pytest
import timm
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


def test_with_a_margin_limit_points_fall_and_stay_near_the_bound(
    base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (part[:64] for part in test_digits)
    with torch.no_grad():
        right = base(images).argmax(1) == labels
    fallen, reached = [], []
    for bound in (0.1, 0.5):
        threat, noise = PerceptualThreat(bound), _noise(images)
        result = perceptual(base, images, labels, threat, noise=noise, margin_limit=1)
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


def test_without_a_margin_limit_the_loss_is_far_higher(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:32] for part in test_digits)
    losses = {}
    for limit in (1.0, None):
        found = perceptual(base, images, labels, PerceptualThreat(0.5), noise=_noise(images), margin_limit=limit)
        with torch.no_grad():
            losses[limit] = float(nn.functional.cross_entropy(base(found.adversarial), labels))
    assert losses[1.0] < 4
    assert losses[None] > 2 * losses[1.0]
    default = perceptual(base, images, labels, PerceptualThreat(0.5), noise=_noise(images))
    assert torch.equal(default.adversarial, found.adversarial)


class _Layer(nn.Module):
    """A block of a transformer, whose parts put out keys, attention weights and tokens of a wider layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.keys = nn.LayerNorm(width), nn.Linear(width, width)
        self.split, self.drop = nn.Identity(), nn.Identity()
        self.wide, self.back = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = self.split(self.keys(self.norm(tokens)).unflatten(-1, (2, -1)).transpose(1, 2))
        weights = self.drop((keys @ keys.transpose(-2, -1)).softmax(-1))
        tokens = tokens + (weights @ keys).transpose(1, 2).flatten(2)
        return tokens + self.back(self.wide(tokens).relu())


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.layers, self.head = nn.ModuleList(_Layer(8) for _ in range(3)), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.patches(images).flatten(2).mT], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens[:, 0])


def test_features_of_a_transformer_are_the_tokens_after_its_last_block() -> None:
    model = _Transformer()
    images = torch.rand(2, 3, 16, 16)
    seen: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    _, features = logits_and_features(model, images)
    (tokens,) = seen
    expected = (tokens / tokens.norm(dim=2, keepdim=True) / 17**0.5).transpose(1, 2).flatten(1)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("test_vit", 160, 101 * 64),
        ("test_convnext", 160, 24 * 40**2 + 32 * 20**2 + 48 * 10**2 + 64 * 5**2),
        ("xcit_nano_12_p16_224", 64, 128 * (16 + 17)),
    ],
)
def test_features_of_published_transformers_are_maps_of_their_blocks(name: str, side: int, count: int) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    with torch.no_grad():
        _, features = logits_and_features(model, torch.rand(1, 3, side, side))
    assert features.shape == (1, count)


def test_a_map_with_its_channels_last_is_compared_over_its_channels() -> None:
    small = {"img_size": 64, "window_size": 4, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **small).eval()
    seen: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        _, features = logits_and_features(model, torch.rand(1, 3, 64, 64))
    assert features.shape == (1, 8 * 16**2 + 16 * 8**2 + 32 * 4**2 + 64 * 2**2)
    last = features[:, -64 * 4 :].view(64, 4)
    torch.testing.assert_close(last, nn.functional.normalize(seen[0].flatten(0, 2), dim=1).mT / 2)


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
