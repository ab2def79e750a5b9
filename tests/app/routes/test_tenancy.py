"""What belongs to another project cannot be told from what does not exist, on any route that there is.

The routes are those of the OpenAPI document, so that a new one is tested as soon as it is there. A path parameter that
is not known here fails the test: add how to make one in another project.
"""

import json
import re
from functools import cache

import pytest
from sqlalchemy import select

from app.assets import checkpoints, uploads
from app.jobs import claims, ingest, lifecycle
from app.main import create_app
from app.platform.ids import new_id
from app.schemas.job_request import parse_request
from app.tables import ApiKey, Dataset, Job, Model
from app.webhooks import deliveries, subscriptions
from core.schema.events import Saved
from tests.support.instance import DIGITS, add_key, add_project, calling

SAVED = Saved(kind="checkpoint", path="/tmp/x", step=1, epoch=1.0, size=4, sha256="0" * 64)

# What a route takes as its body, where an empty object does not do.
BODIES = {
    "POST /jobs": DIGITS,
    "POST /api_keys": {"name": "x"},
    "POST /projects": {"name": "x"},
    "POST /webhooks": {"url": "https://93.184.216.34/"},
    "POST /uploads": {"filename": "x", "bytes": 1, "sha256": "0" * 64, "purpose": "dataset"},
    "POST /datasets": {"upload": "x", "name": "x"},
    "POST /models": {"upload": "x", "name": "x"},
    "POST /uploads/{upload_id}/parts": {"parts": [{"number": 1, "sha256": "0" * 64}]},
}

# Parameters that name a place within something.
PLACES = {"number": "1"}


@pytest.fixture
def foreign(database):
    """Something of each kind in another project: path parameter -> id."""
    other = add_project(database)
    add_key(database, other)
    with database.writing() as session:
        job = lifecycle.create(session, other.id, parse_request(DIGITS)).job
        claim = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        ingest.save(session, claim, SAVED, key="nowhere")
        hook = subscriptions.create(session, other.id, url="https://93.184.216.34/", events=(), description="", limit=1)
        delivery = deliveries.test(session, hook)
        key = session.scalars(select(ApiKey.id).where(ApiKey.project_id == other.id)).one()
        checkpoint = checkpoints.list_checkpoints(session, job.id, after=None, limit=1).rows[0].id
        upload = uploads.create(
            session,
            other.id,
            filename="x",
            size=1,
            sha256="0" * 64,
            purpose="dataset",
            part_size=1,
            seconds=60,
        )
        given = {"project_id": other.id, "name": "x", "filename": "x", "key": "nowhere", "size": 1, "sha256": "0" * 64}
        dataset = Dataset(id=new_id("ds"), **given)
        model = Model(id=new_id("model"), declared={}, **given)
        session.add_all([dataset, model])
    return {
        "dataset_id": dataset.id,
        "model_id": model.id,
        "job_id": job.id,
        "checkpoint_id": checkpoint,
        "key_id": key,
        "project_id": other.id,
        "webhook_id": hook.id,
        "delivery_id": delivery.id,
        "upload_id": upload.id,
    }


@cache
def document(settings, database):
    return create_app(settings, database).openapi()


def operations(settings, database):
    """Every operation of the document that needs a key, as (method, path)."""
    paths = document(settings, database)["paths"]
    return [
        (method.upper(), path)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if "401" in operation["responses"]
    ]


def ask(api, method, path, ids):
    url = re.sub(r"\{(\w+)\}", lambda match: {**PLACES, **ids}[match[1]], path)
    body = {"json": BODIES.get(f"{method} {path}", {})} if method in ("POST", "PUT", "PATCH") else {}
    return api.request(method, url, **body)


def said(answer, ids):
    """The status and all that the body says, but for what names the request and what was asked for."""
    problem = answer.json()
    problem = {name: value for name, value in problem.items() if name not in ("request_id", "instance")}
    text = json.dumps(problem)
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    return answer.status_code, answer.headers["content-type"], text


def test_a_foreign_id_is_answered_as_a_missing_one_on_every_route(settings, database, url, project, foreign):
    missing = {name: new_id(value.partition("_")[0]) for name, value in foreign.items()}
    with calling(url, add_key(database, project, "jobs:read", "jobs:write", "files:write")) as api:
        tried = 0
        for method, path in operations(settings, database):
            parameters = re.findall(r"\{(\w+)\}", path)
            if not parameters:
                continue
            unknown = set(parameters) - foreign.keys() - PLACES.keys()
            assert not unknown, f"{method} {path}: say in the fixture how to make {unknown} in another project"
            answers = [said(ask(api, method, path, ids), ids) for ids in (foreign, missing)]
            assert answers[0] == answers[1], (method, path)
            # What only an admin may do is refused before anything is looked up.
            assert answers[0][0] == (403 if path.startswith("/projects") else 404), (method, path, answers[0])
            tried += 1
        assert tried > 10
        with database.reading() as session:
            assert session.get_one(Job, foreign["job_id"]).status == "running"


def test_an_admin_of_another_project_cannot_tell_foreign_jobs_from_missing_ones(
    settings, database, url, project, foreign
):
    missing = {name: new_id(value.partition("_")[0]) for name, value in foreign.items()}
    with calling(url, add_key(database, project)) as admin:
        for method, path in operations(settings, database):
            if "{" in path and not path.startswith(("/projects", "/api_keys")):
                answers = [said(ask(admin, method, path, ids), ids) for ids in (foreign, missing)]
                assert answers[0] == answers[1], (method, path)
                assert answers[0][0] == 404, (method, path)


def test_no_answer_of_a_route_without_an_id_names_anything_foreign(settings, database, url, project, foreign):
    with calling(url, add_key(database, project, "jobs:read", "jobs:write", "files:write")) as api:
        for method, path in operations(settings, database):
            if "{" not in path:
                answer = ask(api, method, path, {})
                assert answer.status_code < 500, (method, path, answer.text)
                leaked = [value for value in foreign.values() if value in answer.text]
                assert not leaked, (method, path, leaked)


@pytest.mark.parametrize("parameter", ["after", "project_id", "metadata"])
def test_a_foreign_id_in_a_query_opens_nothing(settings, database, url, project, foreign, parameter):
    with calling(url, add_key(database, project, "jobs:read", "jobs:write", "files:write")) as api:
        for method, path in operations(settings, database):
            if method == "GET" and "{" not in path:
                for value in (foreign["project_id"], foreign["job_id"], foreign["key_id"]):
                    text = api.get(path, params={parameter: value}).text
                    assert not [other for other in foreign.values() if other in text.replace(value, "")], path
