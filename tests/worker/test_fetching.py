"""What comes out of the object store: whole or not at all, patiently, and never longer than the run is to last."""

import hashlib
import threading
import time

import pytest

from app.storage import LocalStore, StorageUnavailable
from worker import fetching
from worker.fetching import Postponed, go_on, patiently, whole

CONTENT = b"weights" * 1000


@pytest.fixture
def store(tmp_path):
    made = LocalStore(tmp_path / "objects")
    (tmp_path / "file").write_bytes(CONTENT)
    made.put("key", tmp_path / "file")
    return made


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """No pause that a test would feel."""
    monkeypatch.setattr(fetching, "PAUSES", (0.01, 0.01))


def read(store, sha256):
    return b"".join(whole("key", sha256, store))


def test_an_object_comes_whole_or_not_at_all(store):
    assert read(store, hashlib.sha256(CONTENT).hexdigest()) == CONTENT
    with pytest.raises(StorageUnavailable, match="key: it is not what was stored"):
        read(store, "0" * 64)


def test_what_is_not_there_yet_is_fetched_when_it_is(store, tmp_path):
    tries = []

    def fetch():
        tries.append(len(tries))
        if len(tries) == 3:
            store.put("late", tmp_path / "file")
        return b"".join(whole("late", hashlib.sha256(CONTENT).hexdigest(), store))

    assert patiently(fetch, threading.Event()) == CONTENT
    assert tries == [0, 1, 2]


def test_what_never_comes_is_told_after_the_last_try(store):
    with pytest.raises(StorageUnavailable):
        patiently(lambda: b"".join(whole("none", "0" * 64, store)), threading.Event())


def test_a_run_that_is_to_end_waits_for_no_file(store, monkeypatch):
    monkeypatch.setattr(fetching, "PAUSES", (60,))
    ending = threading.Event()
    go_on(ending)
    threading.Timer(0.05, ending.set).start()
    began = time.monotonic()
    with pytest.raises(Postponed):
        patiently(lambda: b"".join(whole("none", "0" * 64, store)), ending)
    assert time.monotonic() - began < 30
    with pytest.raises(Postponed):
        go_on(ending)
