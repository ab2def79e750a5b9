"""What holds for all common corruptions."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data import Dataset
from core.schema.errors import BadInput
from core.schema.threats import SEVERITIES
from core.threats import corruptions
from core.threats.corruptions import NAMES, STANDARD, check_corruption, corrupt, severities, table_of, weather
from core.threats.corruptions.grey import grey_of
from core.threats.corruptions.severities import arguments_of
from core.threats.random_numbers import PointNumbers
from tests.support.other_device import DEVICE, elsewhere

_SHAPES = [(1, 8, 8), (3, 32, 32), (3, 64, 48), (2, 9, 13)]
_UNEVEN = {
    "glass_blur",  # smooths the same displaced pixels more
    "frost",  # darkens the image more than it adds
    "elastic_transform",  # moves the image less, and its pixels more
    "spatter",  # water up to 3, then mud
    "saturate",  # less saturation at 1 and 2, then more
}
"""Corruptions whose severities, as defined, do not move images farther and farther away."""


def _scenes(images: int, shape: Sequence[int]) -> Tensor:
    """Make smooth images of bytes, which blurs and transforms change as they change photographs."""
    channels, height, width = shape
    coarse = torch.rand(images, channels, 6, 6, generator=torch.Generator().manual_seed(3))
    return (F.interpolate(coarse, (height, width), mode="bilinear") * 255).round() / 255


def _distance(name: str, severity: int, images: Tensor) -> float:
    return float((corrupt(images, name, severity, seed=0) - images).flatten(1).norm(dim=1).mean())


def test_there_are_15_standard_and_4_extra_corruptions() -> None:
    assert (len(STANDARD), len(NAMES), len(set(NAMES)), list(SEVERITIES)) == (15, 19, 19, [1, 2, 3, 4, 5])


def test_every_corruption_has_a_function_and_severities_in_both_tables() -> None:
    tables = severities._TABLES
    assert tables.keys() == {"cifar", "imagenet"}
    functions = corruptions._RANDOM | corruptions._FIXED
    assert functions.keys() == tables["cifar"].keys() == tables["imagenet"].keys() == set(NAMES)
    assert corruptions._RANDOM.keys().isdisjoint(corruptions._FIXED)


@pytest.mark.parametrize("name", NAMES)
def test_corrupted_images_keep_shape_range_dtype_and_the_images(name: str) -> None:
    for shape in _SHAPES:
        images = _scenes(3, shape)
        before = images.clone()
        for severity in SEVERITIES:
            corrupted = corrupt(images, name, severity, seed=0)
            assert corrupted.shape == images.shape
            assert corrupted.dtype == images.dtype
            assert 0 <= corrupted.min() <= corrupted.max() <= 1
        assert torch.equal(images, before)
    in_double = corrupt(images.double(), name, 3, seed=0)
    assert in_double.dtype == torch.float64
    # Between pixels that are rounded to bytes, the last bit can make a grey level of difference.
    assert torch.allclose(in_double.float(), corrupt(images, name, 3, seed=0), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_imagenets_size_are_corrupted(name: str) -> None:
    images = _scenes(1, (3, 224, 224))
    corrupted = corrupt(images, name, 5, seed=0)
    assert 0 <= corrupted.min() <= corrupted.max() <= 1
    assert (corrupted - images).abs().mean() > 0.002


@pytest.mark.parametrize("extreme", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_black_and_white_images_have_no_nan(name: str, extreme: float) -> None:
    for shape in ((1, 8, 8), (3, 32, 32)):
        images = torch.full((2, *shape), extreme)
        corrupted = corrupt(images, name, 5, seed=0)
        assert 0 <= corrupted.min() <= corrupted.max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 70)])
@pytest.mark.parametrize("name", NAMES)
def test_a_corrupted_image_does_not_depend_on_the_other_images(
    name: str, shape: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _scenes(5, shape)
    whole = corrupt(images, name, 4, seed=1)
    for order in ([2], [4, 0], [3, 3, 1]):
        assert torch.equal(corrupt(images[order], name, 4, seed=1), whole[order])
    monkeypatch.setattr(corruptions, "_AT_ONCE", 2 * images[0].numel())
    assert torch.equal(corrupt(images, name, 4, seed=1), whole)


@pytest.mark.parametrize("name", NAMES)
def test_images_on_another_device_are_corrupted_there(name: str) -> None:
    images = _scenes(2, (3, 24, 25))
    expected = corrupt(images, name, 4, seed=1)
    with elsewhere():
        corrupted = corrupt(images.to(DEVICE), name, 4, seed=1)
        assert corrupted.device == DEVICE
        assert torch.equal(corrupted.cpu(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_images_and_another_seed_others(name: str) -> None:
    images = _scenes(4, (3, 32, 32))
    state = torch.get_rng_state()
    first = corrupt(images, name, 5, seed=7)
    assert torch.equal(corrupt(images, name, 5, seed=7), first)
    assert torch.equal(corrupt(images, name, 5, seed=8), first) is (name in corruptions._FIXED)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_moves_images_farther(name: str, size: int) -> None:
    images = _scenes(12, (3, size, size))
    distances = [_distance(name, severity, images) for severity in SEVERITIES]
    if name not in _UNEVEN:
        assert all(later > 0.999 * earlier for earlier, later in pairwise(distances))
    elif name not in {"elastic_transform", "frost"}:
        assert distances[0] < distances[-1]
    assert min(distances) > 0


def test_a_higher_severity_costs_the_digits_model_accuracy(digits: Dataset, base: nn.Module) -> None:
    part = digits.test.first(100)
    images, labels = part.images(), part.labels
    base.eval()

    @torch.no_grad()
    def accuracy(name: str, severity: int) -> float:
        return float((base(corrupt(images, name, severity, seed=0)).argmax(1) == labels).float().mean())

    means = [sum(accuracy(name, severity) for name in STANDARD) / len(STANDARD) for severity in SEVERITIES]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.95
    assert means[4] < 0.9


def test_the_shorter_side_chooses_the_severities() -> None:
    assert table_of((3, 63, 224)) == "cifar"
    assert table_of((1, 64, 64)) == "imagenet"
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.5
    assert (corrupt(grey, "gaussian_noise", 1, seed=0) - grey).std() == pytest.approx(0.08, rel=0.05)
    assert (corrupt(grey[..., :63], "gaussian_noise", 1, seed=0) - grey[..., :63]).std() == pytest.approx(
        0.04, rel=0.05
    )


def test_saturate_leaves_grey_images_and_other_corruptions_change_them() -> None:
    images = _scenes(2, (1, 32, 32))
    unchanged = {name for name in NAMES if torch.equal(corrupt(images, name, 5, seed=0), images)}
    assert unchanged == {"saturate"}


@pytest.mark.parametrize("name", ["snow", "frost", "fog", "brightness", "spatter"])
@pytest.mark.parametrize("severity", [3, 5])
def test_weather_on_a_grey_image_is_the_grey_of_weather_on_colours(name: str, severity: int) -> None:
    grey = _scenes(2, (1, 32, 32)) / 2
    arguments = arguments_of(name, severity, (3, 32, 32))
    if name == "brightness":
        function = partial(weather.brightness, **arguments)
    else:
        function = partial(corruptions._RANDOM[name], numbers=PointNumbers(0, grey), **arguments)
    of_grey, of_colours = function(grey), function(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(grey_of(of_colours), of_grey, atol=0.02)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3"])
def test_a_severity_other_than_1_to_5_is_refused(severity: int) -> None:
    with pytest.raises(BadInput, match=r"the severity of fog is .*, not 1, 2, 3, 4 or 5") as caught:
        corrupt(_scenes(1, (3, 32, 32)), "fog", severity, seed=0)
    assert caught.value.field == "evaluation.unseen"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gaussian-noise", "'gaussian_noise'"), ("Elastic Transform", "'elastic_transform'"), ("rain", "known: ")],
)
def test_an_unknown_corruption_is_refused_with_the_one_that_is_meant(name: str, hint: str) -> None:
    with pytest.raises(BadInput, match=f"there is no corruption '{name}'") as caught:
        check_corruption(name, 1, (3, 32, 32))
    assert hint in caught.value.hint
    assert caught.value.field == "evaluation.unseen"


@pytest.mark.parametrize(
    ("name", "least"),
    [("defocus_blur", 3), ("glass_blur", 3), ("elastic_transform", 3), ("pixelate", 2), ("spatter", 2)],
)
def test_images_too_small_for_a_corruption_are_refused(name: str, least: int) -> None:
    with pytest.raises(BadInput, match=rf"are too small for {name}, which takes {least} x {least} or more") as caught:
        check_corruption(name, 1, (3, least - 1, 40))
    assert caught.value.field == "evaluation.unseen"


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_images_that_are_taken_can_be_corrupted(name: str) -> None:
    for side in (1, 2, 3):
        images = _scenes(2, (1, side, side))
        try:
            check_corruption(name, 5, images.shape[1:])
        except BadInput:
            assert side < 3
            continue
        for severity in SEVERITIES:
            assert not corrupt(images, name, severity, seed=0).isnan().any()
