"""Wrong arguments are refused by name in every public function, before the model is asked anything but its classes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from core.attacks.apgd import apgd, apgd_ce, apgd_t
from core.attacks.fab import fab_t
from core.attacks.msd import msd
from core.attacks.perceptual import perceptual
from core.attacks.reference import reference
from core.attacks.square import square
from core.attacks.threat import LpThreat, PerceptualThreat, UnionThreat
from core.evaluation import evaluate
from core.schema.errors import BadInput
from core.schema.spec import parse
from core.threats.fog import FogThreat, fog
from core.threats.frames import FrameThreat, frame
from core.threats.patches import PatchThreat, patch
from core.threats.pixels import PixelsThreat, sparse_pixels
from core.threats.snow import SnowThreat, snow
from core.training.run import fine_tune

_Call = Callable[[nn.Module, Tensor, Tensor, Mapping[Any, Any]], object]


def _attack(attack: Any, **settings: Any) -> _Call:
    def call(model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Any, Any]) -> object:
        (ball,) = (LpThreat(norm, radius) for norm, radius in eps.items())
        return attack(model, images, labels, ball, **settings)

    return call


def _msd(model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Any, Any]) -> object:
    return msd(model, images, labels, UnionThreat.of(eps), steps=dict.fromkeys(eps, 1))


FUNCTIONS: dict[str, _Call] = {
    "evaluate": lambda model, images, labels, eps: evaluate(model, images, labels, eps, protocol="fast"),
    "apgd": _attack(apgd, steps=1),
    "apgd_ce": _attack(apgd_ce, steps=1),
    "apgd_t": _attack(apgd_t, steps=1),
    "fab_t": _attack(fab_t, steps=1),
    "square": _attack(square, queries=1),
    "reference": _attack(reference, name="apgd-ce", steps=1),
    "msd": _msd,
}


class _Counting(nn.Module):
    """A linear model of four classes that counts the images it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 4)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.linear(images.flatten(1))


