"""The object stores keep one contract, in a folder and in a real S3 server: created once, read in parts, nothing
outside, and a clear word when they are full or away."""

import errno
import hashlib
import os
import re
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from app.platform.settings import Settings
from app.storage import LocalStore, NotStored, StorageFull, StorageUnavailable, open_store, s3
from tests.support.faulty import faulty

CONTENT = os.urandom(3_000_000)
PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def bucket(s3_server):
    """Settings that lead to a bucket. Tests share it, so each has keys of its own."""
    return s3_server.create_bucket()


@pytest.fixture(scope="module")
def signing(bucket):
    """A store whose clients come to it themselves."""
    store = open_store(Settings(**bucket))
    yield store
    store.close()


@pytest.fixture
def local(tmp_path):
    return LocalStore(tmp_path / "objects")


@pytest.fixture(params=["local", "signing"])
def store(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def at():
    """Where a test has its objects."""
    return secrets.token_hex(8)


@pytest.fixture
def source(tmp_path):
    return file(tmp_path, CONTENT)


def file(folder, content):
    path = folder / f"source-{hashlib.sha256(content).hexdigest()}"
    path.write_bytes(content)
    return path


def files(store):
    return [path for path in store.folder.rglob("*") if path.is_file()]


def content_of(store, key):
    return b"".join(store.read(key))


def test_what_was_put_is_read_whole_and_in_parts(store, source, at):
    key = f"{at}/job_1/attempts/1/a.safetensors"
    store.put(key, source)
    assert store.size(key) == len(CONTENT)
    assert content_of(store, key) == CONTENT
    assert b"".join(store.read(key, start=10, stop=2_000_000)) == CONTENT[10:2_000_000]
    assert b"".join(store.read(key, start=2_999_999)) == CONTENT[-1:]
    assert b"".join(store.read(key, start=3_000_000)) == b""


def test_an_empty_file_is_an_object_too(store, tmp_path, at):
    store.put(f"{at}/empty", file(tmp_path, b""))
    assert (store.size(f"{at}/empty"), content_of(store, f"{at}/empty")) == (0, b"")


def test_an_object_is_never_overwritten(store, source, tmp_path, at):
    store.put(f"{at}/a", source)
    for content in (b"other", CONTENT):
        with pytest.raises(FileExistsError):
            store.put(f"{at}/a", file(tmp_path, content))
    assert content_of(store, f"{at}/a") == CONTENT
    assert list(store.keys(f"{at}/a")) == []


def test_of_many_writers_of_one_key_one_wins_whole(store, tmp_path, at):
    for number in range(5):
        key = f"{at}/{number}"
        assert sum(put_at_once(store, key, tmp_path)) == 1
        content = content_of(store, key)
        assert content == content[:1] * 100_000


def put_at_once(store, key, tmp_path):
    """Let eight put something under a key at the same moment; for each, whether it was let."""
    barrier = threading.Barrier(8)

    def put(number):
        path = file(tmp_path, bytes([number]) * 100_000)
        barrier.wait()
        try:
            store.put(key, path)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(put, range(8)))


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", ".hidden", "a/.b", "a\0b", "a/", "a b", "-a", "a?b"]
)
def test_a_key_cannot_leave_the_store(store, source, key):
    for use in (
        lambda: store.put(key, source),
        lambda: store.size(key),
        lambda: list(store.read(key)),
        # No key at all stands for every key there.
        lambda: list(store.keys(key or "/")),
        lambda: store.delete(key),
        lambda: store.copy("a", key),
        lambda: store.multipart.create(key),
        lambda: store.presigner.download(key, file_name="x") if store.presigner else store.size(key),
    ):
        with pytest.raises(ValueError, match="not an object key"):
            use()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageUnavailable)]
)
def test_a_disk_that_takes_no_more_is_named_and_leaves_nothing_half_written(
    local, source, monkeypatch, number, error, at
):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error, match=os.strerror(number)):
        local.put(f"{at}/a/b", source)
    assert files(local) == []


def test_what_is_not_there_is_named(store, at):
    with pytest.raises(NotStored, match="a/b"):
        store.size(f"{at}/a/b")
    with pytest.raises(NotStored, match="a/b"):
        list(store.read(f"{at}/a/b"))
    with pytest.raises(NotStored, match="a/b"):
        store.copy(f"{at}/a/b", f"{at}/a/c")


def test_deleting_a_key_takes_it_and_what_is_under_it_and_no_more(store, tmp_path, at):
    small = file(tmp_path, b"small")
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a", "alone"):
        store.put(f"{at}/{key}", small)
    assert list(store.keys(f"{at}/jobs")) == [f"{at}/jobs/1/a", f"{at}/jobs/1/b/c", f"{at}/jobs/10/a"]
    store.multipart.create(f"{at}/gathered")
    everything = list(store.keys())
    assert [key for key in everything if at in key] == [f"{at}/alone", *store.keys(f"{at}/jobs")]
    for _ in range(2):
        store.delete(f"{at}/jobs/1")
        store.delete(f"{at}/alone")
    assert list(store.keys(f"{at}/jobs")) == [f"{at}/jobs/10/a"]
    assert list(store.keys(f"{at}/jobs/1")) == []
    with pytest.raises(StorageUnavailable):
        store.size(f"{at}/alone")


