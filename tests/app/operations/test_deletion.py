"""What grows has an end: rows go in batches, and what was kept for long enough goes at all."""

import threading
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import func, insert, select, update

from app.assets import uploads
from app.jobs import claims, leftovers, lifecycle
from app.operations import deletion
from app.operations.recount import correct
from app.platform.database import Deleted, now, seconds_from_now
from app.platform.ids import new_id
from app.projects import keys, totals, usage
from app.schemas.job_request import parse_request
from app.storage import LocalStore, StorageUnavailable
from app.tables import (
    ApiKey,
    Attempt,
    Delivery,
    Event,
    Job,
    JobLabel,
    Metric,
    Project,
    Table,
    Total,
    TotalChange,
    Upload,
    Webhook,
)
from tests.support.instance import DIGITS, add_key, add_project, calling
from tests.support.sql_statements import sent

SPEC = parse_request(DIGITS | {"metadata": {"team": "x"}})


def turn(database):
    return deletion.Round(database, threading.Event())


def count(database, table, *where):
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where))


def ended(database, project, *, events=0, steps=0):
    """A cancelled job with a history."""
    with database.writing() as session:
        job_id = lifecycle.create(session, project.id, SPEC).job.id
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        lifecycle.ask(session, job_id, "cancel")
        claims.hand_back(session, held)
        if events:
            rows = [{"job_id": job_id, "seq": 100 + seq, "type": "phase", "data": {}} for seq in range(events)]
            session.execute(insert(Event), rows)
        if steps:
            step = {"job_id": job_id, "attempt": 1, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.1, "counts": {}}
            session.execute(insert(Metric), [step | {"step": number, "norm": None} for number in range(steps)])
    return job_id


def test_a_job_with_a_long_history_is_gone_at_once_and_its_rows_in_batches(api, database, project, monkeypatch):
    monkeypatch.setattr(leftovers, "BATCH", 10)
    job_id = ended(database, project, events=35, steps=35)
    before = api.get("/usage").json()
    assert api.delete(f"/jobs/{job_id}").status_code == 204
    assert api.get(f"/jobs/{job_id}").status_code == 404
    assert api.post(f"/jobs/{job_id}/retry").status_code == 404
    assert api.get("/jobs").json()["data"] == []
    assert api.get("/jobs", params={"metadata": "team=x", "status": "cancelled"}).json()["data"] == []
    assert count(database, Event) > 30
    with sent(database) as statements:
        deletion.delete_jobs(turn(database))
    assert sum("DELETE FROM events" in text for text, _ in statements) >= 4
    assert [count(database, table) for table in (Job, Event, Metric, Attempt, JobLabel)] == [0] * 5
    after = api.get("/usage").json()
    assert (after["worker_seconds"], after["stored_bytes"]) == (before["worker_seconds"], 0)
    assert after["jobs"] == {}


def test_no_batch_deletes_more_than_it_may(database, project, monkeypatch):
    monkeypatch.setattr(leftovers, "BATCH", 10)
    job_id = ended(database, project, events=25)
    with database.writing() as session:
        lifecycle.remove(session, job_id)
    left = []
    while True:
        left.append(count(database, Event))
        with database.writing() as session:
            if not leftovers.delete_some(session, job_id):
                break
    assert all(before - after <= 10 for before, after in pairwise(left))
    assert count(database, Job) == 0


def test_a_key_that_was_used_for_a_deleted_job_can_be_used_again(api, database, monkeypatch):
    monkeypatch.setattr(leftovers, "BATCH", 0)
    again = {"Idempotency-Key": "a"}
    first = api.post("/jobs", json=DIGITS, headers=again).json()["id"]
    api.post(f"/jobs/{first}/cancel")
    retried = api.post(f"/jobs/{first}/retry").json()["id"]
    api.post(f"/jobs/{retried}/cancel")
    assert api.delete(f"/jobs/{retried}").status_code == 204
    assert api.post(f"/jobs/{first}/retry").json()["id"] != retried
    for job in api.get("/jobs").json()["data"]:
        api.post(f"{job['links']['self']}/cancel")
    assert api.delete(f"/jobs/{first}").status_code == 204
    assert api.post("/jobs", json=DIGITS, headers=again).json()["id"] != first


