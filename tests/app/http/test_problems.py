"""Bad input and bad luck: every answer names the problem, the field and the remedy, and the service stays up."""

import contextlib
import json
import socket
import sqlite3

import httpx2
import pytest
from sqlalchemy import event, text, update

from app.http.problems import PROBLEMS, InvalidSpec
from app.jobs import claims, ingest
from app.main import create_app
from app.platform.database import now
from app.storage import LocalStore
from app.tables import ApiKey
from core.schema.events import Saved
from core.schema.report import Reports
from core.schema.validation import FieldError
from tests.support.instance import DIGITS, add_key, add_project, calling, new_instance, serving


def check(answer, status, code, pointer=None, remedy=""):
    """Check the shape that all problems have, and what this one says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "code", "request_id", "errors"}
    assert (problem["code"], problem["status"], problem["type"]) == (code, status, f"/problems/{code}")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem
    assert remedy in json.dumps(problem, ensure_ascii=False).replace('\\"', '"'), problem
    return problem


BAD_SPECS = {
    "unknown field": ({**DIGITS, "epoch": 3}, "/epoch", "did you mean 'epochs'?"),
    "unknown field of a part": ({**DIGITS, "evaluation": {"protocl": "fast"}}, "/evaluation/protocl", "'protocol'"),
    "negative eps": ({**DIGITS, "eps": {"linf": -0.1, "l1": 1}}, "/eps/linf", "greater than 0"),
    "eps in 255 units": ({**DIGITS, "eps": {"linf": 8, "l1": 1.5}}, "/eps/linf", '"8/255"'),
    "eps that is no number": ({**DIGITS, "eps": {"linf": "big", "l1": 1}}, "/eps/linf", '"8/255"'),
    "norm without eps": ({**DIGITS, "eps": {"linf": 0.1}}, "/eps/l1", "add eps.l1"),
    "unknown norm": ({**DIGITS, "eps": {"linf": 0.1, "l1": 1, "l7": 1}}, "/eps/l7", "'l2'"),
    "unknown method": ({**DIGITS, "method": "eat"}, "/method/name", "did you mean 'e-at'?"),
    "unknown model": ({"base_model": "digits-cnn-lin"}, "/base_model", "did you mean 'digits-cnn-linf'?"),
    "unknown model on a data set": (
        {"base_model": "resnet", "dataset": "digits"},
        "/base_model",
        "known: digits-cnn-linf",
    ),
    "unknown data set": ({**DIGITS, "dataset": "digit"}, "/dataset", "did you mean 'digits'?"),
    "data set that does not fit": ({**DIGITS, "dataset": "cifar10"}, "/dataset", "choose digits or another model"),
    "architecture that does not fit": (
        {"kind": "train", "architecture": "digits-cnn", "dataset": "cifar10"},
        "/dataset",
        "choose another architecture",
    ),
    "unknown kind": ({**DIGITS, "kind": "tune"}, "/kind", "finetune, train, evaluate"),
    "no model": ({}, "/base_model", ""),
    "a path as a name": ({"base_model": "../../etc/passwd", "dataset": "digits"}, "/base_model", ""),
    "no object": ([], "", ""),
    "half a surrogate": ({**DIGITS, "name": "\ud800"}, "/name", ""),
    "too much metadata": ({**DIGITS, "metadata": {str(n): "" for n in range(17)}}, "/metadata", "16"),
}


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A running API that is asked one bad thing after another."""
    with running_instance(tmp_path_factory.mktemp("patient")) as (api, _, _):
        yield api


@pytest.fixture
def victim(tmp_path):
    """A running API to which something happens, with its settings and database."""
    with running_instance(tmp_path) as running:
        yield running


@contextlib.contextmanager
def running_instance(folder):
    with (
        new_instance(folder) as (settings, database),
        serving(settings, database) as url,
        calling(url, add_key(database, add_project(database))) as api,
    ):
        yield api, settings, database


