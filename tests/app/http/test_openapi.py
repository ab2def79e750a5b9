"""The API keeps to its OpenAPI document, whatever it is asked: schemathesis makes requests for every operation, good
and bad, and each answer must be one that the document declares. A bad request must be refused.

The path parameters get examples of things that exist, so that requests get past "not found". No operation is left out.
Two things are out of reach here, for they do not end: an event stream, which `GET /jobs/{job_id}/events` is only where
the Accept header asks for one (test_event_stream.py does); and the wait for a job that does not end, so that
`GET /jobs/{job_id}` is asked for one that has ended.
"""

from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis
from schemathesis import checks
from schemathesis.core.failures import FailureGroup, as_reported_failure
from schemathesis.pytest.lazy import get_all_tests

from app.assets import uploads
from app.jobs import claims, ingest, lifecycle
from app.main import create_app
from app.platform.ids import new_id
from app.projects.keys import new_key
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Checkpoint, Dataset, Model
from app.webhooks import deliveries, subscriptions
from core.schema.events import Saved
from core.schema.report import Reports
from tests.support.instance import DIGITS, add_key, serving
from tests.support.sending import sha256_of

# In the same process the server, too, asks for random numbers, which Hypothesis takes for the test's.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
CONTENT = b"12345"
HOOK = "https://93.184.216.34/"
BODIES = {("post", "/jobs"): DIGITS, ("post", "/webhooks"): {"url": "https://93.184.216.35/"}}
"""Where only some values are right, which the document does not list."""
OTHER_JOBS = {
    ("get", "/jobs/{job_id}"): "ended",
    ("delete", "/jobs/{job_id}"): "ended",
    ("post", "/jobs/{job_id}/pause"): "running",
    ("post", "/jobs/{job_id}/stop"): "stopping",
}
"""Where an operation needs a job that is not waiting."""
NEVER_GRANTED = {
    "GET /jobs/{job_id}/report",
    "POST /uploads/{upload_id}/parts",
    "PUT /uploads/{upload_id}/parts/{number}",
    "POST /uploads/{upload_id}/complete",
    "POST /datasets",
    "POST /models",
    "GET /datasets/{dataset_id}/report",
    "GET /datasets/{dataset_id}/thumbnails/{number}",
    "GET /models/{model_id}/report",
    "GET /jobs/{job_id}/logs",
    "DELETE /projects/{project_id}",
}
"""What takes a file that is there, whole and inspected, or a report of one, or a project of others, which no document
can make up: the tests of uploads, files, jobs and deletion have the answers."""


