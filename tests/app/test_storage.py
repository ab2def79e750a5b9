"""The object store: created once, read in parts, nothing outside its folder, and a clear word when it is full."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.storage import LocalStore, StorageFull, StorageUnavailable

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def files(store):
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_what_was_put_is_read_whole_and_in_parts(store, source):
    store.put("jobs/job_1/attempts/1/a.safetensors", source)
    key = "jobs/job_1/attempts/1/a.safetensors"
    assert store.size(key) == len(CONTENT)
    assert b"".join(store.read(key)) == CONTENT
    assert b"".join(store.read(key, start=10, stop=2_000_000)) == CONTENT[10:2_000_000]
    assert b"".join(store.read(key, start=2_999_999)) == CONTENT[-1:]


def test_an_object_is_never_overwritten(store, source, tmp_path):
    store.put("a", source)
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        store.put("a", tmp_path / "other")
    assert b"".join(store.read("a")) == CONTENT
    assert len(files(store)) == 1


def test_of_many_writers_of_one_key_one_wins_whole(store, tmp_path):
    barrier = threading.Barrier(8)

    def put(number):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * 100_000)
        barrier.wait()
        try:
            store.put("k", path)
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(put, range(8))) == 1
    content = b"".join(store.read("k"))
    assert content == content[:1] * 100_000


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".hidden", "a/.b", "a\0b", "a/", "a b", "-a"]
)
def test_a_key_cannot_leave_the_folder(store, source, key):
    for use in (lambda: store.put(key, source), lambda: store.size(key), lambda: list(store.read(key))):
        with pytest.raises(ValueError, match="not an object key"):
            use()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageUnavailable)]
)
def test_a_disk_that_takes_no_more_is_named_and_leaves_nothing_half_written(store, source, monkeypatch, number, error):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error, match=os.strerror(number)):
        store.put("a/b", source)
    assert files(store) == []


def test_what_is_not_there_is_unavailable(store):
    with pytest.raises(StorageUnavailable, match="a/b"):
        store.size("a/b")
    with pytest.raises(StorageUnavailable, match="a/b"):
        list(store.read("a/b"))


def test_deleting_a_prefix_takes_what_is_under_it_and_no_more(store, source):
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a"):
        store.put(key, source)
    store.delete("jobs/1")
    store.delete("jobs/1")
    assert files(store) == [store.folder / "jobs/10/a"]
