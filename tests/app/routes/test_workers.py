"""The list of workers, and what the API says of work that waits for one."""

from threading import Event

from app import tasks
from app.jobs import claims, workers
from app.jobs.workers import Description, Device
from app.operations import deletion
from app.platform.ids import new_id
from app.tables import Worker
from tests.support.instance import DIGITS, add_key, calling

KIND = tasks.Kind("inspect_dataset", lambda session, task: None)


def beat(database, name, *, seconds=60, is_stopping=False):
    device = Device("NVIDIA H200", 150_000_000_000)
    versions = {"temper": "0.1.0"}
    worker = Description(new_id("wrk"), name, "gpu", 2, (device,), frozenset({"architecture:timm"}), versions)
    with database.writing() as session:
        workers.beat(session, worker, seconds=seconds, is_stopping=is_stopping)
    return worker


def test_workers_are_listed_with_what_they_have_and_do(api, database, project):
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    for name, options in (("m:1", {}), ("m:2", {"is_stopping": True}), ("m:3", {"seconds": -1})):
        beat(database, name, **options)
    with database.writing() as session:
        task = tasks.add(session, "inspect_dataset", project_id=project.id, subject_id=new_id("ds")).id
        claims.claim(session, worker="m:1", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        tasks.claim(session, [KIND], owner="m:2", lease_seconds=60)
    listed = api.get("/workers", params={"order": "asc"}).json()["data"]
    assert [(each["name"], each["status"]) for each in listed] == [
        ("m:1", "alive"),
        ("m:2", "stopping"),
        ("m:3", "lost"),
    ]
    works = [[(work["kind"], work["id"], work["attempt"]) for work in each["work"]] for each in listed]
    assert works == [[("job", job_id, 1)], [("inspect_dataset", task, 1)], []]
    first = listed[0]
    assert first["work"][0]["since"] >= first["started_at"][:10]
    assert first["devices"] == [{"name": "NVIDIA H200", "memory": 150_000_000_000}]
    assert (first["slots"], first["resource_class"]) == (2, "gpu")
    assert (first["capabilities"], first["versions"]) == (["architecture:timm"], {"temper": "0.1.0"})


def test_workers_come_in_pages_and_only_to_an_admin(api, url, database, project):
    made = [beat(database, f"m:{number}").id for number in range(5)]
    found, after = [], {}
    while True:
        page = api.get("/workers", params={"limit": 2, **after}).json()
        found += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert found == sorted(made, reverse=True)
    with calling(url, add_key(database, project, "jobs:read", "jobs:write")) as other:
        assert other.get("/workers").json()["code"] == "forbidden"


def test_a_job_and_the_probe_say_that_no_worker_is_there(api, database):
    posted = api.post("/jobs", json=DIGITS)
    job_id, told = (
        posted.json()["id"],
        {"code": "no_worker", "message": "no worker is alive; start one (`temper worker`)"},
    )
    assert posted.json()["waiting"] == told
    shown = api.get(f"/jobs/{job_id}")
    assert shown.json()["waiting"] == told
    assert shown.headers["etag"] == posted.headers["etag"]
    assert api.get("/jobs").json()["data"][0]["waiting"] == told
    assert api.get("/readyz").json() == {"status": "ok", "details": [f"jobs wait, and {told['message']}"]}
    beat(database, "m:1")
    # Workers come and go without a change of the job: what a caller knows is outdated all the same.
    again = api.get(f"/jobs/{job_id}", headers={"If-None-Match": shown.headers["etag"]})
    assert (again.status_code, again.json()["waiting"]) == (200, None)
    same = api.get(f"/jobs/{job_id}", headers={"If-None-Match": again.headers["etag"]})
    assert same.status_code == 304
    assert api.get("/readyz").json() == {"status": "ok", "details": []}
    assert api.post(f"/jobs/{job_id}/cancel").json()["waiting"] is None


def test_a_stream_says_that_no_worker_is_there(api):
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    with api.stream("GET", f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line == "event: waiting")
        assert '"code":"no_worker"' in next(lines) or '"code":"no_worker"' in next(lines)


def test_the_row_of_a_vanished_worker_is_deleted_after_a_day(database):
    beat(database, "old", seconds=-25 * 3600)
    kept = [beat(database, "new", seconds=-23 * 3600).id, beat(database, "living").id]
    deletion.forget_workers(deletion.Round(database, Event()))
    with database.reading() as session:
        assert sorted(row.id for row in session.query(Worker).all()) == sorted(kept)