def limit(database, pragma):
    """Let every new connection to SQLite run under a limit."""
    event.listen(database.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {pragma}"))
    database.close()


def saved_checkpoint(api, database, settings, tmp_path):
    """Run a job to a checkpoint of five bytes."""
    api.post("/jobs", json=DIGITS)
    (tmp_path / "file").write_bytes(b"12345")
    saved = Saved(kind="checkpoint", path="x", sha256="ab" * 32, size=5, step=1, epoch=1.0)
    with database.writing() as session:
        held = claims.claim(session, worker="w", lease_seconds=9, retry_policy=claims.RetryPolicy(max_crashes=5))
        key = f"{held.prefix}/checkpoint.safetensors"
        LocalStore(settings.objects_dir).put(key, tmp_path / "file")
        ingest.save(session, held, saved, key=key)
    return held, key


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_told_by_field_and_remedy(patient, case, dry_run):
    body, pointer, remedy = BAD_SPECS[case]
    answer = patient.post(
        "/jobs",
        params={"dry_run": dry_run},
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    check(answer, 422, "invalid_spec", pointer, remedy)
    assert patient.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "body", [b'{"base_model"', b"", b"\xff\xfe", b"[" * 50_000, b'{"base_model": NaN}', b'{"eps": {"linf": 1e999}}']
)
def test_a_body_that_is_no_spec_is_told_what_to_send(patient, body):
    answer = patient.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    check(answer, answer.status_code, answer.json()["code"])
    assert answer.json()["code"] in ("malformed_body", "invalid_body", "invalid_spec")


@pytest.mark.parametrize(
    ("body", "pointer", "remedy"),
    [
        (b'{"base_model": "digits-cnn-linf", "epochs": 1, "epochs": 7}', "/epochs", "give it once"),
        (b'{"base_model": "digits-cnn-linf", "eps": {"linf": 0.1, "linf": 0.2}}', "/eps/linf", "give it once"),
        (b'{"base_model": "digits-cnn-linf", "learning_rate": NaN}', "/learning_rate", "NaN is not a JSON value"),
        (b'{"base_model": "digits-cnn-linf", "seed": ' + b"7" * 2000 + b"}", "/seed", "2000 digits"),
    ],
)
def test_a_value_that_python_would_drop_or_make_up_is_told_by_its_name(patient, body, pointer, remedy):
    for path in ("/jobs", "/webhooks"):
        answer = patient.post(path, content=body, headers={"Content-Type": "application/json"})
        check(answer, 422, "invalid_body", pointer, remedy)
    assert patient.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"seed": ' + b"7" * 5000 + b"}", "a number in it has thousands of digits"),
        (b"[" * 50_000, "it is nested too deeply"),
        (b"{\xff}", "it is not UTF-8"),
    ],
)
def test_what_cannot_be_read_at_all_says_why(patient, body, reason):
    answer = patient.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    check(answer, 400, "malformed_body", remedy=reason)


