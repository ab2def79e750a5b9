"""The audit trail: one row per act, in the transaction of the act, with the caller's key; and nothing changes a row."""

from contextlib import contextmanager
from functools import partial
from typing import get_args

import pytest
from sqlalchemy import delete, event, func, select, update
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from app.jobs import claims, lifecycle
from app.projects import audit
from app.schemas import Failure
from app.schemas.job_request import parse_request
from app.tables import ApiKey, Audit, Dataset, Delivery, Job, Model, Upload, Webhook
from tests.support.instance import DIGITS
from tests.support.sending import announce, send_all
from tests.support.uploading import send

HOOK = {"url": "https://93.184.216.34/hook", "events": ["job.succeeded"]}
FAILURE = Failure(code="c", message="m", hint="h", field=None, retryable=False)


class Prepared:
    """What an act needs to be there."""

    def __init__(self, api, database, project):
        self.api, self.database, self.project = api, database, project

    def job(self, status="queued"):
        """A job without a request, in this status."""
        with self.database.writing() as session:
            job = lifecycle.create(session, self.project.id, parse_request(DIGITS)).job
            if status != "queued":
                held = claims.claim(
                    session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5)
                )
            if status == "failed":
                claims.fail(session, held, FAILURE)
            if status == "paused":
                lifecycle.ask(session, job.id, "pause")
                claims.hand_back(session, held)
        return f"/jobs/{job.id}"

    def upload(self, purpose="dataset"):
        return send(self.api, b"some bytes", "file", purpose)

    def sent(self):
        return f"/uploads/{send_all(self.api, b'zip')['id']}"

    def dataset(self):
        return f"/datasets/{self.api.post('/datasets', json={'upload': self.upload(), 'name': 'birds'}).json()['id']}"

    def model(self):
        body = {"upload": self.upload("model"), "name": "mine"}
        return f"/models/{self.api.post('/models', json=body).json()['id']}"

    def webhook(self):
        return f"/webhooks/{self.api.post('/webhooks', json=HOOK).json()['id']}"

    def delivery(self):
        webhook = self.webhook()
        return f"{webhook}/deliveries/{self.api.post(f'{webhook}/test').json()['id']}"

    def other_project(self):
        return f"/projects/{self.api.post('/projects', json={'name': 'other'}).json()['id']}"

    def key(self):
        return f"/api_keys/{self.api.post('/api_keys', json={'name': 'k', 'scopes': ['jobs:read']}).json()['id']}"


# Each prepares, and returns the request of the act.
ACTS = {
    "job.create": lambda at: ("POST", "/jobs", DIGITS),
    "job.pause": lambda at: ("POST", f"{at.job('running')}/pause", None),
    "job.resume": lambda at: ("POST", f"{at.job('paused')}/resume", None),
    "job.stop": lambda at: ("POST", f"{at.job('running')}/stop", None),
    "job.cancel": lambda at: ("POST", f"{at.job()}/cancel", None),
    "job.delete": lambda at: ("DELETE", at.job("failed"), None),
    "upload.create": lambda at: (
        "POST",
        "/uploads",
        {"filename": "x", "bytes": 1, "sha256": "0" * 64, "purpose": "model"},
    ),
    "upload.complete": lambda at: ("POST", f"{at.sent()}/complete", None),
    "upload.abort": lambda at: ("POST", f"/uploads/{announce(at.api, b'zip')['id']}/abort", None),
    "dataset.create": lambda at: ("POST", "/datasets", {"upload": at.upload(), "name": "birds"}),
    "dataset.delete": lambda at: ("DELETE", at.dataset(), None),
    "model.create": lambda at: ("POST", "/models", {"upload": at.upload("model"), "name": "mine"}),
    "model.delete": lambda at: ("DELETE", at.model(), None),
    "webhook.create": lambda at: ("POST", "/webhooks", HOOK),
    "webhook.change": lambda at: ("PATCH", at.webhook(), {"description": "d"}),
    "webhook.rotate_secret": lambda at: ("POST", f"{at.webhook()}/rotate_secret", None),
    "webhook.test": lambda at: ("POST", f"{at.webhook()}/test", None),
    "webhook.redeliver": lambda at: ("POST", f"{at.delivery()}/redeliver", None),
    "webhook.delete": lambda at: ("DELETE", at.webhook(), None),
    "key.create": lambda at: ("POST", "/api_keys", {"name": "k", "scopes": ["jobs:read"]}),
    "key.revoke": lambda at: ("DELETE", at.key(), None),
    "project.create": lambda at: ("POST", "/projects", {"name": "other"}),
    "project.delete": lambda at: ("DELETE", at.other_project(), None),
    "project.change": lambda at: ("PATCH", f"/projects/{at.project.id}", {"quotas": {"keys": 7}}),
}


