"""The cache holds complete copies, fetches each object once, and removes unused copies when room is short."""

import fcntl
import hashlib
import os

import pytest

from app.storage import LocalStore, StorageUnavailable
from worker.files.cache import Cache


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache", max_bytes=250)


def put(store, tmp_path, letter, size=100):
    content = letter * size
    (tmp_path / "file").write_bytes(content)
    key = f"things/{letter.decode()}"
    store.put(key, tmp_path / "file")
    return key, hashlib.sha256(content).hexdigest(), size


def names(tmp_path):
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_an_object_is_fetched_once_and_then_read_from_the_cache(store, cache, tmp_path):
    thing = put(store, tmp_path, b"a")
    beats = []
    with cache.hold(*thing, store, check=lambda: beats.append(1)) as path:
        assert path.read_bytes() == b"a" * 100
    store.delete("things/a")
    with cache.hold(*thing, store) as path:
        assert path.read_bytes() == b"a" * 100
    assert beats


def test_an_object_with_another_hash_is_neither_returned_nor_cached(store, cache, tmp_path):
    key, _, size = put(store, tmp_path, b"a")
    with (
        pytest.raises(StorageUnavailable, match="differs from what was stored"),
        cache.hold(key, "0" * 64, size, store),
    ):
        pass
    assert names(tmp_path) == set()


def test_a_file_that_was_cut_off_is_fetched_again(store, cache, tmp_path):
    thing = put(store, tmp_path, b"a")
    with cache.hold(*thing, store) as path:
        pass
    path.write_bytes(b"a" * 50)
    with cache.hold(*thing, store) as path:
        assert path.read_bytes() == b"a" * 100


def test_a_copy_that_was_changed_is_fetched_again_and_never_given_out(store, cache, tmp_path):
    thing = put(store, tmp_path, b"a")
    with cache.hold(*thing, store) as path:
        inode = path.stat().st_ino
    path.write_bytes(b"a" * 50 + b"b" + b"a" * 49)
    # While another job of this machine holds the damaged copy.
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with cache.hold(*thing, store) as path:
            assert path.read_bytes() == b"a" * 100
    assert path.stat().st_ino != inode
    assert names(tmp_path) == {thing[1]}


def test_a_changed_copy_of_an_object_that_is_gone_is_not_given_out(store, cache, tmp_path):
    thing = put(store, tmp_path, b"a")
    with cache.hold(*thing, store) as path:
        pass
    path.write_bytes(b"b" * 100)
    store.delete("things/a")
    with pytest.raises(StorageUnavailable), cache.hold(*thing, store):
        raise AssertionError("a damaged copy was given out")


def test_a_disk_that_damages_every_copy_is_told_of(store, cache, tmp_path, monkeypatch):
    thing = put(store, tmp_path, b"a")
    monkeypatch.setattr("worker.files.cache._hash", lambda file, check: "0" * 64)
    with pytest.raises(OSError, match="read from disk differs from what was written"), cache.hold(*thing, store):
        raise AssertionError("a damaged copy was given out")


def test_verifying_a_copy_ends_when_the_work_is_to_end(store, cache, tmp_path):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    thing = put(store, tmp_path, b"a")
    with cache.hold(*thing, store):
        pass
    with pytest.raises(Stop), cache.hold(*thing, store, check=stop):
        raise AssertionError("it went on")


def test_the_least_recently_used_copy_makes_room(store, cache, tmp_path):
    first, second, third = (put(store, tmp_path, letter) for letter in (b"a", b"b", b"c"))
    for age, thing in ((300, first), (200, second)):
        with cache.hold(*thing, store) as path:
            pass
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    # Held again, the first is the younger.
    with cache.hold(*first, store):
        pass
    with cache.hold(*third, store):
        pass
    assert names(tmp_path) == {first[1], third[1]}


def test_a_copy_in_use_is_never_removed(store, cache, tmp_path):
    things = [put(store, tmp_path, letter) for letter in (b"a", b"b", b"c", b"d")]
    with cache.hold(*things[0], store) as held, cache.hold(*things[1], store):
        for thing in things[2:]:
            with cache.hold(*thing, store):
                assert held.read_bytes() == b"a" * 100
        # Of the others there is room for none.
        assert names(tmp_path) == {things[0][1], things[1][1], things[3][1]}


def test_a_partial_copy_of_a_killed_process_is_removed_after_a_day(store, cache, tmp_path):
    left = tmp_path / "cache" / ".half"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    with cache.hold(*put(store, tmp_path, b"a"), store):
        pass
    assert not left.exists()
