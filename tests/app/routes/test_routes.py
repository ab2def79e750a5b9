"""The API over real HTTP: what each route answers when all is well."""

import hashlib
import json
import threading
import time
from base64 import b64decode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from app.jobs import claims, ingest
from app.main import create_app
from app.storage import LocalStore
from app.tables import ApiKey
from core.schema import events as reported
from core.schema.catalog import MODELS
from core.schema.report import Reports
from tests.support.instance import DIGITS, add_key, add_project, calling
from tests.support.sending import announce

WEIGHTS = bytes(range(256)) * 40
RATE = reported.Rate(value=0.5, count=2, total=4, low=0.1, high=0.9)
REPORT = reported.Report(
    protocol="fast",
    examples=4,
    seed=0,
    batch_size=4,
    eps={"linf": 0.1},
    clean=RATE,
    robust={"linf": RATE},
    union=RATE,
    average=0.5,
    attacks=(),
    flags=(),
    verdicts={"clean": "1100"},
    seconds=1.0,
)
REPORTS = Reports(before=None, after=REPORT)


def post(api, body=DIGITS, **headers):
    answer = api.post("/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def claim(database):
    with database.writing() as session:
        return claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))


def do(database, action, *args, **options):
    with database.writing() as session:
        return action(session, *args, **options)


def steps(count):
    return [
        reported.Stepped(
            step=step,
            total_steps=count,
            epoch=step,
            loss=1 / step,
            learning_rate=0.1,
            norm="l1",
            counts={},
            seconds=step,
        )
        for step in range(1, count + 1)
    ]


def finish(database, settings, tmp_path, held):
    """Do what a worker does at the end of a good run."""
    store = LocalStore(settings.objects_dir)
    files = {"checkpoint": WEIGHTS, "report": REPORTS.model_dump_json().encode()}
    for kind, content in files.items():
        (tmp_path / kind).write_bytes(content)
        key = f"{held.prefix}/{kind}"
        store.put(key, tmp_path / kind)
        sha256 = hashlib.sha256(content).hexdigest()
        saved = reported.Saved(kind=kind, path=key, sha256=sha256, size=len(content), step=3, epoch=1.0)
        do(database, ingest.save, held, saved, key=key)
    do(database, claims.succeed, held, REPORTS)


@pytest.fixture
def done(api, database, settings, tmp_path):
    """A job that has succeeded."""
    job = post(api)
    held = claim(database)
    do(database, ingest.record, held, steps(3))
    finish(database, settings, tmp_path, held)
    return api.get(f"/jobs/{job['id']}").json()


def test_a_posted_job_is_answered_resolved_and_can_be_found(api):
    answer = api.post("/jobs", json={**DIGITS, "name": "first", "metadata": {"team": "vision"}})
    job = answer.json()
    assert answer.status_code == 201
    assert (job["status"], job["phase"], job["is_terminal"], job["attempt"]) == ("queued", None, False, 0)
    assert job["allowed_actions"] == ["cancel"]
    assert (job["spec"]["dataset"], job["spec"]["epochs"], job["spec"]["eps"]["l1"]) == ("digits", 3, 1.5)
    assert (job["name"], job["metadata"]) == ("first", {"team": "vision"})
    assert job["warnings"][0]["code"] == "l2_not_covered"
    assert job.pop("webhook") is None
    assert api.get(answer.headers["location"]).json() == job
    assert api.get(job["links"]["self"]).json() == job


def test_a_dry_run_validates_and_stores_nothing(api):
    answer = api.post("/jobs", params={"dry_run": True}, json=DIGITS)
    assert answer.status_code == 200
    assert answer.json()["valid"] is True
    assert answer.json()["spec"]["batch_size"] == 64
    assert answer.json()["warnings"]
    assert api.get("/jobs").json()["data"] == []


