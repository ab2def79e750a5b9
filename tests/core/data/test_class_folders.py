"""The layout of a data set: what a person would count is counted, and what could be read in two ways is refused."""

import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.data.class_folders import PART_NAMES, Layout, Place, find_layout
from core.data.images import ImageReader
from core.data.sources import open_source
from core.data.survey import Survey
from core.schema.errors import BadDataset
from tests.support.images import image, write

_PICTURE = image(3)
_TWO = ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")


def _find(*files: str) -> Layout:
    return find_layout(files, (), "pets.zip")


def _places(*files: str) -> dict[str, Place | str]:
    layout = _find(*files)
    return {name: layout.place(name) for name in files}


def test_val_is_the_held_out_part_beside_test_and_the_test_part_alone() -> None:
    val = ("val/cat/1.png", "val/dog/1.png")
    assert _find(*_TWO, *val).folders == {"train": "train", "test": "test", "held_out": "val"}
    assert _find(*_TWO[:2], *val).folders == {"train": "train", "test": "val"}


def test_a_test_part_without_labels_leaves_the_test_to_val() -> None:
    files = (*_TWO[:2], "val/cat/1.png", "val/dog/1.png", "test/ILSVRC2012_test_1.JPEG")
    assert _find(*files).folders == {"train": "train", "test": "val"}
    assert _places(*files)[files[-1]] == "it lies in no class folder"


def test_a_copy_deeper_in_the_archive_counts_once() -> None:
    copies = [f"backup/old/{name}" for name in _TWO]
    places = _places(*_TWO, *copies)
    assert [places[name] for name in copies] == ["it lies outside train/ and test/"] * 4
    assert places["train/cat/1.png"] == Place("train", "cat")


def test_images_deeper_than_the_class_folder_belong_to_the_class() -> None:
    deep = ("train/cat/indoors/test/dog/2.png", "train/cat/train/3.png")
    assert all(_places(*_TWO, *deep)[name] == Place("train", "cat") for name in deep)


def test_a_class_may_be_named_train() -> None:
    files = [f"{part}/{label}/1.png" for part in ("train", "test") for label in ("train", "test", "bus")]
    assert _find(*files).labels == {"train": ["bus", "test", "train"], "test": ["bus", "test", "train"]}


@pytest.mark.parametrize("wrap", ["pets", "a/b/c", "train", "test/x", "val", "Training/data"])
def test_wrapping_folders_of_any_name_are_seen_through(wrap: str) -> None:
    layout = _find(*(f"{wrap}/{name}" for name in _TWO), "__MACOSX/train/cat/._1.png")
    assert layout.root == wrap
    assert layout.place(f"{wrap}/test/dog/1.png") == Place("test", "dog")


def test_parts_and_classes_are_matched_without_case_and_training_decides_the_spelling() -> None:
    files = ("Train/Cat/1.png", "Train/dog/1.png", "TEST/cat/1.png", "TEST/DOG/1.png")
    assert _places(*files)["TEST/cat/1.png"] == Place("test", "Cat")
    assert _places(*files)["TEST/DOG/1.png"] == Place("test", "dog")


_AMBIGUOUS = {
    "two data sets": (
        [f"{root}/{name}" for root in ("big", "small") for name in _TWO],
        "pets.zip holds several data sets: parts lie in big/ and small/",
    ),
    "a second test part": (
        [*(f"pets/{name}" for name in _TWO), "test/cat/1.png"],
        "pets.zip holds several data sets: parts lie in the top folder and pets/",
    ),
    "parts that lie apart": (
        ["a/train/cat/1.png", "b/test/cat/1.png"],
        "a/train/ and b/test/ in pets.zip do not lie in one folder",
    ),
    "two names of the training part": (
        [*_TWO, "Train/cat/2.png"],
        "Train/ and train/ in pets.zip could each be the training part",
    ),
    "two names of the held-out part": (
        [*_TWO, "val/cat/2.png", "valid/dog/2.png"],
        "val/ and valid/ in pets.zip could each be the held-out part",
    ),
    "classes that differ in case": (
        [*_TWO, "train/CAT/2.png"],
        "the class folders 'CAT' and 'cat' under 'train/' in pets.zip differ only in case",
    ),
}


@pytest.mark.parametrize("what", list(_AMBIGUOUS))
def test_what_could_be_read_in_two_ways_is_refused_by_name(what: str) -> None:
    files, said = _AMBIGUOUS[what]
    with pytest.raises(BadDataset) as caught:
        _find(*files)
    assert caught.value.message == said
    assert caught.value.hint


_LABELS = ["cat", "Dog", "caf\u00e9", "STRASSE", "test"]
_ROOTS = ["", "pets/", "train/", "test/", "data set/Val/", "\u00e9/"]
_OTHERS = {
    "README.md": "it lies outside",
    "{root}{train}/labels.csv": "it lies in no class folder",
    "{root}{train}/{train_label}/notes.txt": "it is not an image",
    "{root}{train}/{train_label}/._1.png": "it is hidden",
    "{root}{test}/{test_label}/.hidden/1.png": "it is hidden",
    "{root}unlabelled/1.png": "it lies outside",
    "__MACOSX/{train}/{train_label}/1.png": "it is hidden",
    "{root}old/train/cat/1.png": "it lies outside",
}
_SPELLINGS = {
    "as it is": str,
    "large": str.upper,
    "small": str.lower,
    "split accents": lambda label: unicodedata.normalize("NFD", label),
}
_Tree = tuple[dict[str, bytes], dict[tuple[str, str], int], dict[str, str]]