def test_a_copy_outlives_its_original(store, source, at):
    store.put(f"{at}/quarantine/x", source)
    for _ in range(2):
        store.copy(f"{at}/quarantine/x", f"{at}/uploads/x")
    store.delete(f"{at}/quarantine")
    assert content_of(store, f"{at}/uploads/x") == CONTENT


def test_parts_become_one_object_whatever_their_order(store, tmp_path, at):
    first, last = os.urandom(PART), b"the end"
    multipart_id = store.multipart.create(f"{at}/big")
    assert store.multipart.list_parts(f"{at}/big", multipart_id) == {}
    store.multipart.upload_part(f"{at}/big", multipart_id, 2, file(tmp_path, b"an earlier try"))
    if store.presigner:
        # Of two uploads of one part in one second SeaweedFS does not tell which was the later.
        time.sleep(1.1)
    for number, content in ((2, last), (1, first)):
        store.multipart.upload_part(f"{at}/big", multipart_id, number, file(tmp_path, content))
    assert store.multipart.list_parts(f"{at}/big", multipart_id) == {1: PART, 2: len(last)}
    with pytest.raises(StorageUnavailable):
        store.size(f"{at}/big")
    for _ in range(2):
        store.multipart.complete(f"{at}/big", multipart_id)
    assert content_of(store, f"{at}/big") == first + last


def test_a_part_that_is_sent_again_leaves_an_object_that_lasts(signing, tmp_path, at):
    content = os.urandom(PART)
    multipart_id = signing.multipart.create(f"{at}/big")
    for _ in range(3):
        signing.multipart.upload_part(f"{at}/big", multipart_id, 1, file(tmp_path, content))
    signing.multipart.complete(f"{at}/big", multipart_id)
    # SeaweedFS removes the bytes of uploads that it has no use for in the background, within two seconds, and reads
    # from a cache; a copy needs the bytes themselves.
    time.sleep(2.5)
    signing.copy(f"{at}/big", f"{at}/copy")
    assert content_of(signing, f"{at}/copy") == content


def test_completing_parts_survives_the_loss_of_the_answer(bucket, signing, tmp_path, at):
    multipart_id = signing.multipart.create(f"{at}/big")
    signing.multipart.upload_part(f"{at}/big", multipart_id, 1, file(tmp_path, b"some"))
    lost = iter(["500 after"])
    with faulty(bucket["s3_endpoint_url"]) as (url, way):
        way.next_fault = lambda what: next(lost, None) if what.startswith("POST") else None
        store = open_store(Settings(**{**bucket, "s3_endpoint_url": url}))
        store.multipart.complete(f"{at}/big", multipart_id)
        store.close()
    assert next(lost, None) is None
    assert content_of(signing, f"{at}/big") == b"some"


def test_parts_never_take_the_place_of_an_object(store, source, tmp_path, at):
    store.put(f"{at}/a", source)
    multipart_id = store.multipart.create(f"{at}/a")
    store.multipart.upload_part(f"{at}/a", multipart_id, 1, file(tmp_path, b"other"))
    with pytest.raises(FileExistsError):
        store.multipart.complete(f"{at}/a", multipart_id)
    assert content_of(store, f"{at}/a") == CONTENT


def test_parts_that_are_given_up_leave_nothing(store, tmp_path, at):
    multipart_id = store.multipart.create(f"{at}/a")
    store.multipart.upload_part(f"{at}/a", multipart_id, 1, file(tmp_path, b"some"))
    for _ in range(2):
        store.multipart.abort(f"{at}/a", multipart_id)
    assert store.multipart.list_parts(f"{at}/a", multipart_id) == {}
    with pytest.raises(StorageUnavailable):
        store.multipart.upload_part(f"{at}/a", multipart_id, 2, file(tmp_path, b"more"))
    with pytest.raises(StorageUnavailable):
        store.multipart.complete(f"{at}/a", multipart_id)


def test_a_file_larger_than_one_request_arrives_whole(signing, tmp_path, monkeypatch, at):
    monkeypatch.setattr(s3, "PART", PART)
    content = os.urandom(PART + 1_000_000)
    signing.put(f"{at}/large", file(tmp_path, content))
    assert content_of(signing, f"{at}/large") == content
    with pytest.raises(FileExistsError):
        signing.put(f"{at}/large", file(tmp_path, content))