def test_a_repeated_request_is_answered_with_the_first_job(api):
    first = api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "k"})
    again = api.post("/jobs", json={**DIGITS, "seed": 0}, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")


def test_the_same_routes_are_under_v1(api):
    job = post(api)
    assert api.get(f"/v1/jobs/{job['id']}").json() == api.get(f"/jobs/{job['id']}").json()
    assert api.post("/v1/jobs", json=DIGITS).status_code == 201


def test_an_unchanged_job_is_304(api, database):
    job = post(api)
    etag = api.get(f"/jobs/{job['id']}").headers["etag"]
    unchanged = api.get(f"/jobs/{job['id']}", headers={"If-None-Match": f'W/{etag}, "x"'})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    claim(database)
    assert api.get(f"/jobs/{job['id']}", headers={"If-None-Match": etag}).status_code == 200


def test_waiting_ends_when_the_job_changes(api, database):
    job = post(api)
    etag = api.get(f"/jobs/{job['id']}").headers["etag"]
    threading.Timer(0.3, claim, [database]).start()
    begin = time.monotonic()
    changed = api.get(f"/jobs/{job['id']}", params={"wait": 20}, headers={"If-None-Match": etag})
    assert changed.json()["status"] == "running"
    assert 0.2 < time.monotonic() - begin < 5


def test_waiting_without_an_etag_ends_with_the_job(api, database):
    job = post(api)
    held = claim(database)
    do(database, ingest.record, held, steps(1))
    threading.Timer(0.3, do, [database, claims.succeed, held, REPORTS]).start()
    assert api.get(f"/jobs/{job['id']}", params={"wait": 20}).json()["status"] == "succeeded"


def test_waiting_in_vain_ends_in_time(api):
    job = post(api)
    etag = api.get(f"/jobs/{job['id']}").headers["etag"]
    assert api.get(f"/jobs/{job['id']}", params={"wait": 0.1}).json()["status"] == "queued"
    waited = api.get(f"/jobs/{job['id']}", params={"wait": 0.1}, headers={"If-None-Match": etag})
    assert waited.status_code == 304


def test_many_can_wait_at_once_without_holding_threads(api, url, database, project):
    job = post(api)
    key = add_key(database, project)
    answers = []

    def wait():
        with calling(url, key) as client:
            answers.append(client.get(f"/jobs/{job['id']}", params={"wait": 30}).json()["status"])

    waiting = [threading.Thread(target=wait) for _ in range(40)]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    begin = time.monotonic()
    assert api.get("/jobs").status_code == 200
    assert time.monotonic() - begin < 2
    api.post(f"/jobs/{job['id']}/cancel")
    for thread in waiting:
        thread.join()
    assert answers == ["cancelled"] * 40


def test_jobs_are_listed_in_parts(api):
    posted = [post(api, {**DIGITS, "seed": seed})["id"] for seed in range(5)]
    first = api.get("/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == posted[:2:-1]
    assert (first["object"], first["has_more"], first["first_id"], first["last_id"]) == (
        "list",
        True,
        posted[4],
        posted[3],
    )
    rest = api.get("/jobs", params={"limit": 10, "after": first["last_id"]}).json()
    assert [job["id"] for job in rest["data"]] == posted[2::-1]
    assert rest["has_more"] is False
    oldest = api.get("/jobs", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == posted[0]


def test_jobs_are_filtered(api, database):
    running = post(api, {**DIGITS, "priority": 1})
    labelled = post(api, {**DIGITS, "metadata": {"team": "vision", "run": "a=b"}})
    evaluated = post(api, {**DIGITS, "kind": "evaluate"})
    claim(database)

    def ids(**filters):
        return {job["id"] for job in api.get("/jobs", params=filters).json()["data"]}

    assert ids(status="running") == {running["id"]}
    assert ids(kind="evaluate") == {evaluated["id"]}
    assert ids(metadata=["team=vision", "run=a=b"]) == {labelled["id"]}
    assert ids(metadata="team=audio") == set()
    assert len(ids(base_model="digits-cnn-linf", dataset="digits")) == 3
    assert ids(dataset="cifar10") == set()
    named = api.post("/jobs", json=DIGITS | {"name": "third try"}).json()["id"]
    assert ids(name="third try") == {named}
    assert ids(name="third") == set()


def test_a_waiting_job_is_cancelled_once_and_for_all(api):
    job = post(api)
    for _ in range(2):
        cancelled = api.post(f"/jobs/{job['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert cancelled.json()["finished_at"]


def test_a_running_job_shows_its_progress(api, database):
    job = post(api)
    do(database, ingest.record, claim(database), [reported.Entered(phase="training"), *steps(4)[:2]])
    shown = api.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["phase"], shown["attempt"]) == ("running", "training", 1)
    assert (shown["progress"]["step"], shown["progress"]["total_steps"], shown["progress"]["norm"]) == (2, 4, "l1")
    assert (shown["progress"]["fraction"], shown["progress"]["seconds_remaining"]) == (0.5, 2.0)
    assert shown["started_at"]


def test_a_finished_job_shows_its_results(done):
    assert (done["status"], done["is_terminal"], done["allowed_actions"]) == ("succeeded", True, [])
    assert done["results"]["after"]["union"]["value"] == 0.5
    assert done["results"]["before"] is None
    assert done["checkpoint"].startswith("ckpt_")


def test_the_curve_is_thinned_out_and_keeps_its_last_step(api, database):
    job = post(api)
    do(database, ingest.record, claim(database), steps(100))

    def shown(**options):
        metrics = api.get(f"/jobs/{job['id']}/metrics", params=options).json()
        return [point["step"] for point in metrics["data"]]

    assert shown() == list(range(1, 101))
    assert shown(after_step=97) == [98, 99, 100]
    assert shown(after_step=100) == []
    few = shown(max_points=7)
    assert len(few) <= 7
    assert few[-1] == 100


def test_the_curve_stays_where_it_was_until_a_new_attempt_says_where_it_goes_on(api, database):
    job = post(api)

    def shown():
        return [point["step"] for point in api.get(f"/jobs/{job['id']}/metrics").json()["data"]]

    def go_on(held):
        do(
            database,
            claims.record_crash,
            held,
            code="killed",
            retry_policy=claims.RetryPolicy(max_crashes=5, backoff_seconds=0),
        )
        return claim(database)

    held = claim(database)
    assert shown() == []
    do(database, ingest.record, held, steps(9))
    held = go_on(held)
    assert shown() == [*range(1, 10)]
    do(database, ingest.record, held, [reported.Resumed(step=6, epoch=6.0)])
    assert shown() == [*range(1, 7)]
    do(database, ingest.record, held, steps(8)[6:7])
    held = go_on(held)
    assert shown() == [*range(1, 8)]
    do(database, ingest.record, held, [reported.Resumed(step=7, epoch=7.0)])
    do(database, claims.succeed, held, REPORTS)
    assert shown() == [*range(1, 8)]


def test_the_report_has_every_verdict(api, done):
    report = api.get(done["links"]["report"])
    assert Reports.model_validate_json(report.content) == REPORTS


def test_a_checkpoint_is_downloaded_with_its_hash(api, done):
    listed = api.get(done["links"]["checkpoints"]).json()["data"]
    assert [each["id"] for each in listed] == [done["checkpoint"]]
    described = api.get(f"/checkpoints/{done['checkpoint']}").json()
    assert described == listed[0]
    answer = api.get(described["download"])
    sha256 = hashlib.sha256(WEIGHTS)
    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["x-checksum-sha256"] == described["sha256"] == sha256.hexdigest()
    assert b64decode(answer.headers["repr-digest"].removeprefix("sha-256=:").removesuffix(":")) == sha256.digest()
    assert answer.headers["content-disposition"] == f'attachment; filename="{done["checkpoint"]}.safetensors"'


def test_the_headers_of_a_download_can_be_asked_for_alone(api, done):
    address = f"/checkpoints/{done['checkpoint']}/download"
    head, whole = api.head(address), api.get(address)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "x-checksum-sha256", "accept-ranges"):
        assert head.headers[name] == whole.headers[name]
    assert api.head(address, headers={"Range": "bytes=0-9"}).headers["content-length"] == "10"


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-5", -5, None), ("bytes=10000-99999", 10000, None)],
)
def test_a_download_goes_on_where_it_was_cut(api, done, wanted, start, stop):
    answer = api.get(f"/checkpoints/{done['checkpoint']}/download", headers={"Range": wanted})
    part = WEIGHTS[start:stop]
    first = WEIGHTS.index(part) if start < 0 else start
    assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{len(WEIGHTS)}" or start < 0


def test_a_range_of_another_file_is_answered_with_the_whole(api, done):
    address = f"/checkpoints/{done['checkpoint']}/download"
    etag = api.get(address).headers["etag"]
    assert api.get(address, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).content == WEIGHTS
    assert api.get(address, headers={"Range": "bytes=0-9", "If-Range": etag}).content == WEIGHTS[:10]
    assert api.get(address, headers={"Range": "bytes=0-1,5-6"}).content == WEIGHTS


def test_what_the_client_has_is_not_sent_again(api, done):
    for address in (f"/checkpoints/{done['checkpoint']}/download", done["links"]["report"]):
        whole = api.get(address)
        etag = whole.headers["etag"]
        assert etag == f'"{hashlib.sha256(whole.content).hexdigest()}"'
        for known in (etag, f'"x", W/{etag}', "*"):
            again = api.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert api.get(address, headers={"If-None-Match": '"x"'}).content == whole.content


def test_models_and_datasets_of_the_operator_are_listed_beside_the_shipped_ones(api, settings):
    (settings.models_dir / "mine.safetensors").write_bytes(b"1234")
    (settings.models_dir / "notes.txt").touch()
    (settings.datasets_dir / "flowers").mkdir()
    (settings.datasets_dir / "birds.tar.xz").touch()
    (settings.datasets_dir / "pseudo-labelled.npz").touch()
    models = {model["id"]: model for model in api.get("/models").json()["data"]}
    datasets = {dataset["id"]: dataset for dataset in api.get("/datasets").json()["data"]}
    assert models.keys() == {*MODELS, "mine"}
    assert (models["mine"]["source"], models["mine"]["size"]) == ("local", 4)
    assert (models["digits-cnn-linf"]["source"], models["digits-cnn-linf"]["norm"]) == ("shipped", "linf")
    assert datasets.keys() == {"digits", "cifar10", "cifar100", "flowers", "birds", "pseudo-labelled"}
    assert datasets["digits"]["shape"] == [1, 8, 8]
    assert post(api, {"base_model": "mine", "dataset": "flowers", "eps": {"linf": 0.1, "l1": 1}})["status"] == "queued"


def test_only_what_a_job_can_name_and_a_run_can_read_is_listed(api, settings):
    (settings.models_dir / "gone.safetensors").symlink_to("nowhere")
    (settings.models_dir / "folder.safetensors").mkdir()
    (settings.models_dir / "with space.safetensors").touch()
    (settings.models_dir / ".safetensors").touch()
    (settings.datasets_dir / "gone.zip").symlink_to("nowhere")
    (settings.datasets_dir / "with space").mkdir()
    (settings.datasets_dir / ".hidden").mkdir()
    assert [model["id"] for model in api.get("/models").json()["data"]] == list(MODELS)
    assert {dataset["id"] for dataset in api.get("/datasets").json()["data"]} == {"digits", "cifar10", "cifar100"}


def test_a_data_set_that_has_to_be_here_is_offered_once_it_is(api, settings):
    body = {"base_model": "digits-cnn-linf", "dataset": "imagenet"}
    refused = api.post("/jobs", json=body)
    assert refused.status_code == 422
    assert "no data set 'imagenet' here" in refused.text
    assert "imagenet" not in {dataset["id"] for dataset in api.get("/datasets").json()["data"]}
    (settings.datasets_dir / "imagenet").mkdir()
    assert "imagenet" in {dataset["id"] for dataset in api.get("/datasets").json()["data"]}
    assert "no data set" not in api.post("/jobs", json=body).text


def test_extra_data_is_looked_for_among_the_data_sets_of_the_instance(api, settings):
    body = {"base_model": "digits-cnn-linf", "extra_dataset": "pseudo-labelled"}
    refused = api.post("/jobs", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/extra_dataset"
    (settings.datasets_dir / "pseudo-labelled.npz").touch()
    assert post(api, body)["status"] == "queued"


def test_methods_and_architectures_are_listed(api):
    methods = {method["id"]: method["options"] for method in api.get("/methods").json()["data"]}
    assert methods.keys() >= {"nat", "single", "sat", "avg", "max", "msd", "e-at", "ramp", "pat"}
    assert methods["nat"] == {}
    assert methods["ramp"] == {"loss": "cross-entropy", "pairing": 0.5}
    assert "digits-cnn" in {each["id"] for each in api.get("/architectures").json()["data"]}


def test_threats_are_listed_with_their_presets(api):
    threats = {threat["id"]: threat for threat in api.get("/threats").json()["data"]}
    assert (threats["l0"]["kind"], threats["l0"]["queries"], threats["l0"]["steps"]) == ("search", 5000, None)
    assert threats["fog"]["presets"] == ["ramp", "fast"]
    assert threats["common/fog"]["budgets"] == [1, 2, 3, 4, 5]
    assert threats["common/spatter"]["presets"] == ["extra-corruptions"]


def test_the_last_use_of_a_key_is_noted_to_the_minute(api, database):
    def last_used():
        with database.reading() as session:
            return session.scalars(select(ApiKey.last_used_at)).one()

    assert last_used() is None
    api.get("/jobs")
    noted = last_used()
    api.get("/jobs")
    assert last_used() == noted is not None


def test_probes_and_documentation_need_no_key(url):
    with calling(url, "") as nobody:
        nobody.headers.pop("authorization")
        for path in ("/", "/livez", "/readyz", "/version", "/openapi.json", "/docs", "/problems/not_found"):
            assert nobody.get(path).status_code == 200, path
        assert "/jobs/{job_id}/cancel" in nobody.get("/openapi.json").text


def test_the_root_says_where_to_go(api):
    index = api.get("/").json()
    assert index.pop("service") == "Temper"
    assert {path: api.get(path).status_code for path in index.values()} == dict.fromkeys(index.values(), 200)


def test_a_request_id_is_kept_or_made(api):
    assert api.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = api.get("/livez", headers={"X-Request-Id": "no good\tone"}).headers["x-request-id"]
    assert made.startswith("req_")


def test_one_project_does_not_see_another(api, url, database, done):
    with calling(url, add_key(database, add_project(database))) as stranger:
        assert stranger.get("/jobs").json()["data"] == []
        mine = [
            ("GET", done["links"]["self"]),
            ("POST", f"{done['links']['self']}/cancel"),
            ("GET", done["links"]["events"]),
            ("GET", done["links"]["metrics"]),
            ("GET", done["links"]["report"]),
            ("GET", done["links"]["checkpoints"]),
            ("GET", f"/checkpoints/{done['checkpoint']}"),
            ("GET", f"/checkpoints/{done['checkpoint']}/download"),
        ]
        for method, path in mine:
            foreign = stranger.request(method, path)
            missing = stranger.request(method, path.replace(done["id"], "job_0").replace(done["checkpoint"], "ckpt_0"))
            assert foreign.status_code == missing.status_code == 404, path
            assert foreign.json()["title"] == missing.json()["title"]
            assert foreign.json()["code"] == missing.json()["code"]


def test_the_openapi_document_declares_the_problems_of_every_route(settings, database):
    document = create_app(settings, database).openapi()
    open_routes = {"/", "/livez", "/readyz", "/version", "/problems/{code}"}
    for path, methods in document["paths"].items():
        for route in methods.values():
            answers = route["responses"]
            assert all(part["description"] for part in route.get("parameters", [])), path
            assert "HTTPValidationError" not in json.dumps(answers)
            if path in open_routes:
                continue
            assert {"401", "503"} <= answers.keys(), path
            # A key or a list of keys may be asked for of a project that is named in the body or the query.
            assert ("404" in answers) == ("{" in path or path == "/api_keys"), path
            assert route["description"], path
    assert document["paths"]["/jobs"]["post"]["responses"].keys() >= {"200", "201", "400", "413", "415", "422"}
    assert document["paths"]["/jobs/{job_id}/cancel"]["post"]["responses"].keys() >= {"202", "409"}
    assert document["paths"]["/checkpoints/{checkpoint_id}/download"]["get"]["responses"].keys() >= {"206", "416"}
    assert "FineTuneRequest" in json.dumps(document["paths"]["/jobs"]["post"]["requestBody"])
    assert not [path for path in document["paths"] if path.startswith("/v1")]


def test_the_openapi_document_declares_the_headers_of_each_answer(settings, database):
    paths = create_app(settings, database).openapi()["paths"]
    jobs_, job = paths["/jobs"]["post"]["responses"], paths["/jobs/{job_id}"]["get"]["responses"]
    download = paths["/checkpoints/{checkpoint_id}/download"]["get"]["responses"]
    assert jobs_["201"]["headers"].keys() == {"ETag", "Location", "Idempotent-Replayed"}
    assert "ETag" in job["200"]["headers"]
    assert "ETag" in job["304"]["headers"]
    assert "X-Checksum-Sha256" in download["200"]["headers"]
    assert download["206"]["headers"].keys() >= {"ETag", "X-Checksum-Sha256", "Content-Range"}


def fits(value, schema, document):
    """Whether a value is valid by a JSON schema, as far as specs need it."""
    if "$ref" in schema:
        return fits(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    of_type = {
        "object": dict,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    return (
        ("oneOf" not in schema or sum(fits(value, each, document) for each in schema["oneOf"]) == 1)
        and ("anyOf" not in schema or any(fits(value, each, document) for each in schema["anyOf"]))
        and ("type" not in schema or schema["type"] == "array" or isinstance(value, of_type[schema["type"]]))
        and ("const" not in schema or value == schema["const"])
        and ("enum" not in schema or value in schema["enum"])
        and (not isinstance(value, dict) or fit_as_fields(value, schema, document))
    )


def fit_as_fields(value, schema, document):
    known, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
    return set(schema.get("required", [])) <= value.keys() and all(
        fits(each, known[name], document) if name in known else rest is not False and fits(each, rest, document)
        for name, each in value.items()
    )


@pytest.mark.parametrize(
    "body",
    [
        DIGITS,
        {**DIGITS, "method": "sat"},
        {**DIGITS, "method": {"name": "sat", "steps": 5}},
        {**DIGITS, "method": {"name": "single", "norms": ["l2"], "steps": {"l2": 5}}},
        {**DIGITS, "eps": {"linf": "8/255", "l1": 1}},
        {**DIGITS, "kind": "evaluate"},
        *(json.loads(path.read_text()) for path in sorted(Path("examples").glob("*.json"))),
    ],
)
def test_what_is_accepted_is_valid_by_the_openapi_document(api, body):
    assert valid_by_document(api, body)
    if body.get("base_model", DIGITS["base_model"]) == DIGITS["base_model"]:
        assert api.post("/jobs", params={"dry_run": True}, json=body).status_code == 200


@pytest.mark.parametrize("body", [{}, {**DIGITS, "epoch": 3}, {**DIGITS, "kind": "train"}, {"architecture": "x"}])
def test_what_is_refused_is_not_valid_by_the_openapi_document(api, body):
    assert not valid_by_document(api, body)
    assert api.post("/jobs", json=body).status_code == 422


def valid_by_document(api, body):
    document = api.get("/openapi.json").json()
    return fits(
        body, document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"], document
    )


def test_concurrent_writers_are_all_served(api):
    ended, sent, given_up = [], [], []
    for _ in range(16):
        ended.append(post(api)["id"])
        api.post(f"/jobs/{ended[-1]}/cancel")
        sent.append(announce(api, b"birds")["id"])
        given_up.append(announce(api, b"birds")["id"])
    asked = [
        request
        for job, upload, other in zip(ended, sent, given_up, strict=True)
        for request in (
            ("DELETE", f"/jobs/{job}", {}),
            ("POST", "/jobs", {"json": DIGITS}),
            ("PUT", f"/uploads/{upload}/parts/1", {"content": b"birds", "headers": {"Content-Type": "text/plain"}}),
            ("POST", f"/uploads/{other}/abort", {}),
        )
    ]
    with ThreadPoolExecutor(60) as pool:
        answers = Counter(pool.map(lambda each: api.request(each[0], each[1], **each[2]).status_code, asked))
    assert answers == {204: 16, 201: 16, 200: 32}
