"""Uploads to a real S3 server, straight and through the API, over a good way and over a bad one."""

import hashlib
import os
import time
from contextlib import closing, contextmanager

import boto3
import httpx2
import pytest
from sqlalchemy import select, update

from app.assets import uploads
from app.operations.maintenance import MaintenanceContext, clear_uploads_away
from app.platform.database import seconds_from_now
from app.platform.queue import open_doorbell
from app.platform.settings import Settings
from app.projects import usage
from app.storage import StorageUnavailable, open_store, s3
from app.tables import Upload
from client import Refused, Temper
from tests.support.faulty import faulty
from tests.support.instance import add_key, calling, serving
from tests.support.sending import announce, ask, cut, finish, send, sha256_of

PART = 5 * 1024**2
LARGE = os.urandom(PART + 1000)
SMALL = b"birds" * 100


@pytest.fixture(scope="module")
def bucket(s3_server):
    return s3_server.create_bucket()


@pytest.fixture
def on_s3(settings, bucket):
    """Settings for this bucket; a change goes on top."""
    return lambda **changes: Settings(**{**settings.model_dump(), **bucket, **changes})


@contextmanager
def running(settings, database, project):
    """An API on S3 and a client of it, with the context of its periodic_tasks."""
    key = add_key(database, project)
    with (
        closing(open_store(settings)) as store,
        serving(settings, database) as url,
        calling(url, key) as api,
        Temper(url, key, patience=30) as temper,
    ):
        yield api, temper, MaintenanceContext(settings, database, store, open_doorbell(settings))


def row(database, upload_id):
    with database.reading() as session:
        return session.get_one(Upload, upload_id)


def room_taken(database, project):
    with database.reading() as session:
        return usage.uploaded_bytes(session, project.id)


def multipart_uploads(settings):
    """Multipart uploads that the bucket knows of."""
    session = boto3.session.Session(
        aws_access_key_id=settings.s3_access_key_id.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        region_name=settings.s3_region,
    )
    with closing(session.client("s3", endpoint_url=settings.s3_endpoint_url)) as client:
        return client.list_multipart_uploads(Bucket=settings.s3_bucket).get("Uploads", [])


@pytest.mark.parametrize(("storage_proxy", "content"), [(False, SMALL), (False, LARGE), (True, LARGE)])
def test_a_file_goes_to_the_bucket_whole(on_s3, database, project, tmp_path, storage_proxy, content):
    (tmp_path / "birds.zip").write_bytes(content)
    with running(on_s3(storage_proxy=storage_proxy), database, project) as (api, temper, context):
        upload = temper.uploads.send(tmp_path / "birds.zip", purpose="dataset")
        assert (upload.status, upload.filename, upload.sha256) == ("completed", "birds.zip", sha256_of(content))
        stored = row(database, upload.id)
        assert b"".join(context.store.read(uploads.key(stored))) == content
        assert list(context.store.keys(f"quarantine/{project.id}")) == []
        probe = announce(api, b"x")
        goes_to_the_bucket = ask(api, probe, 1, b"x")["url"].startswith(context.settings.s3_endpoint_url)
        assert goes_to_the_bucket is not storage_proxy


def test_an_upload_that_broke_off_goes_on_where_it_broke(on_s3, database, project, tmp_path):
    (tmp_path / "birds.zip").write_bytes(LARGE)
    with running(on_s3(), database, project) as (api, temper, _):
        upload = announce(api, LARGE)
        assert send(api, upload, 2, cut(LARGE, upload)[2]).status_code == 200
        told = []
        birds = tmp_path / "birds.zip"
        done = temper.uploads.send(birds, purpose="dataset", on_progress=lambda *each: told.append(each))
        assert (done.id, done.status) == (upload["id"], "completed")
        # One part was missing, and one was sent.
        assert [each for each in told if each[0] == "sending"] == [("sending", len(LARGE), len(LARGE))]


def test_a_file_that_is_not_what_it_was_is_refused_by_the_bucket_or_by_the_service(on_s3, database, project):
    with running(on_s3(), database, project) as (api, _, context):
        upload = announce(api, LARGE)
        parts = cut(LARGE, upload)
        request = ask(api, upload, 1, parts[1])
        other = parts[1][:-1] + bytes([parts[1][-1] ^ 1])
        assert 400 <= httpx2.put(request["url"], content=other, headers=request["headers"]).status_code < 500
        # What is announced part by part, and is another file as a whole, is found out at the end.
        for number, part in {**parts, 1: other}.items():
            assert send(api, upload, number, part).status_code == 200
        assert finish(api, upload).json()["code"] == "upload_damaged"
        assert room_taken(database, project) == 0
        assert list(context.store.keys(f"uploads/{project.id}")) == []
        assert list(context.store.keys(f"quarantine/{project.id}")) == []