def test_only_a_store_that_clients_can_reach_signs(local, bucket):
    proxied = open_store(Settings(**bucket, storage_proxy=True))
    for store in (local, proxied):
        assert store.presigner is None
        store.close()


def test_a_signed_download_gives_the_file_in_parts_and_by_its_name(signing, source, at):
    signing.put(f"{at}/a/b", source)
    url = signing.presigner.download(f"{at}/a/b", file_name="robust.safetensors").url
    whole = httpx2.get(url)
    assert whole.content == CONTENT
    assert whole.headers["content-disposition"] == 'attachment; filename="robust.safetensors"'
    part = httpx2.get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, CONTENT[5:10])


def test_a_signed_download_is_good_for_its_object_and_its_time_only(signing, source, monkeypatch, at):
    signing.put(f"{at}/a/b", source)
    signing.put(f"{at}/a/c", source)
    url = signing.presigner.download(f"{at}/a/b", file_name="x").url
    assert httpx2.get(url).status_code == 200
    assert int(re.search("X-Amz-Expires=([0-9]+)", url)[1]) <= 300
    assert httpx2.get(url.replace("/a/b?", "/a/c?")).status_code == 403
    assert httpx2.get(url.replace("filename%3D%22x", "filename%3D%22y")).status_code == 403
    assert httpx2.get(url.replace("X-Amz-Expires=300", "X-Amz-Expires=86400")).status_code == 403
    assert httpx2.get(url.partition("?")[0]).status_code in (400, 403)
    monkeypatch.setattr(s3, "_DOWNLOAD_SECONDS", 1)
    brief = signing.presigner.download(f"{at}/a/b", file_name="x").url
    time.sleep(2.1)
    assert httpx2.get(brief).status_code == 403


def test_a_wrong_secret_opens_nothing(bucket, signing, source, at):
    signing.put(f"{at}/a", source)
    store = open_store(Settings(**{**bucket, "s3_secret_access_key": "guessed"}))
    for use in (
        lambda: store.size(f"{at}/a"),
        lambda: content_of(store, f"{at}/a"),
        lambda: store.put(f"{at}/b", source),
    ):
        with pytest.raises(StorageUnavailable):
            use()
    assert httpx2.get(store.presigner.download(f"{at}/a", file_name="a").url).status_code == 403
    store.close()


def test_a_signed_upload_takes_exactly_what_was_signed(signing, at):
    content = b"x" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    request = signing.presigner.upload(f"{at}/q/1", size=1000, sha256=sha256)

    def put(content=content, url=request.url, **headers):
        return httpx2.put(url, content=content, headers={**request.headers, **headers}).status_code

    assert 400 <= put(content[:-1], **{"Content-Length": "999"}) < 500
    assert 400 <= put(b"y" * 1000) < 500
    assert 400 <= put(**{"Content-Type": "text/html"}) < 500
    assert 400 <= httpx2.put(request.url, content=content).status_code < 500
    assert 400 <= put(url=request.url.replace("/q/1?", "/q/2?")) < 500
    other = hashlib.sha256(b"y" * 1000).digest()
    assert 400 <= put(b"y" * 1000, **{"x-amz-checksum-sha256": s3._base64(other)}) < 500
    assert list(signing.keys(f"{at}/q")) == []
    assert put() == 200
    assert put() == 412
    assert content_of(signing, f"{at}/q/1") == content


def test_a_signed_part_takes_exactly_what_was_signed(signing, at):
    content = b"x" * 1000
    multipart_id = signing.multipart.create(f"{at}/q/1")
    request = signing.presigner.upload_part(
        f"{at}/q/1", multipart_id, 1, size=1000, sha256=hashlib.sha256(content).hexdigest()
    )

    def put(content=content, url=request.url, **headers):
        return httpx2.put(url, content=content, headers={**request.headers, **headers}).status_code

    assert 400 <= put(content[:-1], **{"Content-Length": "999"}) < 500
    assert 400 <= put(b"y" * 1000) < 500
    assert 400 <= put(url=request.url.replace("partNumber=1", "partNumber=2")) < 500
    assert signing.multipart.list_parts(f"{at}/q/1", multipart_id) == {}
    assert put() == 200
    signing.multipart.complete(f"{at}/q/1", multipart_id)
    assert content_of(signing, f"{at}/q/1") == content


def test_what_is_signed_names_the_address_that_clients_use(bucket, tmp_path, at):
    public = bucket["s3_endpoint_url"].replace("127.0.0.1", "localhost")
    store = open_store(Settings(**bucket, s3_public_endpoint_url=public))
    store.put(f"{at}/a", file(tmp_path, b"here"))
    url = store.presigner.download(f"{at}/a", file_name="a").url
    assert url.startswith(public)
    assert httpx2.get(url).content == b"here"
    assert httpx2.get(url.replace("localhost", "127.0.0.1")).status_code == 403
    store.close()
