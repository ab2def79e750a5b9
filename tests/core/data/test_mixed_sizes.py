"""Images of mixed size: what is proposed, what is refused, and what preprocessing makes of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms
import torchvision.transforms.functional as tvf
from PIL import Image

from core import data
from core.cli.console import inspection_lines
from core.data import memory
from core.data.draws import read_test_points
from core.data.preprocessing import preprocess
from core.data.safe_zip import Caps
from core.data.split import Split
from core.data.stream import Stream
from core.intake.inspect import inspect_dataset
from core.schema.dataset_spec import DatasetSpec
from core.schema.errors import BadDataset, BadInput
from core.schema.preprocessing import Preprocessing, Sizes, propose
from core.schema.spec import FineTuneSpec
from tests.support.images import image, two_classes, write
from tests.support.photos import photos

_CROP = Preprocessing(image_size=32)


@pytest.mark.parametrize(
    ("sides", "proposed"),
    [([20], 32), ([45], 32), ([46], 64), ([100], 96), ([182], 160), ([200], 224), ([4000], 224), ([64, 64, 300], 64)],
)
def test_the_standard_size_nearest_to_the_median_side_is_proposed(sides: list[int], proposed: int) -> None:
    assert propose(Counter((side, 2 * side) for side in sides)) == Preprocessing(image_size=proposed)


def test_sizes_are_summarised_by_the_shorter_side() -> None:
    found = Sizes.of({(30, 40): 2, (64, 64): 1, (65, 300): 3, (1000, 900): 1})
    assert (found.smallest, found.largest, found.median, found.different) == ((30, 40), (1000, 900), 65, 4)
    assert [(each.at_least, each.below, each.images) for each in found.histogram] == [
        (1, 32, 2),
        (64, 96, 4),
        (896, None, 1),
    ]


def test_photos_of_mixed_size_are_refused_with_the_proposal_that_then_works(tmp_path: Path) -> None:
    path = write(photos(20, 5), tmp_path, "zip")
    with pytest.raises(BadDataset, match="images differ in size") as of_run:
        data.load("mine", path)
    with pytest.raises(BadDataset, match=r"images differ in size: 49 of 50 are not .* from .* to ") as of_upload:
        inspect_dataset(path, tmp_path / "out", caps=Caps())
    for caught in (of_run, of_upload):
        assert "--preprocessing.image-size 128 (the shorter sides have a median of 139" in caught.value.hint
    spec = DatasetSpec(preprocessing=Preprocessing(image_size=128))
    found = inspect_dataset(path, tmp_path / "out", caps=Caps(), spec=spec)
    assert (found.shape, found.refused, found.train_examples, found.test_examples) == ((3, 128, 128), 0, 40, 10)
    assert found.transparent > 0
    assert sum(each.images for each in found.sizes.histogram) == 50
    assert "brought to 128 x 128 (shorter side to 128, then the centre, bilinear)" in "\n".join(inspection_lines(found))
    dataset = data.load("mine", path, preprocessing=spec.preprocessing)
    assert (dataset.shape, len(dataset.train), len(dataset.test)) == ((3, 128, 128), 40, 10)


def test_a_few_images_of_another_size_are_left_out_and_the_proposal_says_how_to_keep_them(tmp_path: Path) -> None:
    path = write(two_classes() | {"train/cat/9.png": image(3, size=(50, 40))}, tmp_path, "zip")
    found = inspect_dataset(path, tmp_path / "out", caps=Caps())
    assert (found.refused, found.proposal) == (1, Preprocessing(image_size=32))
    assert "to use all images, bring them to one size: --preprocessing.image-size 32" in "\n".join(
        inspection_lines(found)
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(80, 61), (61, 80), (33, 33), (20, 90)])
def test_crop_and_stretch_are_torchvisions_to_the_bit(size: tuple[int, int], interpolation: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    filter_ = tvf.InterpolationMode(interpolation)
    for shorter_side in (None, 36):
        how = Preprocessing(image_size=32, shorter_side=shorter_side, interpolation=interpolation)
        resized = torchvision.transforms.Resize(shorter_side or 32, filter_)(picture)
        theirs = torchvision.transforms.CenterCrop(32)(resized)
        assert np.array_equal(np.asarray(preprocess(picture, how)), np.asarray(theirs))
    how = Preprocessing(image_size=32, resize="stretch", interpolation=interpolation)
    theirs = torchvision.transforms.Resize((32, 32), filter_)(picture)
    assert np.array_equal(np.asarray(preprocess(picture, how)), np.asarray(theirs))


def test_padding_keeps_the_whole_image_on_black() -> None:
    padded = np.asarray(preprocess(Image.new("L", (64, 16), 200), Preprocessing(image_size=32, resize="pad")))
    assert padded.shape == (32, 32)
    assert (padded[12:20] == 200).all()
    assert not padded[:12].any()
    assert not padded[20:].any()


def test_images_of_the_right_size_stay_as_they_are(tmp_path: Path) -> None:
    path = write({name: image(7, size=(32, 32)) for name in two_classes()}, tmp_path, "zip")
    assert data.load("mine", path, preprocessing=_CROP).sha256() == data.load("mine", path).sha256()


def test_the_digits_are_not_resized() -> None:
    with pytest.raises(BadInput, match="cannot be resized") as caught:
        data.load("digits", preprocessing=_CROP)
    assert caught.value.field == "preprocessing.image_size"


@pytest.mark.parametrize("how", ["folder", "zip", "tar"])
@pytest.mark.parametrize("preprocessing", [_CROP, Preprocessing(image_size=32, resize="pad"), Preprocessing()])
def test_a_set_larger_than_the_memory_is_streamed_with_the_same_images(
    how: str, preprocessing: Preprocessing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = photos(6, 3)
    if preprocessing.image_size is None:
        files = {name: image(20 * number, size=(40, 30)) for number, name in enumerate(two_classes())}
    path = write(files | {"notes.txt": b"x"}, tmp_path, how)
    whole = data.load("mine", path, preprocessing=preprocessing)
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    streamed = data.load("mine", path, preprocessing=preprocessing, workers=0)
    assert isinstance(whole.train, Split)
    assert isinstance(streamed.train, Stream)
    assert (streamed.shape, streamed.classes, streamed.unread) == (whole.shape, whole.classes, whole.unread)
    for part, same in ((streamed.train, whole.train), (streamed.test, whole.test)):
        read = part.first(len(part))
        assert torch.equal(read.labels, same.labels)
        assert torch.equal(read.pixels, same.first(len(same)).pixels)
    order = [torch.tensor([0, 3, 1])]
    for augmentation in ("none", "crop-flip", "resized-crop-flip"):
        (batch,) = streamed.train.batches(order, augmentation, torch.Generator().manual_seed(0))
        assert batch.images.shape == (3, *whole.shape)
    assert len(read_test_points(streamed.test, 2, "stratified")) == 2


def test_the_name_of_an_archive_is_no_part_of_a_streamed_sets_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    path = write(two_classes(), tmp_path, "zip")
    before = data.load("mine", path).sha256()
    assert data.load("mine", path.rename(tmp_path / "other.zip")).sha256() == before


def test_a_large_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    with pytest.raises(BadDataset, match="a compressed tar archive cannot be streamed") as caught:
        data.load("mine", write(two_classes(), tmp_path, "tar.gz"))
    assert "into a zip" in caught.value.hint


def test_a_streamed_grey_set_has_one_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    path = write({name: image(7, mode="L") for name in two_classes()}, tmp_path, "zip")
    found = data.load("mine", path, workers=0)
    assert found.shape == (1, 5, 6)
    assert found.test.first(1).pixels.unique().tolist() == [7]


def test_a_run_that_may_open_no_sockets_reads_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    monkeypatch.setattr("socket.socket", refuse)
    train = data.load("mine", write(two_classes(), tmp_path, "zip")).train
    assert isinstance(train, Stream)
    assert train._number_of_workers(1) == 0


def test_the_available_memory_is_that_of_the_machine_and_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = memory.available_memory()
    assert 0 < free < 2**50
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 2000


def test_a_spec_fills_in_and_checks_its_preprocessing() -> None:
    imagenet = {"base_model": "mine", "dataset": "imagenet"}
    spec = FineTuneSpec.model_validate({**imagenet, "preprocessing": {"interpolation": "bicubic"}})
    assert spec.preprocessing == Preprocessing(image_size=224, shorter_side=256, interpolation="bicubic")
    assert FineTuneSpec.model_validate(spec.model_dump()) == spec
    smaller = FineTuneSpec.model_validate({**imagenet, "preprocessing": {"image_size": 64}})
    assert smaller.preprocessing == Preprocessing(image_size=64)
    for wrong, said in (
        ({"image_size": None}, "give an image_size"),
        ({"image_size": 64, "shorter_side": 32}, "must be at least image_size"),
        ({"image_size": 64, "resize": "pad", "shorter_side": 70}, "shorter_side needs an image_size, and resize crop"),
        ({"size": 64}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=said):
            FineTuneSpec.model_validate({**imagenet, "preprocessing": wrong})
    with pytest.raises(ValueError, match="has its own test part"):
        FineTuneSpec.model_validate({"base_model": "digits-cnn-linf", "test_share": 0.2})