IMAGES, LABELS, EPS = torch.full((5, 3, 4, 4), 0.5), torch.zeros(5, dtype=torch.long), {"linf": 0.1}
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "scaled to -1 to 1": ({"images": IMAGES * torch.tensor([-2.0, 2, 1, 1]).view(4, 1)}, "from -1 to 1", "+ 1) / 2"),
    "scaled to 255": ({"images": IMAGES * 400}, "from 200 to 200", "by 255"),
    "normalised": ({"images": 6 * IMAGES - 4 * (IMAGES.cumsum(3) > 1)}, "values from -1 to 3", "let the first layer"),
    "rounded beyond 1": ({"images": 2 * IMAGES + 1e-6}, "1.000001", "clamp"),
    "NaN": ({"images": IMAGES.index_fill(3, torch.tensor(1), torch.nan)}, "contain NaN", "repair"),
    "infinite": ({"images": IMAGES / 0}, "to inf", "normalise"),
    "integer": ({"images": (IMAGES * 255).byte()}, "uint8", "/ 255"),
    "half precision": ({"images": IMAGES.half()}, "float16", "float()"),
    "one image": ({"images": IMAGES[0]}, "(3, 4, 4)", "images[None]"),
    "a list": ({"images": [0.5]}, "type list", "one tensor"),
    "nothing": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "nothing to attack", "one image or more"),
    "too few labels": ({"labels": LABELS[:3]}, "5 images and 3 labels", "one label per image"),
    "one-hot": ({"labels": torch.eye(5, 4)}, "(5, 4) of float32", "argmax(1)"),
    "int32 labels": ({"labels": LABELS.int()}, "int32", "long()"),
    "negative label": ({"labels": LABELS - 1}, "a label is -1", "from 0"),
    "label without class": ({"labels": LABELS + 4}, "a label is 4, but the model has 4 classes", "model's classes"),
    "upper case": ({"eps": {"Linf": 0.1}}, "'Linf'", "did you mean 'linf'?"),
    "upper case of two letters": ({"eps": {"L2": 0.1}}, "'L2'", "did you mean 'l2'?"),
    "units of 255": ({"eps": {"linf": 8}}, "radius 8", "did you mean 8 / 255?"),
    "far too large": ({"eps": {"l2": 1e6}}, "not below 3.4641", "smaller radius"),
    "zero": ({"eps": {"linf": 0}}, "0, not", "8 / 255"),
    "negative": ({"eps": {"l1": -1.0}}, "-1.0, not", "8 / 255"),
    "NaN radius": ({"eps": {"l2": float("nan")}}, "nan, not", "8 / 255"),
    "infinite radius": ({"eps": {"l2": float("inf")}}, "inf, not", "8 / 255"),
    "text": ({"eps": {"linf": "8/255"}}, "'8/255', not", "8 / 255"),
    "true": ({"eps": {"linf": True}}, "True, not", "8 / 255"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_by_name_with_a_remedy(function: str, wrong: str) -> None:
    change, said, remedy = WRONG[wrong]
    given = {"images": IMAGES, "labels": LABELS, "eps": EPS} | change
    model = _Counting()
    with pytest.raises(BadInput) as caught:
        FUNCTIONS[function](model, **given)
    assert said in caught.value.message
    assert remedy in caught.value.hint
    assert caught.value.field is not None
    assert caught.value.field.partition(".")[0] in change
    assert model.asked <= (5 if wrong == "label without class" else 0)


class _CountingWithMaps(_Counting):
    """The same behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.maps(images))


OTHERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "perceptual": (perceptual, PerceptualThreat(0.5), {"steps": 1}),
    "l0": (sparse_pixels, PixelsThreat(1), {"queries": 1}),
    "patch": (patch, PatchThreat(2), {"queries": 1}),
    "frame": (frame, FrameThreat(1), {"queries": 1}),
    "fog": (fog, FogThreat(64), {"steps": 1}),
    "snow": (snow, SnowThreat(0.5), {"steps": 1}),
}


@pytest.mark.parametrize("function", OTHERS)
@pytest.mark.parametrize("wrong", [name for name, (change, *_) in WRONG.items() if "eps" not in change])
def test_attacks_that_are_no_balls_refuse_the_same_points(function: str, wrong: str) -> None:
    change, said, remedy = WRONG[wrong]
    attack, threat, settings = OTHERS[function]
    given = {"images": IMAGES, "labels": LABELS} | change
    model = _CountingWithMaps()
    with pytest.raises(BadInput) as caught:
        attack(model, given["images"], given["labels"], threat, **settings)
    assert said in caught.value.message
    assert remedy in caught.value.hint
    assert caught.value.field in change
    assert model.asked <= (5 if wrong == "label without class" else 0)
    assert attack(model, IMAGES, LABELS, threat, **settings).adversarial.shape == IMAGES.shape


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), float("inf"), "0.5", True])
def test_a_perceptual_bound_that_is_no_distance_is_refused(bound: Any) -> None:
    with pytest.raises(BadInput, match="LPIPS distance above 0"):
        PerceptualThreat(bound)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sound_arguments_are_taken(function: str) -> None:
    FUNCTIONS[function](_Counting(), IMAGES, LABELS, EPS)


def _evaluate(model: nn.Module | None = None, **change: Any) -> BadInput:
    given = {"images": IMAGES, "labels": LABELS, "eps": EPS, "protocol": "fast"} | change
    with pytest.raises(BadInput) as caught:
        evaluate(model or _Counting(), given.pop("images"), given.pop("labels"), given.pop("eps"), **given)
    return caught.value


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"eps": {}}, "eps", "one per norm"),
        ({"eps": {"linf": 0.1, "L2": 0.4}}, "eps.L2", "did you mean 'l2'?"),
        ({"eps": {"linf": 0.1, "l2": 4.0}}, "eps.l2", "did you mean 4 / 255?"),
        ({"protocol": "standart"}, "evaluation.protocol", "did you mean 'standard'?"),
        ({"engine": "autoattack"}, "evaluation.engine", "known: temper, reference"),
        ({"batch_size": 0}, "evaluation.batch_size", "integer of at least 1"),
    ],
)
def test_settings_of_an_evaluation_are_checked_in_every_key(change: dict[str, Any], field: str, remedy: str) -> None:
    model = _Counting()
    error = _evaluate(model, **change)
    assert (error.field, model.asked) == (field, 0)
    assert remedy in error.hint


def test_images_that_the_model_does_not_take_are_named_with_its_reason() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    error = _evaluate(model)
    assert error.message.startswith("the model does not take images of 3 x 4 x 4: ")
    assert "expected input" in error.message
    assert "channels" in error.hint


def test_fine_tuning_takes_a_spec_alone_and_refuses_the_same_radii(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="type dict") as caught:
        next(iter(fine_tune({"base_model": "digits-cnn-linf"}, tmp_path)))  # type: ignore[arg-type]
    assert "core.schema.spec.parse" in caught.value.hint
    for eps in ({"Linf": 0.1}, {"linf": 0.1, "L2": 0.4}, {"linf": 8}, {"l1": -1}, {}):
        with pytest.raises(ValidationError):
            parse({"base_model": "digits-cnn-linf", "eps": eps})
    assert list(tmp_path.iterdir()) == []
