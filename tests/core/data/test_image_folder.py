"""ImageFolder data: what is read, in which order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import data
from core.inputs import Inputs, load
from core.schema.errors import BadDataset, UserError
from core.schema.preprocessing import Preprocessing
from core.schema.spec import parse
from tests.support.images import image, two_classes, wide, write


@pytest.mark.parametrize("how", ["folder", "zip", "tar", "tar.gz", "tar.xz"])
def test_folders_and_archives_give_the_same_data(how: str, tmp_path: Path) -> None:
    dataset = data.load("mine", write(two_classes(), tmp_path, how))
    assert dataset.classes == ("cat", "dog")
    assert dataset.shape == (3, 5, 6)
    assert dataset.train.pixels.is_contiguous()
    reds = dataset.train.pixels[:, 0, 0, 0].tolist()
    assert dict(zip(reds, dataset.train.labels.tolist(), strict=True)) == {0: 0, 10: 0, 20: 0, 100: 1, 110: 1, 120: 1}
    assert sorted(zip(dataset.test.pixels[:, 0, 0, 0].tolist(), dataset.test.labels.tolist(), strict=True)) == [
        (1, 0),
        (101, 1),
    ]
    (tmp_path / "again").mkdir()
    assert dataset.sha256() == data.load("mine", write(two_classes(), tmp_path / "again", "zip")).sha256()


def test_images_of_mixed_size_are_brought_to_one_instead(tmp_path: Path) -> None:
    path = write(two_classes() | {"train/dog/9.png": image(3, size=(9, 9))}, tmp_path, "folder")
    with pytest.raises(BadDataset) as caught:
        data.load("mine", path)
    assert "bring all to one size with --preprocessing.image-size 32" in caught.value.hint
    assert data.load("mine", path, preprocessing=Preprocessing(image_size=32)).shape == (3, 32, 32)
    assert data.load("imagenet", path).shape == (3, 224, 224)


def test_the_first_test_points_of_a_folder_are_of_all_classes(tmp_path: Path) -> None:
    files = {
        f"{part}/{label}/{n:03}.png": image(n) for part in ("train", "test") for label in "abcd" for n in range(50)
    }
    dataset = data.load("mine", write(files, tmp_path, "zip"))
    assert set(dataset.test.first(40).labels.tolist()) == {0, 1, 2, 3}


def test_grey_images_keep_one_channel_unless_there_is_colour(tmp_path: Path) -> None:
    grey = {name: image(7, mode="L") for name in two_classes()}
    assert data.load("mine", write(grey, tmp_path, "zip")).shape == (1, 5, 6)
    mixed = grey | {"train/cat/9.png": image(7)}
    assert data.load("mine", write(mixed, tmp_path, "zip")).shape == (3, 5, 6)


def test_images_of_16_bits_are_scaled_to_8_and_white_stays_white(tmp_path: Path) -> None:
    grey = {name: wide(7 * 257) for name in two_classes()}
    ramp = np.arange(0, 65536, 2185, dtype=np.uint16)[:30].reshape(5, 6)
    files = grey | {"train/cat/0.png": wide(ramp), "train/cat/1.png": wide(65535), "train/cat/2.png": wide(0)}
    dataset = data.load("mine", write(files, tmp_path, "zip"))
    assert dataset.shape == (1, 5, 6)
    found = [pixels.flatten().tolist() for pixels in dataset.train.pixels]
    assert sorted(found) == sorted(
        [[0] * 30, [255] * 30, *[[7] * 30] * 3, [round(value / 257) for value in ramp.flatten().tolist()]]
    )


def test_val_is_a_test_part_and_an_outer_folder_and_stray_files_do_no_harm(tmp_path: Path) -> None:
    files = {f"pets/{name.replace('test/', 'val/')}": content for name, content in two_classes().items()}
    files |= {"pets/README.md": b"hello", "pets/train/cat/notes.txt": b"x", "pets/train/cat/._0.png": b"junk"}
    assert len(data.load("mine", write(files, tmp_path, "tar")).train) == 6


def test_names_that_point_outside_an_archive_reach_nothing(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    files = two_classes() | {"../../train/cat/8.png": image(8)}
    for how in ("tar", "zip"):
        with pytest.raises(BadDataset, match="can lead out of the archive"):
            data.load("mine", write(files, inner, how))
    rooted = two_classes() | {"/train/dog/9.png": image(9)}
    assert len(data.load("mine", write(rooted, inner, "tar")).train) == 7
    with pytest.raises(BadDataset, match="is absolute"):
        data.load("mine", write(rooted, inner, "zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


_BAD = {
    "no train part": ({"test/cat/0.png": image(0)}, "train/"),
    "no test part": ({"train/cat/0.png": image(0)}, "test/"),
    "a class without test images": (two_classes() | {"train/emu/0.png": image(0)}, "emu"),
    "an empty class folder": (two_classes() | {"train/emu/.keep": b"", "test/emu/.keep": b""}, "emu"),
    "one class": ({"train/cat/0.png": image(0), "test/cat/0.png": image(0)}, "single class"),
    "a corrupt image": (two_classes() | {"train/cat/5.png": image(3)[:40]}, "train/cat/5.png"),
    "text with an image's name": (two_classes() | {"train/cat/5.jpg": b"hello"}, "train/cat/5.jpg"),
    "an unsupported format with an image's name": (
        two_classes() | {"train/cat/5.png": b"\0\0\0\x18ftypheic"},
        "cannot read train/cat/5.png: it is a HEIC image: convert it to JPEG or PNG",
    ),
    "mixed sizes": (two_classes() | {"train/dog/9.png": image(3, size=(9, 9))}, "9 x 9"),
}


@pytest.mark.parametrize("how", ["folder", "zip"])
@pytest.mark.parametrize("what", list(_BAD))
def test_a_data_set_that_cannot_be_used_is_refused_by_name(what: str, how: str, tmp_path: Path) -> None:
    files, named = _BAD[what]
    with pytest.raises(BadDataset) as caught:
        data.load("mine", write(files, tmp_path, how))
    assert named in caught.value.message
    assert caught.value.field == "dataset"
    assert caught.value.hint


def test_an_empty_class_folder_without_any_file_is_noticed(tmp_path: Path) -> None:
    write(two_classes(), tmp_path, "folder")
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(BadDataset, match="emu"):
        data.load("mine", tmp_path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadDataset, match="bomb"):
        data.load("mine", write(two_classes(), tmp_path, "zip"))


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz"])
def test_a_damaged_archive_is_refused(name: str, tmp_path: Path) -> None:
    whole = write(two_classes(), tmp_path, name.partition(".")[2])
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BadDataset, match="data"):
        data.load("mine", tmp_path / name)


@pytest.mark.parametrize(
    ("files", "said", "field"),
    [
        ({name: image(3) for name in two_classes()}, "1 x 8 x 8", "dataset"),
        ({name: image(3, size=(8, 8), mode="L") for name in two_classes()}, "10 classes", "head"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(
    files: dict[str, bytes], said: str, field: str, tmp_path: Path
) -> None:
    path = write(files, tmp_path, "zip")
    spec = parse({"base_model": "digits-cnn-linf", "dataset": "mine", "eps": {"linf": 0.1, "l1": 1}})
    with pytest.raises(UserError, match=said) as caught:
        load(spec, Inputs(data=path))
    assert caught.value.field == field
