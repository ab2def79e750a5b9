"""A data set of tensors: what it holds, the test part that is drawn, and what is refused."""

from math import nan

import pytest
import torch
from torch import Tensor

from core.data import Dataset
from core.data.tensors import from_tensors, read_given
from core.schema.errors import BadInput, DoesNotFit

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(20, 1, 4, 4, generator=GENERATOR), torch.arange(20) % 4


def _given(**change: object) -> tuple[Tensor, Tensor]:
    both = {"images": IMAGES, "labels": LABELS, **change}
    return both["images"], both["labels"]  # type: ignore[return-value]


def test_a_fifth_is_drawn_with_the_seed_and_each_class_has_its_share() -> None:
    dataset = from_tensors((IMAGES, LABELS), seed=3)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    assert sorted(dataset.test.labels.tolist()) == [0, 1, 2, 3]
    again, other = from_tensors((IMAGES, LABELS), seed=3), from_tensors((IMAGES, LABELS), seed=4)
    assert dataset.sha256() == again.sha256() != other.sha256()
    (warning,) = dataset.warnings
    assert (warning.code, "4 of 20 images" in warning.message, "seed 3" in warning.message) == (
        "test_part_drawn",
        True,
        True,
    )


def test_no_image_is_in_both_parts() -> None:
    dataset = from_tensors((IMAGES, LABELS))
    both = torch.cat([part.first(20).images() for part in (dataset.train, dataset.test)])
    assert len(both.flatten(1).unique(dim=0)) == 20


def test_given_parts_are_taken_as_they_are_without_a_warning() -> None:
    dataset = read_given(((IMAGES, LABELS), (IMAGES[:3], LABELS[:3])), seed=0)
    assert torch.equal(dataset.train.first(20).images(), IMAGES)
    assert torch.equal(dataset.test.first(20).labels, LABELS[:3])
    assert (dataset.classes, dataset.warnings) == (("0", "1", "2", "3"), ())
    assert read_given(dataset, seed=0) is dataset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_that_were_bytes_are_the_same_as_those_bytes(dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 0, 1])
    of_bytes = from_tensors((pixels, labels), (pixels, labels))
    of_floats = from_tensors((pixels.to(dtype) / 255, labels), (pixels.to(dtype) / 255, labels))
    assert of_bytes.sha256() == of_floats.sha256()
    assert torch.equal(of_bytes.train.first(4).images(), pixels.float() / 255)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"images": IMAGES.numpy()}, "images are of the type ndarray", "one tensor"),
        ({"images": IMAGES[0]}, r"a tensor \(1, 4, 4\)", "four dimensions"),
        ({"images": IMAGES.half()}, "float16, not float32", "float()"),
        ({"images": IMAGES.int()}, "int32, not float32 in .0, 1. or uint8", "/ 255"),
        ({"images": 255 * IMAGES}, "not in .0, 1.", "divide them by 255"),
        ({"images": IMAGES.where(IMAGES < 0.9, nan)}, "contain NaN", "repair"),
        ({"labels": LABELS.int()}, "int32, not class indices", "labels.long"),
        ({"labels": LABELS - 1}, "a label is -1", "count from 0"),
        ({"labels": LABELS[:5]}, "20 images and 5 labels", "one label per image"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "nothing to attack", "one image or more"),
        ({"images": IMAGES[:3], "labels": LABELS[:3]}, "3 images of 3 classes are too few", "test part of your own"),
        ({"images": IMAGES[:6], "labels": torch.arange(6)}, "6 images of 6 classes are too few", "test part"),
    ],
)
def test_what_is_no_data_set_is_refused_with_what_to_do(change: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read_given(_given(**change), seed=0)
    assert hint in caught.value.hint
    assert caught.value.field == "data"


@pytest.mark.parametrize("given", [IMAGES, (IMAGES,), (IMAGES, LABELS, LABELS), "digits"])
def test_another_form_is_refused_with_the_forms_there_are(given: object) -> None:
    with pytest.raises(BadInput, match="the data are of the type") as caught:
        read_given(given, seed=0)  # type: ignore[arg-type]
    assert "data=(images, labels)" in caught.value.hint


def test_parts_of_two_shapes_and_labels_without_a_name_are_refused() -> None:
    with pytest.raises(DoesNotFit, match="1 x 4 x 4, the test images 1 x 4 x 3"):
        from_tensors((IMAGES, LABELS), (IMAGES[..., :3], LABELS))
    with pytest.raises(DoesNotFit, match="a label is 3, but 2 classes are named"):
        from_tensors((IMAGES, LABELS), classes=("cat", "dog"))
    assert isinstance(from_tensors((IMAGES, LABELS), classes="abcde"), Dataset)
