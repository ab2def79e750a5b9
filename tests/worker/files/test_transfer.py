"""Objects come from the object store complete or not at all; reads are retried until the run is to end."""

import hashlib
import threading
import time

import pytest
from tenacity import wait_fixed

from app.assets.registry import Registry
from app.storage import LocalStore, StorageUnavailable
from worker.files import transfer
from worker.files.cache import read_verified
from worker.files.transfer import fetch_with_retries
from worker.lease import Lease, StopRequested
from worker.workplace import Workplace

CONTENT = b"weights" * 1000


@pytest.fixture
def store(tmp_path):
    made = LocalStore(tmp_path / "objects")
    (tmp_path / "file").write_bytes(CONTENT)
    made.put("key", tmp_path / "file")
    return made


class Kept(Lease):
    """A lease on nothing."""

    def _contact(self, *, renews):
        pass


@pytest.fixture
def lease(settings, database, store):
    registry = Registry(settings.models_dir, settings.datasets_dir)
    return Kept("lease", Workplace(settings, database, store, registry))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """No pause that a test would feel."""
    monkeypatch.setattr(transfer, "FETCH_WAIT", wait_fixed(0.01))


def read(store, sha256):
    return b"".join(read_verified("key", sha256, store))


def test_an_object_with_another_hash_is_an_error(store):
    assert read(store, hashlib.sha256(CONTENT).hexdigest()) == CONTENT
    with pytest.raises(StorageUnavailable, match="key: its content differs from what was stored"):
        read(store, "0" * 64)


def test_a_fetch_is_retried_until_the_object_is_there(store, lease, tmp_path):
    tries = []

    def fetch():
        tries.append(len(tries))
        if len(tries) == 3:
            store.put("late", tmp_path / "file")
        return b"".join(read_verified("late", hashlib.sha256(CONTENT).hexdigest(), store))

    assert fetch_with_retries(fetch, lease) == CONTENT
    assert tries == [0, 1, 2]


def test_a_fetch_raises_the_error_of_its_last_try(store, lease):
    with pytest.raises(StorageUnavailable):
        fetch_with_retries(lambda: b"".join(read_verified("none", "0" * 64, store)), lease)


def test_a_fetch_ends_at_once_when_the_run_is_to_end(store, lease, monkeypatch):
    monkeypatch.setattr(transfer, "FETCH_WAIT", wait_fixed(60))
    lease.check()
    threading.Timer(0.05, lease.ending.set).start()
    began = time.monotonic()
    with pytest.raises(StopRequested):
        fetch_with_retries(lambda: b"".join(read_verified("none", "0" * 64, store)), lease)
    assert time.monotonic() - began < 30
    with pytest.raises(StopRequested):
        lease.check()