@st.composite
def _trees(draw: st.DrawFn) -> _Tree:
    """Draw a data set as people make them: its files, the images that a person counts, and what is not read and why."""
    root = draw(st.sampled_from(_ROOTS))
    labels = _LABELS[: draw(st.integers(2, len(_LABELS)))]
    folders = draw(
        st.sampled_from(
            [
                {"train": "train", "test": "test"},
                {"train": "Train", "test": "VALID"},
                {"train": "training", "test": "test", "held_out": "val"},
                {"train": "train", "test": "Test", "held_out": "validation"},
            ]
        )
    )
    files: dict[str, bytes] = {}
    counts: dict[tuple[str, str], int] = {}
    written = {"root": root}
    for part, folder in folders.items():
        spell = _SPELLINGS[draw(st.sampled_from(list(_SPELLINGS)))]
        names = draw(st.sampled_from([["1.png"], ["1.png", "2.PNG", "3"], ["deep/1.jfif", "deep/train/x.gif"]]))
        for label in labels:
            files |= {f"{root}{folder}/{spell(label)}/{name}": _PICTURE for name in names}
            counts[part, label.casefold()] = len(names)
        written |= {part: folder, f"{part}_label": spell(labels[0])}
    unread = {}
    for pattern in draw(st.lists(st.sampled_from(list(_OTHERS)), unique=True)):
        name = pattern.format(**written)
        unread[unicodedata.normalize("NFC", name)] = _OTHERS[pattern]
        files[name] = b"hello" if name.endswith((".txt", ".md", ".csv")) else _PICTURE
    return files, counts, unread


@settings(max_examples=40)
@given(tree=_trees(), how=st.sampled_from(["zip", "tar"]))
def test_the_images_counted_are_those_that_a_person_counts(tree: _Tree, how: str) -> None:
    files, counts, unread = tree
    survey = Survey()
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(write(files, Path(folder), how), survey)
        images = list(ImageReader(source, survey).images())
    assert {(place.part, place.label.casefold()): count for place, count in survey.counts.items()} == counts
    assert len(images) + survey.unread == len(files)
    reasons = {file.name: file.reason for file in survey.unread_files}
    assert set(reasons) == set(unread)
    assert all(reasons[name].startswith(reason) for name, reason in unread.items())


_NAMES = st.sampled_from(["train", "test", "val", "Train", "valid", "cat", "dog", "Cat", "x"])
_PATHS = st.tuples(st.lists(_NAMES, max_size=4), st.sampled_from(["1.png", "2.png", "notes.txt"])).map(
    lambda path: "/".join([*path[0], path[1]])
)


@settings(max_examples=200)
@given(st.sets(_PATHS, max_size=14))
@example({*_TWO})
@example({*_TWO, *(f"x/{name}" for name in _TWO)})
def test_any_tree_is_read_in_the_one_way_or_refused_with_its_folders_named(files: set[str]) -> None:
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    try:
        layout = find_layout(sorted(files), (), "pets.zip")
    except BadDataset as error:
        refusal = error.message
        layout = None
    if layout is None:
        parts = {folder for folder in folders if folder.rpartition("/")[2].casefold() in PART_NAMES}
        names_a_folder = any(f"{folder}/" in refusal or f"'{folder}'" in refusal for folder in folders)
        assert names_a_folder or (refusal == "there is no folder 'train/' in pets.zip" and not parts)
        return
    top = f"{layout.root}/" if layout.root else ""
    for name in files:
        place = layout.place(name)
        if isinstance(place, Place):
            # Each image lies where it is said to, so none can count twice.
            assert name.casefold().startswith(f"{top}{layout.folders[place.part]}/{place.label}/".casefold())
    # No other folder could have been meant: whatever else is whole lies inside this one.
    for folder in ["", *folders]:
        children = [other for other in folders if other.rpartition("/")[0] == folder]
        kinds = {
            PART_NAMES[name]
            for other in children
            if (name := other.rpartition("/")[2].casefold()) in PART_NAMES and _is_part(other, files)
        }
        if "train" in kinds and kinds & {"test", "val"}:
            assert f"{folder}/".startswith(top) or not top
    # The parts are the only ones of their kind in the root.
    for part in layout.folders.values():
        kind = PART_NAMES[part.casefold()]
        alike = [
            other
            for other in folders
            if other.rpartition("/")[0] == layout.root and PART_NAMES.get(other.rpartition("/")[2].casefold()) == kind
        ]
        assert len([other for other in alike if _is_part(other, files)]) <= 1


def _is_part(folder: str, files: set[str]) -> bool:
    """Whether images lie in class folders below a folder."""
    return any(
        name.startswith(f"{folder}/") and "/" in name.removeprefix(f"{folder}/") and name.endswith(".png")
        for name in files
    )


def test_accents_are_matched_however_they_are_encoded(tmp_path: Path) -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    for how in ("folder", "tar", "zip"):
        files = {
            f"{part}/{label}/1.png": _PICTURE
            for part, label in (("train", composed), ("test", split), ("train", "dog"), ("test", "dog"))
        }
        (tmp_path / how).mkdir()
        survey = Survey()
        source = open_source(write(files, tmp_path / how, how), survey)
        list(ImageReader(source, survey).images())
        assert survey.counts[Place("train", composed)] == survey.counts[Place("test", composed)] == 1
        twice = {**files, f"train/{split}/1.png": _PICTURE}
        (tmp_path / f"{how}-twice").mkdir()
        with pytest.raises(BadDataset, match="occurs twice"):
            open_source(write(twice, tmp_path / f"{how}-twice", how), Survey())
