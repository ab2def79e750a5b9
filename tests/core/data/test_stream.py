"""Streamed sets: what a worker makes of a file, in which order, and what is refused."""

import io
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms
import torchvision.transforms.functional as tvf
from PIL import Image
from torch import Tensor

from core import checkpoint, data
from core.data import stream
from core.data.draws import read_test_points
from core.data.preprocessing import centre
from core.data.split import WHOLE, Batch, ProcessShare
from core.data.stream import Stream, draw_box
from core.inputs import Inputs
from core.schema.catalog import Augmentation
from core.schema.errors import BadDataset, UserError
from core.schema.events import Started
from core.schema.preprocessing import Interpolation, Preprocessing
from core.schema.spec import TrainSpec, parse
from core.training.run import fine_tune
from tests.support.images import wide, write

_SIZES = [(300, 240), (90, 310), (256, 256), (40, 50)]


def _noise(number: int, kind: str = "PNG") -> bytes:
    """Encode an image of mixed size whose content its number decides."""
    width, height = _SIZES[number % len(_SIZES)]
    pixels = np.random.default_rng(number).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(pixels).resize((width, height)), kind)


def _encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


def _files() -> dict[str, bytes]:
    return {
        f"{part}/{wnid}/{number}.JPEG": _noise(10 * row + number, "JPEG")
        for row, wnid in enumerate(("n01440764", "n01443537"))
        for part, count in (("train", 6), ("val", 2))
        for number in range(count)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six training and two test images, of four sizes."""
    return write(_files(), tmp_path_factory.mktemp("ilsvrc"), "folder")


@pytest.fixture
def train(folder: Path) -> Stream:
    """The training part, read in this process."""
    part = data.load("imagenet", folder, workers=0).train
    assert isinstance(part, Stream)
    return part


def _order(train: Stream, batch_size: int = 4) -> list[Tensor]:
    return list(torch.randperm(len(train), generator=torch.Generator().manual_seed(7)).split(batch_size))


def _batches(
    train: Stream, order: list[Tensor], augmentation: Augmentation = "resized-crop-flip", share: ProcessShare = WHOLE
) -> list[Batch]:
    return list(train.batches(order, augmentation, torch.Generator().manual_seed(3), share))


def _same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


def test_images_of_mixed_size_become_batches_of_one_size(train: Stream, folder: Path) -> None:
    dataset = data.load("imagenet", folder)
    assert dataset.classes == ("n01440764", "n01443537")
    assert dataset.shape == (3, 224, 224)
    batches = _batches(train, _order(train, 5))
    assert [tuple(batch.images.shape) for batch in batches] == [(5, 3, 224, 224), (5, 3, 224, 224), (2, 3, 224, 224)]
    assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == [6, 6]
    assert all(batch.images.dtype == torch.float32 and batch.images.is_contiguous() for batch in batches)
    assert all(batch.images.min() >= 0 and batch.images.max() <= 1 for batch in batches)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 240), (240, 301), (257, 999), (40, 50)])
def test_the_view_for_evaluation_is_torchvisions_to_the_bit(
    size: tuple[int, int], interpolation: Interpolation, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    files = {f"{part}/{wnid}/0.png": _encoded(picture) for part in ("train", "val") for wnid in ("n01", "n02")}
    folder = write(files, tmp_path, "folder")
    how = Preprocessing(image_size=224, shorter_side=256, interpolation=interpolation)
    points = data.load("imagenet", folder, workers=0, preprocessing=how).test.first(1)
    resize = torchvision.transforms.Resize(256, tvf.InterpolationMode(interpolation))
    theirs = torchvision.transforms.CenterCrop(224)(resize(picture))
    assert np.array_equal(points.pixels[0].permute(1, 2, 0).numpy(), np.asarray(theirs))


def test_a_streamed_image_of_16_bits_is_what_it_is_in_8(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (240, 300), dtype=np.uint8)
    views = []
    for name, content in (("wide", wide(grey.astype(np.uint16) * 257)), ("narrow", _encoded(Image.fromarray(grey)))):
        files = {f"{part}/{wnid}/0.png": content for part in ("train", "val") for wnid in ("n01", "n02")}
        (tmp_path / name).mkdir()
        views.append(data.load("imagenet", write(files, tmp_path / name, "folder"), workers=0).test.first(1).pixels)
    assert torch.equal(*views)
    assert views[0].unique().numel() > 100


def test_test_points_are_read_in_a_fixed_order_as_they_are_evaluated(folder: Path) -> None:
    test = data.load("imagenet", folder, workers=0).test
    assert isinstance(test, Stream)
    points = test.first(3)
    assert points.labels.tolist() == test.labels[:3].tolist()
    for place, pixels in enumerate(points.pixels):
        with Image.open(folder / os.fsdecode(test.names[place])) as picture:
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(centre(picture, 224, 256, "bilinear")))
    assert torch.equal(test.first(100).pixels[:3], points.pixels)
    assert len(test.first(100)) == 4


def test_a_training_image_is_torchvisions_resized_crop_of_the_drawn_box(train: Stream, folder: Path) -> None:
    (batch,) = _batches(train, [torch.tensor([3])])
    seed = stream._draw_seed(torch.Generator().manual_seed(3))
    draw = random.Random(f"{seed}/3")
    with Image.open(folder / os.fsdecode(train.names[3])) as picture:
        left, top, right, bottom = draw_box(picture.width, picture.height, draw)
        crop = tvf.resized_crop(picture, top, left, bottom - top, right - left, [224, 224])
    seen = torch.from_numpy(np.array(tvf.hflip(crop) if draw.random() < 0.5 else crop)).permute(2, 0, 1) / 255
    assert torch.equal(batch.images[0], seen)


def test_boxes_are_inside_and_of_the_areas_and_shapes_of_the_recipe() -> None:
    draw = random.Random(0)
    boxes = [draw_box(500, 375, draw) for _ in range(4000)]
    assert all(0 <= left < right <= 500 and 0 <= top < bottom <= 375 for left, top, right, bottom in boxes)
    sides = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes])
    areas, shapes = sides.prod(1) / (500 * 375), sides[:, 0] / sides[:, 1]
    assert areas.min() > 0.07
    assert areas.max() <= 1
    assert shapes.min() > 0.73
    assert shapes.max() < 1.36
    # All but the boxes that do not fit are uniform in area: half of those below .4 are below .24.
    assert abs((areas < 0.24).sum() / (areas < 0.4).sum() - 0.5) < 0.05


def test_where_no_box_fits_the_middle_is_taken() -> None:
    assert draw_box(10, 1000, random.Random(0)) == (0, 493, 10, 506)
    assert draw_box(1000, 9, random.Random(0)) == (494, 0, 506, 9)


def test_the_same_draws_give_the_same_images_and_others_others(train: Stream) -> None:
    order = _order(train)
    once, again = _batches(train, order), _batches(train, order)
    assert _same(once, again)
    other = list(train.batches(order, "resized-crop-flip", torch.Generator().manual_seed(4)))
    assert not _same(once, other)


def test_workers_change_neither_the_images_nor_the_global_random_state(train: Stream) -> None:
    order = _order(train)
    state = torch.get_rng_state()
    assert _same(_batches(replace(train, workers=2), order), _batches(train, order))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_resumed_within_an_epoch_yields_the_same_batches(train: Stream) -> None:
    order = _order(train, 3)
    generator = torch.Generator().manual_seed(3)
    # Two processes are ahead of what has been handed out.
    running: Iterator[Batch] = replace(train, workers=2).batches(order, "resized-crop-flip", generator)
    next(running), next(running)
    state = generator.get_state()
    rest = list(running)
    generator.set_state(state)
    assert _same(list(train.batches(order[2:], "resized-crop-flip", generator)), rest)


def test_ranks_together_see_what_one_alone_would(train: Stream) -> None:
    order = _order(train, 5)
    alone = _batches(train, order)
    shares = [_batches(train, order, share=ProcessShare(rank, 2)) for rank in range(2)]
    together = [
        Batch(*(torch.cat(halves) for halves in zip(*parts, strict=True))) for parts in zip(*shares, strict=True)
    ]
    assert _same(together, alone)


def test_crop_flip_moves_the_view_for_evaluation_by_an_eighth_at_most(train: Stream) -> None:
    index = torch.arange(8)
    still = train.read(index).images()
    (moved,) = _batches(train, [index], "crop-flip")
    padded = torch.nn.functional.pad(still, [28] * 4)
    for image, place in zip(moved.images, padded, strict=True):
        views = place.unfold(1, 224, 1).unfold(2, 224, 1)
        found = [
            bool((views[:, top, left] == view).all())
            for view in (image, image.flip(2))
            for top in range(57)
            for left in range(57)
            if torch.equal(views[0, top, left, 100], view[0, 100])
        ]
        assert any(found)


def test_picked_examples_keep_their_files_and_labels(train: Stream) -> None:
    index = torch.tensor([5, 0, 9])
    chosen = train.pick(index)
    assert torch.equal(chosen.labels, train.labels[index])
    assert torch.equal(chosen.read(torch.arange(3)).pixels, train.read(index).pixels)
    assert train.read(index[:0]).images().shape == (0, 3, 224, 224)


def test_the_hash_is_of_names_and_sizes(folder: Path, tmp_path: Path) -> None:
    here = data.load("imagenet", folder).sha256()
    files = _files()
    assert data.load("imagenet", write(files, tmp_path / "same", "folder")).sha256() == here
    renamed = {name.replace("/5.", "/55."): content for name, content in files.items()}
    assert data.load("imagenet", write(renamed, tmp_path / "renamed", "folder")).sha256() != here
    longer = files | {"train/n01440764/5.JPEG": files["train/n01440764/5.JPEG"] + b" "}
    assert data.load("imagenet", write(longer, tmp_path / "longer", "folder")).sha256() != here


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(_noise(1, "JPEG")[:-200], "truncated"), (b"hello", "not a JPEG"), (b"\0\0\0\x18ftypheic", "it is a HEIC image")],
)
def test_one_damaged_file_is_left_out_and_named(content: bytes, reason: str, workers: int, tmp_path: Path) -> None:
    folder = write(_files() | {"train/n01440764/4.JPEG": content}, tmp_path, "folder")
    dataset = data.load("imagenet", folder, workers=workers)
    train = dataset.train
    assert isinstance(train, Stream)
    batches = _batches(train, _order(train))
    assert [len(batch.labels) for batch in batches] == [4, 4, 4]
    (warning,) = dataset.new_warnings()
    assert warning.code == "data_left_out"
    assert warning.message.startswith("train/n01440764/4.JPEG is left out: ")
    assert reason in warning.message
    assert "1 of 16 files" in warning.message
    assert list(dataset.new_warnings()) == []
    # The next image of the set takes its place.
    gap = train.names.tolist().index(b"train/n01440764/4.JPEG")
    alone, follower = (_batches(train, [torch.tensor([at])])[0] for at in (gap, (gap + 1) % 12))
    assert torch.equal(alone.labels, follower.labels)
    # An evaluation has one image less, or another one in its place.
    assert len(train.read(torch.arange(12))) == 11


def test_a_test_point_that_cannot_be_read_gives_way_to_the_next(tmp_path: Path) -> None:
    whole = data.load("imagenet", write(_files(), tmp_path / "whole", "folder"), workers=0).test
    assert isinstance(whole, Stream)
    broken = _files() | {os.fsdecode(whole.names[1]): b"hello"}
    part = data.load("imagenet", write(broken, tmp_path / "broken", "folder"), workers=0).test
    points = read_test_points(part, 2, "uniform")
    assert torch.equal(points.pixels, whole.read(torch.tensor([0, 2])).pixels)


def test_too_many_damaged_files_end_the_run_unless_it_was_asked_for(tmp_path: Path) -> None:
    damaged = {f"train/n01440764/{n}.JPEG": b"hello" for n in (3, 4)}
    folder = write(_files() | damaged, tmp_path, "folder")
    train = data.load("imagenet", folder, workers=0).train
    assert isinstance(train, Stream)
    with pytest.raises(BadDataset, match="2 of 16 images cannot be read, more than the 1 that") as caught:
        _batches(train, _order(train))
    assert all(name in caught.value.message for name in damaged)
    dataset = data.load("imagenet", folder, workers=0, leave_out=lambda *_: None)
    assert isinstance(dataset.train, Stream)
    _batches(dataset.train, _order(dataset.train))
    assert len(list(dataset.new_warnings())) == 2


def test_an_empty_file_is_left_out_before_the_run(tmp_path: Path) -> None:
    dataset = data.load("imagenet", write(_files() | {"train/n01440764/4.JPEG": b""}, tmp_path, "folder"))
    assert len(dataset.train) == 11
    assert "train/n01440764/4.JPEG is left out: it is empty" in next(dataset.new_warnings()).message


def test_deep_folders_links_and_odd_suffixes_are_read(tmp_path: Path) -> None:
    files = _files()
    files["train/n01440764/deep/down/x.jfif"] = _noise(3, "JPEG")
    files["train/n01440764/without-suffix"] = _noise(3, "JPEG")
    files["train/n01440764/notes.txt"] = b"hello"
    folder = write(files, tmp_path / "a", "folder")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.JPEG").write_bytes(_noise(5, "JPEG"))
    (folder / "train" / "n01440764" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "n01440764" / "loop").symlink_to(folder / "train")
    dataset = data.load("imagenet", folder)
    assert (len(dataset.train), dataset.unread) == (15, 1)


_BAD = {
    "two empty files": (
        _files() | {f"train/n01440764/{n}.JPEG": b"" for n in (3, 4)},
        r"train/n01440764/3.JPEG \(it is empty\), train/n01440764/4.JPEG \(it is empty\)",
    ),
    "one class": ({name: content for name, content in _files().items() if "n01440764" in name}, "single class"),
    "no test part": ({name: content for name, content in _files().items() if "train" in name}, "test/"),
    "test images in no class folder": (
        {name: content for name, content in _files().items() if "train" in name} | {"val/0.JPEG": _noise(0)},
        "'val/' in .* has no class folders",
    ),
    "a class without test images": (_files() | {"train/n02/0.JPEG": _noise(0)}, "n02"),
}


@pytest.mark.parametrize("what", list(_BAD))
def test_a_folder_that_cannot_be_used_is_refused_before_the_run(what: str, tmp_path: Path) -> None:
    files, said = _BAD[what]
    with pytest.raises(BadDataset, match=said) as caught:
        data.load("imagenet", write(files, tmp_path, "folder"))
    assert caught.value.hint


def test_an_archive_is_streamed_with_the_same_images_as_the_folder(train: Stream, tmp_path: Path) -> None:
    for how in ("zip", "tar"):
        packed = data.load("imagenet", write(_files(), tmp_path, how), workers=0)
        assert isinstance(packed.train, Stream)
        assert _same(_batches(packed.train, _order(train)), _batches(train, _order(train)))
    dataset = data.load("imagenet", tmp_path / "data.tar", extra=tmp_path / "data.zip", workers=0)
    assert isinstance(dataset.extra, Stream)
    both = packed.train.concat(dataset.extra)
    assert torch.equal(both.read(torch.tensor([12, 1])).pixels, train.read(torch.tensor([0, 1])).pixels)


def test_what_cannot_be_streamed_in_place_of_the_folder_is_told_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="a compressed tar archive cannot be streamed") as caught:
        data.load("imagenet", write(_files(), tmp_path, "tar.gz"))
    assert "unpack" in caught.value.hint
    with pytest.raises(BadDataset, match="does not exist"):
        data.load("imagenet", tmp_path / "nowhere")
    with pytest.raises(BadDataset, match="does not exist") as extra:
        data.load("imagenet", folder, extra=tmp_path / "data.zip", leave_out=lambda name, reason: None)
    assert extra.value.field == "extra_dataset"
    with pytest.raises(UserError, match="cannot be downloaded") as told:
        data.load("imagenet")
    assert "--data" in told.value.hint


def test_a_reading_process_that_dies_is_told_with_a_remedy(train: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream._Files, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a process that reads images died") as caught:
        _batches(replace(train, workers=1), _order(train))
    assert "shared memory" in caught.value.hint


@pytest.mark.slow
def test_streamed_training_gives_the_same_weights_with_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    spec = parse(
        {
            "kind": "train",
            "architecture": "preact-resnet-8",
            "dataset": "imagenet",
            "method": {"name": "single", "norms": ["linf"], "steps": 1},
            "eps": {"linf": "4/255"},
            "epochs": 1,
            "batch_size": 5,
            "evaluation": {"protocol": "fast", "examples": 2},
        }
    )
    assert isinstance(spec, TrainSpec)
    for workers in (0, 2):
        events = list(fine_tune(spec, tmp_path / str(workers), Inputs(data=folder, workers=workers)))
        assert isinstance(events[0], Started)
        assert (events[0].test_examples, events[0].total_steps) == (2, -(-events[0].train_examples // 5))
    one, other = (checkpoint.load(tmp_path / run / "checkpoint.safetensors")[0].state_dict() for run in ("0", "2"))
    assert all(torch.equal(one[name], other[name]) for name in one)