@contextmanager
def broken_commits():
    """Let every commit of this process fail."""

    def fail(_):
        raise OperationalError("COMMIT", {}, OSError("disk full"))

    event.listen(Session, "before_commit", fail)
    try:
        yield
    finally:
        event.remove(Session, "before_commit", fail)


@pytest.fixture
def prepared(api, database, project):
    return Prepared(api, database, project)


def rows(database):
    with database.reading() as session:
        return session.scalars(select(Audit).order_by(Audit.id)).all()


def test_every_kind_of_act_is_tried_here():
    assert set(ACTS) == set(get_args(audit.Act))


@pytest.mark.parametrize("act", ACTS)
def test_an_act_writes_one_row_in_its_transaction_and_none_where_that_fails(act, prepared, api, database):
    me = api.get("/me").json()
    method, path, body = ACTS[act](prepared)
    request = partial(api.request, method, path, **({"json": body} if body else {}))
    before = {row.id for row in rows(database)}
    with broken_commits():
        assert request().status_code == 503
    assert {row.id for row in rows(database)} == before
    answer = request()
    assert answer.is_success, answer.text
    (row,) = [each for each in rows(database) if each.id not in before]
    assert (row.action, row.actor) == (act, me["key"]["id"])
    assert row.project_id == me["project"]["id"] or act in ("project.create", "project.delete")
    made = answer.json()["id"] if act.endswith(".create") else path.split("/")[2]
    assert row.subject_id == made
    assert "secret" not in str(row.details)


def test_a_retry_is_the_creation_of_a_job_that_names_the_first(prepared, api, database):
    first = prepared.job("failed")
    retry = api.post(f"{first}/retry").json()["id"]
    assert (rows(database)[-1].subject_id, rows(database)[-1].details) == (retry, {"retry_of": first.split("/")[2]})


def test_asking_again_is_no_act(prepared, api, database):
    job = prepared.job()
    api.post(f"{job}/cancel")
    count = len(rows(database))
    assert api.post(f"{job}/cancel").status_code == 202
    assert len(rows(database)) == count


def test_rows_say_whose_key_made_and_changed_them(prepared, api, database):
    key = api.get("/me").json()["key"]["id"]
    job = api.post("/jobs", json=DIGITS).json()["id"]
    api.post(f"/jobs/{job}/cancel")
    prepared.dataset()
    prepared.model()
    api.patch(prepared.webhook(), json={"description": "d"})
    api.delete(prepared.key())
    with database.reading() as session:
        for table in (Job, Dataset, Model, Upload, Webhook):
            assert set(session.scalars(select(table.created_by))) == {key}, table
        assert session.scalars(select(Job.updated_by)).one() == session.scalars(select(Webhook.updated_by)).one() == key
        assert set(session.scalars(select(ApiKey.revoked_by))) == {None, key}
        assert session.scalar(select(func.count()).select_from(Delivery)) == 0


@pytest.mark.parametrize("change", [update(Audit).values(actor="me"), delete(Audit)])
def test_the_database_refuses_to_change_the_audit_trail(change, prepared, database):
    prepared.job()
    before = len(rows(database))
    with pytest.raises(DatabaseError, match="append-only"), database.writing() as session:
        session.execute(change)
    assert len(rows(database)) == before > 0


def test_what_the_service_does_on_its_own_has_no_actor(prepared, database):
    prepared.job()
    assert rows(database)[-1].actor is None