def bounded(examples):
    return hypothesis(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def roomy(settings, database, monkeypatch):
    """The address of an API that nobody asks too much of."""
    roomy = settings.model_copy(update={"rate_limit": 10**6, "quota_queued_jobs": None})
    monkeypatch.setattr("app.webhooks.subscriptions.MAX_WEBHOOKS", 10**6)
    with serving(roomy, database) as url:
        yield url


@pytest.fixture
def ids(settings, database, project, tmp_path):
    """Something of each kind: path parameter -> id."""
    (tmp_path / "file").write_bytes(CONTENT)
    saved = Saved(kind="checkpoint", path="x", sha256=sha256_of(CONTENT), size=len(CONTENT), step=1, epoch=1.0)
    store = LocalStore(settings.objects_dir)
    with database.writing() as session:
        ended = lifecycle.create(session, project.id, parse_request(DIGITS)).job
        held = claims.claim(session, worker="w", lease_seconds=9, retry_policy=claims.RetryPolicy(max_crashes=5))
        key = f"{held.prefix}/checkpoint.safetensors"
        store.put(key, tmp_path / "file")
        ingest.save(session, held, saved, key=key)
        checkpoint = session.query(Checkpoint).one().id
        claims.succeed(session, held, Reports(before=None, after=None))
        running = lifecycle.create(session, project.id, parse_request(DIGITS)).job
        stopping = lifecycle.create(session, project.id, parse_request(DIGITS)).job
        for _ in range(2):
            claims.claim(session, worker="w", lease_seconds=3600, retry_policy=claims.RetryPolicy(max_crashes=5))
        waiting = lifecycle.create(session, project.id, parse_request(DIGITS)).job
        hook = subscriptions.create(session, project.id, url=HOOK, events=(), description="", limit=1)
        delivery = deliveries.test(session, hook)
        other_key, _ = new_key(session, project)
        upload = uploads.create(
            session,
            project.id,
            filename="x",
            size=len(CONTENT),
            sha256=sha256_of(CONTENT),
            purpose="dataset",
            part_size=len(CONTENT),
            seconds=600,
        )
        given = {"project_id": project.id, "filename": "x", "key": "nowhere", "size": 1, "sha256": "0" * 64}
        dataset = Dataset(id=new_id("ds"), name="some-birds", **given)
        model = Model(id=new_id("model"), name="some-net", declared={}, **given)
        session.add_all([dataset, model])
    return {
        "dataset_id": dataset.id,
        "model_id": model.id,
        "ended": ended.id,
        "running": running.id,
        "stopping": stopping.id,
        "job_id": waiting.id,
        "checkpoint_id": checkpoint,
        "key_id": other_key.id,
        "project_id": project.id,
        "webhook_id": hook.id,
        "delivery_id": delivery.id,
        "upload_id": upload.id,
        "code": "not_found",
        "number": 1,
    }


@pytest.fixture
def described(roomy, settings, database, ids):
    """The document, with examples of ids, and without the answer to "anything else": all must be declared."""
    document = create_app(settings, database).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("default", None)
            if (method, path) in BODIES:
                operation["requestBody"]["content"]["application/json"]["example"] = BODIES[method, path]
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["example"] = ids[OTHER_JOBS.get((method, path)) or parameter["name"]]
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=roomy)
    schema.config.generation.update(with_security_parameters=False)
    # A method that an address does not have is no operation; test_problems.py asks for one.
    schema.config.phases.coverage.unexpected_methods = set()
    return schema


@pytest.fixture
def caller(database, project):
    """A session of an admin."""
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {add_key(database, project)}"
        yield session


def ask_everything(schema, caller, *, examples):
    """Make requests for every operation; give how often each operation was answered with each status."""
    answers, failures = Counter(), []

    def ask(case):
        answer = case.call_and_validate(session=caller, checks=CHECKS, timeout=60)
        answers[case.operation.label, answer.status_code] += 1

    tests = get_all_tests(schema=schema, test_func=ask, settings=bounded(examples), given_kwargs=None)
    # What is deleted is asked for first.
    for operation, test in sorted((result.ok() for result in tests), key=lambda each: each[0].method == "delete"):
        try:
            test()
        except FailureGroup as group:
            failures.append(f"{operation.label}: {as_reported_failure(group)}")
    assert not failures, "\n\n".join(failures)
    return answers


def check_reach(answers, schema):
    """Every operation was asked, and each was granted what it was asked for at least once."""
    everything = {result.ok().label for result in schema.get_all_operations()}
    assert {label for label, _ in answers} == everything
    assert 429 not in {status for _, status in answers}
    granted = {label for label, status in answers if status < 400}
    assert everything - granted <= NEVER_GRANTED, everything - granted - NEVER_GRANTED


def test_every_answer_is_one_that_the_document_declares(described, caller):
    # All the borders of what is valid take minutes.
    described.config.phases.coverage.enabled = False
    check_reach(ask_everything(described, caller, examples=2), described)


def test_a_limit_is_a_number_and_nothing_that_looks_like_one(api, project):
    for wrong in (False, "5", 5.0):
        answer = api.patch(f"/projects/{project.id}", json={"quotas": {"queued_jobs": wrong}})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_body")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_answer_to_many_requests_is_one_that_the_document_declares(described, caller):
    check_reach(ask_everything(described, caller, examples=60), described)