def test_a_signed_request_is_good_for_its_part_once_and_for_its_time(on_s3, database, project, monkeypatch):
    with running(on_s3(), database, project) as (api, _, context):
        first, second = announce(api, SMALL), announce(api, SMALL, filename="other")
        request = ask(api, first, 1, SMALL)
        key = uploads.quarantine(row(database, second["id"]))
        elsewhere = request["url"].replace(uploads.quarantine(row(database, first["id"])), key)
        assert httpx2.put(elsewhere, content=SMALL, headers=request["headers"]).status_code == 403
        for changed, content in (({"Content-Type": "text/html"}, SMALL), ({"Content-Length": "1"}, SMALL[:1])):
            headers = {**request["headers"], **changed}
            assert 400 <= httpx2.put(request["url"], content=content, headers=headers).status_code < 500
        assert httpx2.put(request["url"], content=SMALL, headers=request["headers"]).status_code == 200
        assert httpx2.put(request["url"], content=SMALL, headers=request["headers"]).status_code == 412
        monkeypatch.setattr(s3, "_UPLOAD_SECONDS", 1)
        brief = ask(api, second, 1, SMALL)
        time.sleep(2.1)
        assert httpx2.put(brief["url"], content=SMALL, headers=brief["headers"]).status_code == 403
        assert room_taken(database, project) == 2 * len(SMALL)
        for upload in (first, second):
            assert api.post(f"/uploads/{upload['id']}/abort").status_code == 200
        assert room_taken(database, project) == 0
        assert list(context.store.keys(f"quarantine/{project.id}")) == []


def test_an_upload_that_is_left_alone_leaves_nothing_in_the_bucket(on_s3, database, project):
    with running(on_s3(), database, project) as (api, _, context):
        upload, single = announce(api, LARGE), announce(api, SMALL)
        assert send(api, upload, 1, cut(LARGE, upload)[1]).status_code == 200
        late = ask(api, single, 1, SMALL)
        assert len(multipart_uploads(context.settings)) == 1
        with database.writing() as session:
            session.execute(update(Upload).values(expires_at=seconds_from_now(-1)))
        clear_uploads_away(context)
        assert room_taken(database, project) == 0
        # Its request is good for a while yet, and what it brings goes as well.
        assert httpx2.put(late["url"], content=SMALL, headers=late["headers"]).status_code == 200
        with database.writing() as session:
            session.execute(update(Upload).values(ended_at=seconds_from_now(-2000)))
        clear_uploads_away(context)
        assert multipart_uploads(context.settings) == []
        assert list(context.store.keys(f"quarantine/{project.id}")) == []
        with database.reading() as session:
            assert set(session.scalars(select(Upload.status))) == {"expired"}


def test_a_store_failing_a_third_of_the_time_gets_every_file_whole(on_s3, database, project, tmp_path, monkeypatch):
    monkeypatch.setattr("app.storage.S3_TIMEOUT_SECONDS", 1)
    good = on_s3()
    with faulty(good.s3_endpoint_url) as (url, way):
        bad = on_s3(s3_endpoint_url=url)
        with running(bad, database, project) as (_, temper, context):
            files = {f"{project.id}/{number}": os.urandom(1000) for number in range(4)}
            for key, content in files.items():
                (tmp_path / "file").write_bytes(content)
                context.store.put(key, tmp_path / "file")
            (tmp_path / "birds.zip").write_bytes(LARGE)
            upload = temper.uploads.send(tmp_path / "birds.zip", purpose="dataset")
            assert sum(way.faults.values()) > 5, way.faults
            way.share = 0
            for key, content in files.items():
                assert b"".join(context.store.read(key)) == content
            assert list(context.store.keys(project.id)) == sorted(files)
            key = uploads.key(row(database, upload.id))
            assert hashlib.sha256(b"".join(context.store.read(key))).hexdigest() == upload.sha256
            assert list(context.store.keys(f"uploads/{project.id}")) == [key]


def test_a_store_that_is_away_is_told_and_the_room_is_given_back_all_the_same(
    on_s3, database, project, tmp_path, monkeypatch
):
    monkeypatch.setattr("app.storage.S3_TIMEOUT_SECONDS", 1)
    with faulty(on_s3().s3_endpoint_url, share=0) as (url, way):
        settings = on_s3(s3_endpoint_url=url)
        with running(settings, database, project) as (api, _, context):
            upload = announce(api, SMALL)
            assert send(api, upload, 1, SMALL).status_code == 200
            way.is_away = True
            answer = finish(api, upload)
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert api.post(f"/uploads/{upload['id']}/abort").json()["status"] == "aborted"
            assert room_taken(database, project) == 0
            with pytest.raises(StorageUnavailable):
                context.store.size("x")
            way.is_away = False
            with database.writing() as session:
                session.execute(update(Upload).values(ended_at=seconds_from_now(-2000)))
            clear_uploads_away(context)
            assert list(context.store.keys(f"quarantine/{project.id}")) == []


def test_a_file_for_which_there_is_no_room_is_refused_before_a_byte_is_sent(on_s3, database, project, tmp_path):
    (tmp_path / "birds.zip").write_bytes(SMALL)
    with (
        running(on_s3(quota_stored_bytes=100), database, project) as (_, temper, _),
        pytest.raises(Refused, match="limit of stored_bytes is 100"),
    ):
        temper.uploads.send(tmp_path / "birds.zip", purpose="dataset")