def test_a_chain_of_retries_is_looked_through_in_a_few_statements(database, project):
    with database.writing() as session:
        first = lifecycle.create(session, project.id, SPEC).job
        row = {column.key: getattr(first, column.key) for column in Job.__table__.columns}
        ids = [first.id, *(new_id("job") for _ in range(1200))]
        chain = pairwise(ids)
        ends = {"status": "cancelled", "finished_at": row["created_at"]}
        session.execute(insert(Job), [row | ends | {"id": each, "retry_of": before} for before, each in chain])
        session.execute(update(Job).where(Job.id == first.id).values(**ends))
    with sent(database) as statements, database.writing() as session:
        lifecycle.remove(session, first.id)
    assert len(statements) < 50
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == ids[1]).values(retry_of=None))
        unfinished = lifecycle.create(session, project.id, SPEC, retry_of=ids[-1]).job.id
        with pytest.raises(lifecycle.assets.InUse, match=unfinished):
            lifecycle.remove(session, ids[1])


def test_the_history_of_a_job_that_ended_long_ago_is_deleted_and_the_job_stays(api, database, project):
    old, new = ended(database, project, events=5, steps=5), ended(database, project, events=5, steps=5)
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == old).values(history_ends_at=seconds_from_now(-1)))
    deletion.forget_history(turn(database))
    assert [count(database, table, table.job_id == old) for table in (Event, Metric, Attempt)] == [0, 0, 1]
    assert count(database, Event, Event.job_id == new) > 5
    assert api.get(f"/jobs/{old}").json()["status"] == "cancelled"
    assert api.get(f"/jobs/{old}/events").json()["data"] == []


def test_keys_that_are_invalid_for_long_are_deleted_unless_they_have_made_others(database, project):
    with database.writing() as session:
        made = {name: keys.new_key(session, project, name=name)[0] for name in ("old", "parent", "new", "expired")}
        child = keys.new_key(session, project, name="child", created_by=made["parent"].id)[0].id
        long_ago = seconds_from_now(-91 * 24 * 3600)
        for name in ("old", "parent"):
            session.execute(update(ApiKey).where(ApiKey.id == made[name].id).values(revoked_at=long_ago))
        session.execute(update(ApiKey).where(ApiKey.id == made["expired"].id).values(expires_at=long_ago))
        session.execute(update(ApiKey).where(ApiKey.id == made["new"].id).values(revoked_at=now()))
    deletion.forget_keys(turn(database))
    with database.reading() as session:
        assert set(session.scalars(select(ApiKey.id))) == {made["parent"].id, made["new"].id, child}


def test_a_webhook_keeps_its_latest_deliveries(database, project, monkeypatch):
    monkeypatch.setattr(deletion, "DELIVERIES_PER_WEBHOOK", 3)
    with database.writing() as session:
        common = {"project_id": project.id, "events": [], "description": "", "secret": "x"}
        session.execute(insert(Webhook), [common | {"id": f"whk_{each}", "url": each} for each in "ab"])
        rows = [
            {"id": f"dlv_{place:02}", "webhook_id": "whk_a", "type": "x", "payload": "{}"}
            | {"status": "pending" if place == 0 else "succeeded", "finished_at": None}
            for place in range(8)
        ]
        session.execute(insert(Delivery), rows)
    deletion.forget_deliveries(turn(database))
    with database.reading() as session:
        left = session.scalars(select(Delivery.id).order_by(Delivery.id)).all()
    assert left == ["dlv_00", "dlv_05", "dlv_06", "dlv_07"], "one that is to be sent stays"


def uploaded(database, project, number):
    with database.writing() as session:
        for _ in range(number):
            file = {"filename": "x", "size": 1, "sha256": "0" * 64, "purpose": "model", "part_size": 1}
            uploads.abort(session, uploads.create(session, project.id, **file, seconds=60).id)
        session.execute(update(Upload).values(ended_at=seconds_from_now(-3600)))


class Failing(LocalStore):
    """A store that cannot delete the objects of one project, and notes whose it has deleted."""

    def __init__(self, folder, project_id):
        super().__init__(folder)
        self.asked = []
        self._fails = project_id

    def delete(self, key):
        self.asked.append(key.split("/")[1])
        if self.asked[-1] == self._fails:
            raise StorageUnavailable("no")
        super().delete(key)


