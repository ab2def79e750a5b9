"""Uploads through the API: exact parts, in any order, as often as need be; nothing is there before it is verified."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
import pytest
from sqlalchemy import update

from app.assets import uploads
from app.main import MAX_BODY_BYTES
from app.operations.maintenance import MaintenanceContext, clear_uploads_away, verify_uploads
from app.platform.database import seconds_from_now
from app.platform.queue import open_doorbell
from app.projects import quotas, usage
from app.routes import uploads as routes
from app.storage import NotStored, open_store
from app.tables import Project, Task, Upload
from tests.app.http.test_problems import check
from tests.support.instance import add_key, add_project, calling, new_instance
from tests.support.sending import announce, ask, cut, finish, send, send_all, sha256_of

PART = 5 * 1024**2
LARGE = os.urandom(2 * PART + 1000)
SMALL = b"birds" * 100


@pytest.fixture
def store(settings):
    with closing(open_store(settings)) as store:
        yield store


@pytest.fixture
def context(settings, database, store):
    return MaintenanceContext(settings, database, store, open_doorbell(settings))


def row(database, upload):
    with database.reading() as session:
        return session.get_one(Upload, upload["id"])


def change(database, upload, **values):
    with database.writing() as session:
        session.execute(update(Upload).where(Upload.id == upload["id"]).values(values))


def status(api, upload):
    return api.get(f"/uploads/{upload['id']}").json()["status"]


def test_a_file_arrives_whole_from_parts_in_any_order(api, database, store):
    upload = announce(api, LARGE)
    assert (upload["status"], upload["parts"], upload["part_bytes"]) == ("pending", 3, PART)
    parts = cut(LARGE, upload)
    for number, received in ((3, [3]), (1, [1, 3]), (1, [1, 3]), (2, [1, 2, 3])):
        assert send(api, upload, number, parts[number]).json() == {
            "number": number,
            "bytes": len(parts[number]),
            "sha256": sha256_of(parts[number]),
        }
        # What a client needs to go on after a break.
        assert api.get(f"/uploads/{upload['id']}").json()["received"] == received
    with pytest.raises(NotStored):
        store.size(uploads.key(row(database, upload)))
    for _ in range(2):
        done = finish(api, upload).json()
        assert (done["status"], done["failure"], done["received"]) == ("completed", None, None)
    assert b"".join(store.read(uploads.key(row(database, upload)))) == LARGE
    assert list(store.keys("quarantine")) == []
    assert not [path for path in store.folder.rglob("*") if path.is_file() and path.name == "00001"]


def test_a_part_needs_no_asking_where_it_comes_here(api):
    upload = announce(api, SMALL)
    assert api.put(f"/v1/uploads/{upload['id']}/parts/1", content=SMALL).status_code == 200
    assert finish(api, upload).json()["status"] == "completed"


def test_a_part_of_another_length_or_content_is_refused(api):
    upload = announce(api, SMALL)
    path = f"/uploads/{upload['id']}/parts/1"
    check(api.put(path, content=SMALL[:-1]), 422, "upload_damaged", remedy="500 bytes")
    check(api.put(path, content=SMALL + b"!"), 422, "upload_damaged", remedy="500 bytes")
    check(api.put(path, content=iter([SMALL, b"!"])), 413, "body_too_large", remedy="500 bytes")
    check(api.put(path, content=iter([SMALL[:-1]])), 422, "upload_damaged", remedy="the body 499")
    wrong = {"X-Checksum-Sha256": sha256_of(b"other")}
    check(api.put(path, content=SMALL, headers=wrong), 422, "upload_damaged", remedy="send it again")
    check(api.put(f"/uploads/{upload['id']}/parts/2", content=SMALL), 404, "not_found", remedy="parts 1 to 1")
    check(api.put(f"/uploads/{upload['id']}/parts/x", content=SMALL), 422, "invalid_parameter", "/number")
    assert api.get(f"/uploads/{upload['id']}").json()["received"] == []


def test_a_part_larger_than_any_other_body_is_taken_and_no_larger_one_elsewhere(api, settings):
    assert MAX_BODY_BYTES < PART
    upload = announce(api, LARGE)
    assert send(api, upload, 1, LARGE[:PART]).status_code == 200
    check(api.post(f"/uploads/{upload['id']}/parts", json={"x": "x" * 2_000_000}), 413, "body_too_large")


def test_an_upload_that_is_not_whole_names_what_is_missing(api):
    upload = announce(api, LARGE)
    send(api, upload, 2, cut(LARGE, upload)[2])
    problem = check(finish(api, upload), 409, "upload_incomplete", "/parts/1", "2 of 3 parts")
    assert [error["pointer"] for error in problem["errors"]] == ["/parts/1", "/parts/3"]
    assert status(api, upload) == "pending"


def test_a_file_that_is_not_what_was_announced_is_aborted_and_its_room_is_free(api, database, store):
    upload = announce(api, SMALL, sha256=sha256_of(b"other"))
    assert api.put(f"/uploads/{upload['id']}/parts/1", content=SMALL).status_code == 200
    check(finish(api, upload), 422, "upload_damaged", remedy=sha256_of(SMALL))
    shown = api.get(f"/uploads/{upload['id']}").json()
    assert (shown["status"], shown["failure"]["code"]) == ("aborted", "upload_damaged")
    assert list(store.keys("quarantine")) == list(store.keys("uploads")) == []
    with database.reading() as session:
        assert usage.uploaded_bytes(session, row(database, upload).project_id) == 0


def test_concurrent_uploads_never_exceed_the_stored_bytes_quota(api, database, project, settings):
    with database.writing() as session:
        quotas.change(session, session.get_one(Project, project.id), {"stored_bytes": 100}, settings)
    body = {"filename": "x", "bytes": 40, "sha256": "0" * 64, "purpose": "model"}
    with ThreadPoolExecutor(8) as pool:
        posted = list(pool.map(lambda _: api.post("/uploads", json=body).status_code, range(8)))
    assert (posted.count(201), posted.count(403)) == (2, 6)


def test_room_that_is_given_up_can_be_taken_again(api):
    most = 100 * 1024**3
    first = announce(api, SMALL, bytes=most)
    body = {"filename": "x", "bytes": 1, "sha256": "0" * 64, "purpose": "model"}
    check(api.post("/uploads", json=body), 403, "quota_exceeded", remedy=f"limit of stored_bytes is {most}")
    for _ in range(2):
        assert api.post(f"/uploads/{first['id']}/abort").json()["status"] == "aborted"
    assert api.post("/uploads", json=body).status_code == 201


def test_what_has_ended_takes_no_parts_and_cannot_end_otherwise(api):
    done, given_up = send_all(api, SMALL), announce(api, SMALL)
    finish(api, done)
    api.post(f"/uploads/{given_up['id']}/abort")
    for upload, how in ((done, "completed"), (given_up, "aborted")):
        path = f"/uploads/{upload['id']}/parts"
        check(api.put(f"{path}/1", content=SMALL), 409, "upload_ended", remedy=how)
        body = {"parts": [{"number": 1, "sha256": sha256_of(SMALL)}]}
        check(api.post(path, json=body), 409, "upload_ended", remedy=how)
    check(api.post(f"/uploads/{done['id']}/abort"), 409, "upload_ended")
    check(finish(api, given_up), 409, "upload_ended")


def test_an_upload_that_is_left_alone_is_given_up_with_all_that_has_come(api, database, context, store):
    upload = announce(api, LARGE)
    send(api, upload, 1, cut(LARGE, upload)[1])
    clear_uploads_away(context)
    assert status(api, upload) == "pending"
    change(database, upload, expires_at=seconds_from_now(-1))
    clear_uploads_away(context)
    assert status(api, upload) == "expired"
    with database.reading() as session:
        assert usage.uploaded_bytes(session, row(database, upload).project_id) == 0
    change(database, upload, ended_at=seconds_from_now(-2000))
    clear_uploads_away(context)
    assert row(database, upload).swept_at is not None
    assert not [path for path in store.folder.rglob("*") if path.is_file()]


def test_a_sign_of_life_keeps_an_upload(api, database, context):
    upload = announce(api, LARGE)
    change(database, upload, expires_at=seconds_from_now(1))
    ask(api, upload, 1, cut(LARGE, upload)[1])
    time.sleep(1.1)
    clear_uploads_away(context)
    assert status(api, upload) == "pending"


def test_a_large_file_is_verified_after_the_answer(api, settings, database, monkeypatch):
    monkeypatch.setattr(routes, "_AT_ONCE", 10)
    upload = send_all(api, SMALL)
    for _ in range(2):
        assert finish(api, upload).json()["status"] == "verifying"
    verify_uploads(MaintenanceContext(settings, database, open_store(settings), open_doorbell(settings)))
    assert status(api, upload) == "completed"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def quiet(request, tmp_path_factory):
    """A database and a store at which no process is at work."""
    folder = tmp_path_factory.mktemp("quiet")
    chosen = {}
    if request.param == "postgres":
        chosen["database_url"] = request.getfixturevalue("postgres_server").create_database("quiet")
    with new_instance(folder, **chosen) as (settings, database):
        yield database, open_store(settings)


@pytest.fixture
def verifying(quiet, tmp_path):
    """An upload, all of which has come, that waits for its verification."""
    database, store = quiet
    project = add_project(database)
    with database.writing() as session:
        upload = uploads.create(
            session,
            project.id,
            filename="x",
            size=len(LARGE),
            sha256=sha256_of(LARGE),
            purpose="model",
            part_size=PART,
            seconds=60,
        )
    multipart_id = uploads.ensure_multipart(upload, database, store)
    for number, part in cut(LARGE, {"part_bytes": PART, "parts": 3}).items():
        (tmp_path / "part").write_bytes(part)
        store.multipart.upload_part(uploads.quarantine(upload), multipart_id, number, tmp_path / "part")
    with database.reading() as session:
        upload = session.get_one(Upload, upload.id)
    upload = uploads.complete(upload, database, store, seconds=60)
    assert upload.status == "verifying"
    return upload


def lease(database, upload, seconds):
    """Have a process hold the verification for so long."""
    with database.writing() as session:
        held = {"status": "running", "lease_until": seconds_from_now(seconds)}
        session.execute(update(Task).where(Task.subject_id == upload.id).values(held))


def again(database, upload):
    return row(database, {"id": upload.id})


def test_an_upload_whose_verifier_has_died_is_verified_by_another(quiet, verifying):
    database, store = quiet
    lease(database, verifying, 60)
    uploads.verify(verifying.id, database, store)
    assert again(database, verifying).status == "verifying"
    lease(database, verifying, -1)
    uploads.verify(verifying.id, database, store)
    assert again(database, verifying).status == "completed"


def test_verification_resumes_after_a_verifier_dies_at_its_last_step(quiet, verifying, monkeypatch):
    database, store = quiet
    monkeypatch.setattr(uploads, "_move", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        uploads.verify(verifying.id, database, store)
    monkeypatch.undo()
    lease(database, verifying, -1)
    uploads.verify(verifying.id, database, store)
    assert again(database, verifying).status == "completed"
    assert b"".join(store.read(uploads.key(verifying))) == LARGE
    with pytest.raises(NotStored):
        store.size(uploads.quarantine(verifying))


def test_many_verifiers_at_once_make_one_object(quiet, verifying):
    database, store = quiet
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: uploads.verify(verifying.id, database, store), range(4)))
    assert again(database, verifying).status == "completed"
    assert b"".join(store.read(uploads.key(verifying))) == LARGE


def test_an_upload_aborted_while_it_is_verified_leaves_nothing(quiet, verifying, monkeypatch):
    database, store = quiet
    copy = store.copy

    def copy_then_abort(key, target):
        copy(key, target)
        with database.writing() as session:
            assert uploads.abort(session, verifying.id).status == "aborted"

    monkeypatch.setattr(store, "copy", copy_then_abort)
    uploads.verify(verifying.id, database, store)
    assert again(database, verifying).status == "aborted"
    for key in (uploads.quarantine(verifying), uploads.key(verifying)):
        with pytest.raises(NotStored):
            store.size(key)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"bytes": 0}, "/bytes"),
        ({"bytes": "10"}, "/bytes"),
        ({"bytes": 2**60}, "/bytes"),
        ({"sha256": "x"}, "/sha256"),
        ({"purpose": "virus"}, "/purpose"),
        ({"filename": ""}, "/filename"),
        ({"filename": "a\nb"}, "/filename"),
        ({"size": 1}, "/size"),
    ],
)
def test_an_announcement_that_is_wrong_is_told_by_field(api, body, pointer):
    right = {"filename": "x", "bytes": 1, "sha256": "0" * 64, "purpose": "model"}
    check(api.post("/uploads", json={**right, **body}), 422, "invalid_body", pointer)
    assert api.get("/uploads").json()["data"] == []


def test_parts_that_there_are_not_are_told(api):
    upload = announce(api, LARGE)
    body = {"parts": [{"number": 1, "sha256": "0" * 64}, {"number": 4, "sha256": "0" * 64}]}
    check(api.post(f"/uploads/{upload['id']}/parts", json=body), 422, "invalid_body", "/parts/1/number", "1 to 3")
    only = announce(api, SMALL)
    body = {"parts": [{"number": 1, "sha256": "0" * 64}]}
    check(api.post(f"/uploads/{only['id']}/parts", json=body), 422, "invalid_body", "/parts/0/sha256", "whole file")


def test_uploads_are_listed_by_what_they_are(api):
    first, second = announce(api, SMALL), announce(api, LARGE, purpose="model")
    assert [each["id"] for each in api.get("/uploads").json()["data"]] == [second["id"], first["id"]]
    for query in ({"purpose": "dataset"}, {"sha256": sha256_of(SMALL)}, {"order": "asc", "limit": 1}):
        assert [each["id"] for each in api.get("/uploads", params=query).json()["data"]] == [first["id"]]
    check(api.get("/uploads", params={"sha": "x"}), 422, "invalid_parameter", "/sha")


def test_a_key_without_the_scope_sends_nothing(url, database, project):
    with calling(url, add_key(database, project, "jobs:read", "jobs:write")) as api:
        check(api.get("/uploads"), 403, "forbidden", remedy="files:write")
    with httpx2.Client(base_url=url) as stranger:
        check(stranger.put("/uploads/upl_1/parts/1", content=SMALL), 401, "unauthorized")
