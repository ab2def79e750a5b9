"""A folder packed for an upload: the same bytes each time, and what a run would read."""

from pathlib import Path

import pytest

from client.errors import CannotRead
from client.packing import pack
from client.resources.assets import _name_after
from core import data
from tests.support.images import two_classes, write


def test_the_same_files_are_packed_into_the_same_bytes_and_read_as_the_folder_is(tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder = write(two_classes() | {".hidden/x": b"x", "notes.txt": b"hello"}, tmp_path / name, "folder")
        assert pack(folder, tmp_path / f"{name}.zip") == 9
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()
    assert data.load("mine", tmp_path / "one.zip").sha256() == data.load("mine", tmp_path / "one").sha256()


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    folder = write(two_classes(), tmp_path / "birds", "folder")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "9.png").write_bytes(two_classes()["train/cat/0.png"])
    (folder / "train" / "cat" / "linked").symlink_to(tmp_path / "more")
    (folder / "train" / "cat" / "loop").symlink_to(folder)
    pack(folder, tmp_path / "birds.zip")
    assert len(data.load("mine", tmp_path / "birds.zip").train) == 7


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRead, match="holds no files"):
        pack(tmp_path, tmp_path / ".a.zip")


@pytest.mark.parametrize("name", ["birds", "birds.zip", "birds.tar.gz", "birds.parquet"])
def test_a_data_set_is_named_after_its_file_or_folder(name: str) -> None:
    assert _name_after(Path("some") / name) == "birds"