def test_every_route_refuses_an_unknown_parameter_before_it_acts(patient, settings, database):
    job = patient.post("/jobs", json=DIGITS).json()["id"]
    tried = 0
    for path, operations in create_app(settings, database).openapi()["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            here = path.replace("{job_id}", job)
            body = {"json": DIGITS} if "requestBody" in operation else {}
            answer = patient.request(method, f"{here}?dryrun=true", **body)
            check(answer, 422, "invalid_parameter", "/dryrun")
            tried += 1
    assert tried > 40
    assert [each["id"] for each in patient.get("/jobs").json()["data"]] == [job]
    assert patient.get(f"/jobs/{job}").json()["status"] == "queued"


def test_a_path_with_an_extra_slash_is_404_and_redirects_to_no_other_host(patient):
    for path in ("/jobs/", "/v1/jobs/", "/livez/"):
        answer = patient.get(path, headers={"Host": "elsewhere.example"}, follow_redirects=False)
        check(answer, 404, "not_found")
        assert "location" not in answer.headers


def test_a_misspelt_parameter_is_told_what_was_probably_meant(patient):
    for path, known in (("/models?limt=1", "limit"), ("/jobs?stauts=failed", "status"), ("/usage?form=1", "from")):
        answer = patient.get(path)
        check(answer, 422, "invalid_parameter", remedy=f"did you mean '{known}'?")
    answer = patient.get("/me?verbose=1")
    check(answer, 422, "invalid_parameter", "/verbose", "leave it out")


def test_two_values_of_one_key_match_no_job_and_are_refused(patient):
    check(patient.get("/jobs?metadata=a=1&metadata=a=2"), 422, "invalid_parameter", remedy="two values of a")
    assert patient.get("/jobs?metadata=a=1&metadata=b=2").status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(patient, content_type):
    answer = patient.post("/jobs", content=json.dumps(DIGITS), headers={"Content-Type": content_type})
    check(answer, 415, "unsupported_media_type", remedy="Content-Type: application/json")


def test_a_body_over_the_limit_is_refused_and_told_the_limit(patient):
    answer = patient.post("/jobs", json={**DIGITS, "name": "x" * 2_000_000})
    check(answer, 413, "body_too_large", remedy="65536 bytes")


@pytest.mark.parametrize(
    "body",
    [
        {**DIGITS, **{f"unknown{number}": number for number in range(2000)}},
        {"base_model": "x" * 60_000},
        {"base_model": DIGITS["base_model"], "method": "x" * 60_000},
        {**DIGITS, "x" * 60_000: 1},
    ],
)
def test_the_answer_to_a_bad_body_is_short_however_long_the_body(patient, body):
    answer = patient.post("/jobs", json=body)
    problem = check(answer, 422, "invalid_spec")
    assert len(answer.content) < 30_000
    assert len(problem["errors"]) <= 20
    assert len(body) < 2000 or "and up to 1999 more" in problem["detail"]


def test_a_problem_says_how_many_errors_it_does_not_list():
    errors = [FieldError(pointer=f"/{number}", code="x", detail="no") for number in range(50)]
    problem = InvalidSpec(errors)
    assert problem.errors == errors[:20]
    assert problem.detail == "/0: no (and up to 49 more; errors has the first 20)"


def test_a_body_over_the_limit_is_refused_when_its_length_is_not_declared(patient):
    def pieces():
        for _ in range(40):
            yield b" " * 100_000

    answer = patient.post("/jobs", content=pieces(), headers={"Content-Type": "application/json"})
    check(answer, 413, "body_too_large")
    assert patient.get("/livez").status_code == 200


def test_bad_parameters_are_named(patient):
    check(patient.get("/jobs", params={"limit": 0}), 422, "invalid_parameter", "/limit")
    check(patient.get("/jobs", params={"statsu": "queued"}), 422, "invalid_parameter", "/statsu")
    check(patient.get("/jobs", params={"status": "done"}), 422, "invalid_parameter", "/status", "succeeded")
    check(patient.get("/jobs", params={"metadata": "team"}), 422, "invalid_parameter", remedy="metadata=key=value")
    check(patient.get("/jobs", params={"metadata": 'a"b=c'}), 422, "invalid_parameter", remedy="no quotes")
    check(patient.get("/jobs/job_1/checkpoints", params={"after": "abc"}), 422, "invalid_parameter", "/after")
    for cursor in ("abc", "job_x", "ckpt_" + "0" * 26, "job_" + "0" * 26 + "\n"):
        check(patient.get("/jobs", params={"after": cursor}), 422, "invalid_parameter", "/after", "last_id")
    for twice in ({"limit": [1, 2]}, {"status": ["queued", "failed"]}, {"order": ["asc", "asc"]}):
        check(patient.get("/jobs", params=twice), 422, "invalid_parameter", f"/{next(iter(twice))}", "give it once")
    check(patient.get("/jobs/job_1", params={"wait": [1, 2]}), 422, "invalid_parameter", "/wait", "give it once")
    check(patient.get("/jobs/job_1/events", params={"after": 10**30}), 422, "invalid_parameter", "/after")
    check(patient.get("/jobs/job_1", params={"wait": 3600}), 422, "invalid_parameter", "/wait")
    long = {"Idempotency-Key": "k" * 256}
    check(patient.post("/jobs", json=DIGITS, headers=long), 422, "invalid_parameter", "/idempotency-key")


def test_addresses_that_lead_nowhere_are_told(patient):
    check(patient.get("/nothing"), 404, "not_found", remedy="/docs")
    for path in (
        "/jobs/job_1",
        "/jobs/job_1/events",
        "/jobs/job_1/report",
        "/checkpoints/ckpt_1/download",
        "/problems/x",
    ):
        check(patient.get(path), 404, "not_found")
    check(patient.post("/jobs/job_1/cancel"), 404, "not_found")
    check(patient.delete("/jobs"), 405, "method_not_allowed")


@pytest.mark.parametrize("key", ["", "tmp_", "tmp_AAAAAAAA_" + "B" * 32, "x" * 10_000, "tmp_\u00e4"])
def test_a_missing_or_foreign_key_is_refused(patient, key):
    headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
    with httpx2.Client(base_url=patient.base_url, headers=headers) as stranger:
        for method, path in (("GET", "/jobs"), ("POST", "/jobs"), ("GET", "/jobs/job_1/events"), ("GET", "/models")):
            answer = stranger.request(method, path, json=DIGITS if method == "POST" else None)
            check(answer, 401, "unauthorized", remedy="Authorization: Bearer")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_another_scheme_than_bearer_is_refused(patient):
    check(patient.get("/jobs", headers={"Authorization": "Basic eDp5"}), 401, "unauthorized")


def test_a_revoked_key_is_refused_at_once(api, database):
    assert api.get("/jobs").status_code == 200
    with database.writing() as session:
        session.execute(update(ApiKey).values(revoked_at=now()))
    check(api.get("/jobs"), 401, "unauthorized")


def test_a_key_used_again_for_another_spec_is_refused(api):
    key = {"Idempotency-Key": "k"}
    assert api.post("/jobs", json=DIGITS, headers=key).status_code == 201
    check(api.post("/jobs", json={**DIGITS, "seed": 1}, headers=key), 422, "idempotency_key_reused", remedy="new one")


def test_an_ended_job_cannot_be_cancelled_and_says_what_it_is(api, database):
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    with database.writing() as session:
        held = claims.claim(session, worker="w", lease_seconds=9, retry_policy=claims.RetryPolicy(max_crashes=5))
        claims.succeed(session, held, Reports(before=None, after=None))
    problem = check(api.post(f"/jobs/{job_id}/cancel"), 409, "action_not_allowed")
    assert (problem["current_status"], problem["allowed_actions"]) == ("succeeded", [])


def test_a_job_without_a_report_says_when_there_is_one(api):
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    check(api.get(f"/jobs/{job_id}/report"), 404, "report_not_ready", remedy="succeeded")


def test_a_range_outside_the_file_tells_its_size(api, database, settings, tmp_path):
    held, _ = saved_checkpoint(api, database, settings, tmp_path)
    checkpoint = api.get(f"/jobs/{held.job_id}").json()["checkpoint"]
    answer = api.get(f"/checkpoints/{checkpoint}/download", headers={"Range": "bytes=5-"})
    check(answer, 416, "range_not_satisfiable", remedy="5 bytes")
    assert answer.headers["content-range"] == "bytes */5"


def test_a_lost_file_is_a_storage_problem_and_not_a_crash(api, database, settings, tmp_path):
    held, key = saved_checkpoint(api, database, settings, tmp_path)
    (settings.objects_dir / key).unlink()
    checkpoint = api.get(f"/jobs/{held.job_id}").json()["checkpoint"]
    answer = check(api.get(f"/checkpoints/{checkpoint}/download"), 503, "storage_unavailable")
    assert answer["status"] == 503


def test_a_locked_database_is_503_and_passes(victim):
    api, settings, database = victim
    assert api.get("/jobs").status_code == 200
    limit(database, "busy_timeout = 100")
    other = sqlite3.connect(settings.data_dir / "temper.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = api.post("/jobs", json=DIGITS)
    other.close()
    check(answer, 503, "database_unavailable", remedy="try again")
    assert int(answer.headers["retry-after"]) > 0
    assert api.post("/jobs", json=DIGITS).status_code == 201


def test_a_full_disk_is_503_with_a_remedy_and_reading_goes_on(victim, caplog):
    api, settings, database = victim
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    # SQLite says the same as on a full disk when its file may not grow any more.
    limit(database, "max_page_count = 1")
    answers = (api.post("/jobs", json=DIGITS) for _ in range(60))
    refused = next(answer for answer in answers if answer.status_code != 201)
    check(refused, 503, "database_unavailable", remedy="disk of the data folder (TEMPER_DATA_DIR) is full; free some")
    check(api.get("/readyz"), 503, "database_unavailable", remedy="is full")
    assert "Traceback" not in caplog.text
    assert "database_unavailable: database or disk is full" in caplog.text
    with sqlite3.connect(settings.data_dir / "temper.db") as other:
        other.execute("UPDATE api_keys SET last_used_at = NULL")
    assert api.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert api.get("/livez").status_code == 200


def test_a_read_only_database_is_told_from_a_full_disk(victim):
    api, _, database = victim
    limit(database, "query_only = ON")
    check(api.get("/readyz"), 503, "database_unavailable", remedy="read-only; let the service write")
    check(api.post("/jobs", json=DIGITS), 503, "database_unavailable", remedy="read-only")
    assert api.get("/jobs").status_code == 200


def test_an_unready_schema_says_so(victim):
    api, _, database = victim
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    check(api.get("/readyz"), 503, "not_ready")
    assert api.get("/livez").status_code == 200


def test_every_problem_is_explained_at_its_type(patient):
    for code in PROBLEMS:
        page = patient.get(f"/problems/{code}")
        assert page.text.startswith(code)
        assert len(page.text) > 60


def test_a_flood_of_headers_is_refused_and_the_service_stays_up(patient):
    with socket.create_connection((patient.base_url.host, patient.base_url.port)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 20_000)
        assert b" 400 " in connection.recv(4096) or b" 431 " in connection.recv(4096)
    assert patient.get("/livez").status_code == 200
