"""Zip archives of strangers, one trick at a time: each is refused by its name, before it costs anything."""

import io
import stat
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from core.data.safe_zip import Archive, Caps, ends_as_archive
from core.schema.errors import BadDataset

FILES = {"train/cat/1.png": b"one", "train/dog/1.png": b"two"}


def pack(path: Path, files: dict[str | zipfile.ZipInfo, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def patched(path: Path, *, entry: int, at: int, content: bytes) -> Path:
    """Overwrite bytes of the n-th entry of the directory."""
    whole = bytearray(path.read_bytes())
    place = -1
    for _ in range(entry + 1):
        place = whole.index(b"PK\x01\x02", place + 1)
    whole[place + at : place + at + len(content)] = content
    path.write_bytes(whole)
    return path


def read_all(path: Path, caps: Caps | None = None) -> dict[str, bytes]:
    with Archive(path, caps or Caps()) as archive:
        return {member.name: archive.read(member) for member in archive.members if not member.is_folder}


def test_an_honest_archive_is_read_whole_with_folders_and_either_method(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert read_all(pack(tmp_path / "a.zip", {"train/": b"", **FILES}, method=method)) == FILES


def test_names_are_composed_so_that_two_machines_spell_a_class_alike(tmp_path: Path) -> None:
    assert list(read_all(pack(tmp_path / "a.zip", {"train/cafe\u0301/./1.png": b"x"}))) == ["train/caf\u00e9/1.png"]


def test_a_backslash_is_a_separator_as_windows_programs_write_it(tmp_path: Path) -> None:
    files = {"train\\": b"", "train\\cat\\": b"", **{name.replace("/", "\\"): part for name, part in FILES.items()}}
    assert read_all(pack(tmp_path / "a.zip", files)) == FILES


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"/train/cat/1.png": b"x"}, "is absolute"),
        ({"train/../../cat/1.png": b"x"}, "can lead out of the archive"),
        ({"C:/train/cat/1.png": b"x"}, "begins with the letter of a drive"),
        ({"C:\\train\\cat\\1.png": b"x"}, "begins with the letter of a drive"),
        ({"\\\\server\\cat\\1.png": b"x"}, "is absolute"),
        ({"train\\..\\..\\1.png": b"x"}, "can lead out of the archive"),
        ({"train\\cat\\1.png": b"x", "train/cat/1.png": b"y"}, "occurs twice"),
        ({"train/cat/\x1b[2J.png": b"x"}, "has control characters"),
        ({f"train/cat/{'x' * 1024}.png": b"x"}, "more than 1024 characters"),
        ({"train/cat/1.png": b"x", "train/CAT/1.png": b"y"}, "differs only in case"),
        ({"train/\u00e9/1.png": b"x", "train/e\u0301/1.png": b"y"}, "occurs twice"),
        ({"train/cat/more.zip": b"x"}, "archive inside"),
        ({"train/cat/more.tar.gz": b"x"}, "archive inside"),
        ({special("train/cat/1.png", stat.S_IFLNK | 0o777): b"/etc/passwd"}, "link or a device"),
        ({special("train/cat/1.png", stat.S_IFCHR | 0o600): b""}, "link or a device"),
        ({special("train/cat/1.png", stat.S_IFIFO | 0o600): b""}, "link or a device"),
        ({"train/cat/1.png": bytes(2**24)}, "200 times its size"),
    ],
)
def test_what_no_honest_archive_holds_is_refused(
    files: dict[str | zipfile.ZipInfo, bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadDataset, match=said) as caught:
        read_all(pack(tmp_path / "a.zip", files))
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/cat/1.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("train/cat/1.png", b"y")
    with pytest.raises(BadDataset, match="occurs twice"):
        read_all(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("at", "content", "said"),
    [
        (8, struct.pack("<H", 1), "encrypted"),
        (10, struct.pack("<H", zipfile.ZIP_LZMA), "unsupported compression"),
        (42, struct.pack("<I", 0), "overlaps"),
        (20, struct.pack("<I", 2**20), "overlaps the directory"),
        (0, b"XX", "directory"),
        (28, struct.pack("<H", 60_000), "directory"),
    ],
)
def test_a_directory_that_says_something_odd_is_refused(at: int, content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=said):
        read_all(patched(pack(tmp_path / "a.zip", dict(FILES)), entry=1, at=at, content=content))


def test_an_archive_that_lies_about_a_size_is_cut_off_where_it_lies(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"train/cat/1.png": bytes(2**26)})
    patched(path, entry=0, at=24, content=struct.pack("<I", 100))
    tracemalloc.start()
    with pytest.raises(BadDataset, match=r"cannot read train/cat/1\.png"):
        read_all(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        (Caps(members=1), "more than 1 files"),
        (Caps(member_bytes=2), "larger than"),
        (Caps(total_bytes=5), "in total"),
    ],
)
def test_caps_hold(caps: Caps, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=said):
        read_all(pack(tmp_path / "a.zip", dict(FILES)), caps)


def test_a_million_members_are_refused_before_an_object_is_made_of_each(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<3H", 1, 0, 0) + bytes(12) + b"a"
    directory = entry * 10**6
    end = b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 10**6, 10**6, len(directory), 0)
    end += b"PK\x06\x07" + struct.pack("<IQI", 0, len(directory), 1)
    end += b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(directory + end)
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(BadDataset, match="more than 200,000 files"):
        Archive(path, Caps())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert time.process_time() - began < 5


def test_an_archive_in_the_format_for_many_members_is_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", dict(FILES))
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<2I", whole, end + 12)
    more = b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 2, 2, size, offset)
    more += b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    path.write_bytes(whole[:end] + more + whole[end:])
    assert read_all(path) == FILES
    path.write_bytes(whole[:end] + more.replace(b"PK\x06\x06", b"PK\x06\x08") + whole[end:])
    with pytest.raises(BadDataset, match="directory is damaged"):
        read_all(path)


@pytest.mark.parametrize("before", [b"", b"GIF89a"])
def test_what_comes_before_or_after_an_archive_is_refused(before: bytes, tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.zip", dict(FILES)).read_bytes()
    (tmp_path / "a.zip").write_bytes(before + whole + (b"" if before else b"more"))
    with pytest.raises(BadDataset, match=r"cannot read a\.zip"):
        read_all(tmp_path / "a.zip")


def test_a_file_of_another_kind_that_ends_as_an_archive_is_told(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a", b"b")
    assert ends_as_archive(b"\x89PNG..." + whole.getvalue())
    assert not ends_as_archive(whole.getvalue() + b"more")
    assert not ends_as_archive(b"\x89PNG...PK\x05\x06")
