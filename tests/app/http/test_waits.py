"""What waits for the store, a name server, a job or a client delays the requests of its own project alone.

The store is a server that takes connections and never answers, so each request to it waits until the test ends it.
"""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from app.http import dependencies, places
from app.http.places import AllPlaces
from app.jobs import claims, ingest
from app.platform.ids import new_id
from app.tables import Attempt, Dataset, Job, Model
from app.webhooks import url_policy
from core.schema.events import Saved
from tests.support.instance import DIGITS, add_key, add_project, calling, serving
from tests.support.sending import announce, cut
from tests.support.silent import silent_server

STREAM = {"Accept": "text/event-stream"}
LARGE = b"x" * (5 * 1024**2 + 1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Refusals come soon, and the store's client does not ask twice."""
    monkeypatch.setattr(places, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("app.routes.uploads._PART_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("app.storage.s3._ATTEMPTS", 1)


@pytest.fixture
def serve(settings, database, monkeypatch):
    """Serve an API, and give its address and its places."""
    with ExitStack() as stack:

        def start(**changes):
            made = AllPlaces()
            monkeypatch.setattr("app.main.Service", partial(dependencies.Service, places=made))
            changed = settings.model_copy(update=changes)
            return stack.enter_context(serving(changed, database, periodic_tasks=())), made

        yield start


@pytest.fixture
def other(database):
    """The key of another project."""
    return add_key(database, add_project(database))


def with_store(url):
    secret = SecretStr("x")
    access = {"s3_access_key_id": secret, "s3_secret_access_key": secret}
    return {"s3_bucket": "temper", "s3_endpoint_url": url, "storage_proxy": True, **access}


def check_refused(answer):
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_at_once")
    assert int(answer.headers["retry-after"]) > 0
    assert "try again" in answer.json()["detail"]


def check_answered(url, key):
    """What touches the database alone is answered, and the service is ready."""
    began = time.monotonic()
    with calling(url, key) as api:
        job = api.post("/jobs", json=DIGITS)
        assert job.status_code == 201
        assert api.get("/jobs").json()["data"][0]["id"] == job.json()["id"]
        for path in (f"/jobs/{job.json()['id']}", "/me", "/readyz", "/livez"):
            assert api.get(path).status_code == 200
    assert time.monotonic() - began < 10, "a request to the store waits for twenty seconds"


def eventually(claim):
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished_job(database, api):
    """Make a job that has a checkpoint, a log and a report; give its id and that of the checkpoint."""
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    saved = Saved(kind="checkpoint", path="/x", step=1, epoch=1.0, size=1, sha256="0" * 64)
    with database.writing() as session:
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
        ingest.save(session, held, saved, key="x")
        session.get_one(Attempt, (job_id, 1)).log_parts = 1
        job = session.get_one(Job, job_id)
        job.report_key, job.status = "report", "succeeded"
        return job_id, job.checkpoint_id


def inspected(database, project):
    """Make a data set and a model that have reports."""
    given = {"project_id": project.id, "filename": "x", "key": "x", "size": 1, "sha256": "0" * 64, "status": "ready"}
    summary = {"thumbnails": [{"file": "0.png", "name": "x", "part": "train", "label": "0"}]}
    with database.writing() as session:
        session.add(Dataset(id=new_id("ds"), name="birds", report_prefix="birds", summary=summary, **given))
        session.add(Model(id=new_id("model"), name="net", declared={}, report_prefix="net", **given))


def test_a_store_that_has_hung_delays_only_those_who_ask_for_it(serve, database, project, other):
    writer, reader = add_key(database, project), add_key(database, project, "jobs:read")
    with ThreadPoolExecutor(16) as pool:
        with silent_server() as store:
            url, taken = serve(**with_store(store))
            with calling(url, writer) as api:
                job_id, checkpoint_id = finished_job(database, api)
            paths = [f"/jobs/{job_id}/report", f"/checkpoints/{checkpoint_id}/download", f"/jobs/{job_id}/logs"]

            def read(number):
                with calling(url, reader) as api:
                    return api.get(paths[number % 3])

            asked = [pool.submit(read, number) for number in range(16)]
            eventually(lambda: sum(each.done() for each in asked) == 16 - places.STORE_SHARE)
            for each in asked:
                if each.done():
                    check_refused(each.result())
            assert (taken.store.free(project.id), taken.store.free()) == (0, places.STORE - places.STORE_SHARE)
            assert database.engine.pool.checkedout() == 0, "a connection waits for the store"
            check_answered(url, other)
            check_answered(url, writer)
            assert sum(each.done() for each in asked) == 16 - places.STORE_SHARE
        # The store has gone, and with it the connections.
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {503}
    assert [answer.json()["code"] for answer in answers].count("storage_unavailable") == places.STORE_SHARE
    eventually(lambda: taken.store.free() == places.STORE)


def test_each_route_that_asks_the_store_needs_a_place(serve, database, project, monkeypatch):
    monkeypatch.setattr(places, "STORE_SHARE", 0)
    # No request would be answered, or refused as an outage, before its end.
    with silent_server() as store:
        url, _ = serve(**with_store(store))
        with calling(url, add_key(database, project)) as api:
            job_id, checkpoint_id = finished_job(database, api)
            inspected(database, project)
            upload = announce(api, LARGE)
            here = f"/uploads/{upload['id']}"
            for method, path, options in [
                ("GET", f"/jobs/{job_id}/report", {}),
                ("GET", f"/jobs/{job_id}/logs", {}),
                ("GET", f"/jobs/{job_id}/logs?tail=1", {}),
                ("GET", f"/jobs/{job_id}/logs?follow=true", {}),
                ("GET", f"/jobs/{job_id}/logs?follow=true&tail=1", {}),
                ("GET", f"/checkpoints/{checkpoint_id}/download", {}),
                ("GET", "/datasets/birds/report", {}),
                ("GET", "/datasets/birds/thumbnails/0", {}),
                ("GET", "/models/net/report", {}),
                ("GET", here, {}),
                ("POST", f"{here}/parts", {"json": {"parts": [{"number": 1, "sha256": "0" * 64}]}}),
                ("PUT", f"{here}/parts/1", {"content": cut(LARGE, upload)[1]}),
                ("POST", f"{here}/complete", {}),
            ]:
                check_refused(api.request(method, path, **options))
            assert api.head(f"/checkpoints/{checkpoint_id}/download").status_code == 503
            # What has been done already is no error: the files are left to the sweep.
            assert api.post(f"{here}/abort").status_code == 200
            assert api.delete(f"/jobs/{job_id}").status_code == 204


def test_slow_name_servers_delay_only_those_who_name_hosts(serve, database, project, other, monkeypatch):
    monkeypatch.setattr(places, "NAMES_SHARE", 2)
    monkeypatch.setattr(url_policy, "LOOKUP_SECONDS", 0.05)
    found = threading.Event()

    def resolve(host, port):
        assert host == "quick.test" or found.wait(60)
        return [ip_address("93.184.216.34")]

    monkeypatch.setattr(url_policy, "resolve", resolve)
    url, taken = serve()
    with calling(url, add_key(database, project)) as api:
        hook = api.post("/webhooks", json={"url": "https://quick.test/"}).json()
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        slow = {"url": "https://slow.test/"}
        for _ in range(places.NAMES_SHARE):
            assert api.post("/webhooks", json=slow).status_code == 422, "it has not waited for the name server"
        # The request has ended, its look-up has not.
        assert (taken.names.free(project.id), taken.names.free()) == (0, places.NAMES - 2)
        check_refused(api.post("/webhooks", json=slow))
        check_refused(api.patch(f"/webhooks/{hook['id']}", json=slow))
        check_refused(api.post("/jobs", json={**DIGITS, "webhook": slow}))
        check_refused(api.post(f"/jobs/{job_id}/clone", json={"overrides": {"webhook": slow}}))
        check_answered(url, other)
        with calling(url, other) as stranger:
            assert stranger.post("/webhooks", json={"url": "https://quick.test/"}).status_code == 201
        found.set()
        eventually(lambda: taken.names.free() == places.NAMES)
        assert api.post("/webhooks", json=slow).status_code == 201


@pytest.mark.parametrize(
    ("path", "headers"), [("events", STREAM), ("logs?follow=true", {})], ids=["events", "logs that are followed"]
)
def test_one_project_takes_no_more_than_its_share_of_streams(
    serve, database, project, other, monkeypatch, path, headers
):
    monkeypatch.setattr(places, "STREAMS_SHARE", 2)
    url, taken = serve()
    with calling(url, add_key(database, project)) as api, calling(url, add_key(database, project)) as second:
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        here = f"/jobs/{job_id}/{path}"
        with api.stream("GET", here, headers=headers) as one, second.stream("GET", here, headers=headers) as two:
            assert (one.status_code, two.status_code) == (200, 200)
            assert (taken.streams.free(project.id), taken.streams.free()) == (0, places.STREAMS - 2)
            check_refused(api.get(here, headers=headers))
            check_refused(second.get(here, headers=headers))
            assert api.get(f"/jobs/{job_id}/events").status_code == 200
            check_answered(url, other)
            with calling(url, other) as stranger:
                theirs = stranger.post("/jobs", json=DIGITS).json()["id"]
                with stranger.stream("GET", f"/jobs/{theirs}/{path}", headers=headers) as stream:
                    assert stream.status_code == 200
                stranger.post(f"/jobs/{theirs}/cancel")
        api.post(f"/jobs/{job_id}/cancel")
        eventually(lambda: taken.streams.free() == places.STREAMS)


def test_long_polls_have_a_share_and_end_as_their_job_does(serve, database, project, other, monkeypatch):
    monkeypatch.setattr(places, "POLLS_SHARE", 2)
    url, taken = serve()
    with calling(url, add_key(database, project)) as api, ThreadPoolExecutor(2) as pool:
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        here = f"/jobs/{job_id}"
        waiting = [pool.submit(api.get, here, params={"wait": 30}) for _ in range(2)]
        eventually(lambda: taken.polls.free(project.id) == 0)
        check_refused(api.get(here, params={"wait": 1}))
        tag = api.get(here).headers["etag"]
        check_refused(api.get(here, params={"wait": 1}, headers={"If-None-Match": tag}))
        # These wait for nothing.
        assert api.get(here, params={"wait": 1}, headers={"If-None-Match": '"x"'}).status_code == 200
        check_answered(url, other)
        with calling(url, other) as stranger:
            theirs = stranger.post("/jobs", json=DIGITS).json()["id"]
            assert stranger.get(f"/jobs/{theirs}", params={"wait": 0.01}).json()["status"] == "queued"
        api.post(f"{here}/cancel")
        assert [each.result().json()["status"] for each in waiting] == ["cancelled"] * 2
        assert taken.polls.free() == places.POLLS


def test_clients_that_send_parts_slowly_have_a_share(serve, database, project, other, monkeypatch):
    monkeypatch.setattr(places, "TRANSFERS_SHARE", 1)
    url, taken = serve()
    key = add_key(database, project)
    with calling(url, key) as api:
        upload = announce(api, b"birds")
        here = f"/uploads/{upload['id']}/parts/1"
        head = f"PUT {here} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 5\r\n\r\n"
        place = urlsplit(url)
        with contextlib.closing(socket.create_connection((place.hostname, place.port), timeout=10)) as slow:
            slow.sendall(head.encode() + b"bir")
            eventually(lambda: taken.transfers.free(project.id) == 0)
            check_refused(api.put(here, content=b"birds"))
            check_answered(url, other)
            slow.sendall(b"ds")
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert api.put(here, content=b"birds").status_code == 200
        assert taken.transfers.free() == places.TRANSFERS


def test_a_client_that_reads_slowly_holds_a_place_until_it_leaves(serve, settings, database, project, monkeypatch):
    monkeypatch.setattr(places, "TRANSFERS_SHARE", 1)
    url, taken = serve()
    with calling(url, add_key(database, project)) as api:
        _, checkpoint_id = finished_job(database, api)
        # More than the system keeps for a connection.
        with (settings.objects_dir / "x").open("wb") as file:
            file.truncate(40 * 1024**2)
        here = f"/checkpoints/{checkpoint_id}/download"
        with api.stream("GET", here) as slow:
            assert slow.status_code == 200
            assert taken.transfers.free(project.id) == 0
            check_refused(api.get(here))
            # Once what the system keeps is full, nothing more is read.
            eventually(lambda: taken.store.free() == places.STORE)
        eventually(lambda: taken.transfers.free() == places.TRANSFERS)
        assert len(api.get(here).content) == 40 * 1024**2