def test_a_backlog_of_one_project_delays_no_other(settings, database, project, monkeypatch):
    monkeypatch.setattr(uploads, "_SWEPT_AT_ONCE", 2)
    other, third = add_project(database), add_project(database)
    for each, number in ((project, 20), (other, 2), (third, 1)):
        uploaded(database, each, number)
    store = Failing(settings.objects_dir, third.id)
    with pytest.raises(StorageUnavailable):
        uploads.sweep(database, store)
    assert count(database, Upload, Upload.swept_at.is_(None)) == 1, "one project's failure stops no other"
    turns = list(dict.fromkeys(store.asked[:12]))
    assert other.id in turns, "within the first turns of each"


def test_uploads_that_ended_long_ago_are_deleted_once_swept(database, project):
    uploaded(database, project, 3)
    with database.writing() as session:
        ids = session.scalars(select(Upload.id).order_by(Upload.id)).all()
        for upload_id, days in zip(ids, (31, 1), strict=False):
            swept = update(Upload).where(Upload.id == upload_id)
            session.execute(swept.values(swept_at=seconds_from_now(-timedelta(days=days).total_seconds())))
    deletion.forget_uploads(turn(database))
    with database.reading() as session:
        assert session.scalars(select(Upload.id).order_by(Upload.id)).all() == list(ids[1:])


def test_a_project_is_deleted_with_all_it_has_once_that_is_confirmed(api, url, settings, database, project):
    other = add_project(database)
    with calling(url, add_key(database, other)) as theirs:
        job = theirs.post("/jobs", json=DIGITS).json()["id"]
        theirs.post("/uploads", json={"filename": "x", "bytes": 5, "sha256": "0" * 64, "purpose": "model"})
        refused = api.delete(f"/projects/{other.id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "project_not_empty")
        assert "1 unfinished jobs, 1 uploads, 1 valid keys" in refused.json()["detail"]
        assert api.delete(f"/projects/{other.id}", params={"confirm": True}).status_code == 204
        assert theirs.get(f"/jobs/{job}").status_code == 401
    assert api.get(f"/projects/{other.id}").status_code == 404
    assert other.id not in [each["id"] for each in api.get("/projects").json()["data"]]
    with database.writing() as session, pytest.raises(Deleted):
        lifecycle.create(session, other.id, SPEC)
    store = LocalStore(settings.objects_dir)
    for _ in range(2):
        with database.writing() as session:
            session.execute(update(Upload).values(ended_at=seconds_from_now(-3600)))
        uploads.sweep(database, store)
        deletion.delete_projects(turn(database), store)
    for table in Table.metadata.sorted_tables:
        if "project_id" in table.columns and table.name != "audit":
            assert count(database, table, table.c.project_id == other.id) == 0, table.name
    assert count(database, Project) == 1
    assert api.post("/jobs", json=DIGITS).status_code == 201


def test_a_key_cannot_delete_its_own_project_and_an_empty_one_goes_unconfirmed(api, database, project):
    own = api.delete(f"/projects/{project.id}", params={"confirm": True})
    assert (own.status_code, own.json()["code"]) == (409, "own_project")
    empty = api.post("/projects", json={"name": "x"}).json()["id"]
    assert api.delete(f"/projects/{empty}").status_code == 204
    assert api.delete(f"/projects/{empty}").status_code == 404


def test_folding_leaves_every_total_as_it_was(database, project):
    ended(database, project)
    ended(database, project)
    before = read(database, project)
    deletion.fold_totals(turn(database))
    assert count(database, TotalChange) == 0
    ended(database, project)
    after = read(database, project)
    deletion.fold_totals(turn(database))
    assert read(database, project) == pytest.approx(after)
    assert {key for key in before if key.what == "jobs"} == {key for key in after if key.what == "jobs"}
    assert count(database, Total) == len(read(database, project))


def read(database, project):
    with database.reading() as session:
        what = session.scalars(select(Total.what).union(select(TotalChange.what))).all()
        return totals.read(session, *what, project_ids=[project.id, totals.INSTANCE])


def test_a_total_that_is_wrong_is_corrected_and_told(database, project):
    ended(database, project)
    assert correct(database) == "All totals are right.\n"
    with database.writing() as session:
        totals.count_bytes(session, project.id, 77)
    assert f"{project.id} stored_bytes: -77" in correct(database)
    with database.reading() as session:
        assert usage.stored_bytes(session, project.id) == 0
