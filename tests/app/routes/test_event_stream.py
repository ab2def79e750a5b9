"""History as a list and as a stream: every event once, in order, also after a cut."""

import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from app.jobs import claims, ingest
from app.projects import quotas
from core.schema import events as reported
from core.schema.report import Reports
from tests.support.instance import DIGITS, add_key, calling, serving

STREAM = {"Accept": "text/event-stream"}


def do(database, action, *args, **options):
    with database.writing() as session:
        return action(session, *args, **options)


def start(api, database):
    """Post a job and claim it."""
    job_id = api.post("/jobs", json=DIGITS).json()["id"]
    return job_id, do(
        database, claims.claim, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5)
    )


def warn(database, held, count=1):
    do(database, ingest.record, held, [reported.Warned(code="c", message="m")] * count)


def messages(lines):
    """Read server-sent events as the standard says: fields up to an empty line."""
    message = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            message[name] = value
        elif message:
            yield message
            message = {}


def follow(api, job_id, **headers):
    """Read a stream to its end."""
    with api.stream("GET", f"/jobs/{job_id}/events", headers={**STREAM, **headers}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        return list(messages(stream.iter_lines()))


def seqs(received):
    return [int(message["id"]) for message in received if "id" in message]


def test_history_is_listed_in_parts(api, database):
    job_id, held = start(api, database)
    warn(database, held, 5)
    first = api.get(f"/jobs/{job_id}/events", params={"limit": 4}).json()
    assert [event["seq"] for event in first["data"]] == [1, 2, 3, 4]
    assert (first["has_more"], first["last_id"]) == (True, "4")
    rest = api.get(f"/jobs/{job_id}/events", params={"after": first["last_id"]}).json()
    assert [event["seq"] for event in rest["data"]] == [5, 6, 7]
    warned = {"code": "c", "message": "m", "remedy": "", "threat": None}
    assert rest["data"][0] == {**rest["data"][0], "type": "warned", "data": warned}


def test_a_stream_tells_everything_once_and_ends_with_the_job(api, database):
    job_id, held = start(api, database)

    def live():
        for _ in range(10):
            time.sleep(0.03)
            warn(database, held)
        do(database, claims.succeed, held, Reports(before=None, after=None))

    writer = threading.Thread(target=live)
    writer.start()
    received = follow(api, job_id)
    writer.join()
    assert seqs(received) == list(range(1, 14))
    assert received[-2]["event"] == "job.succeeded"
    assert (received[-1]["event"], json.loads(received[-1]["data"])) == ("end", {"status": "succeeded"})
    assert received[0]["retry"] == "3000"


def test_a_stream_goes_on_after_the_last_event_that_was_seen(api, database):
    job_id, held = start(api, database)
    warn(database, held, 250)
    do(database, claims.succeed, held, Reports(before=None, after=None))
    assert seqs(follow(api, job_id)) == list(range(1, 254))
    assert seqs(follow(api, job_id, **{"Last-Event-ID": "200"})) == list(range(201, 254))
    assert seqs(follow(api, job_id, **{"Last-Event-ID": "253"})) == []


def test_a_stream_starts_over_when_last_event_id_is_not_of_its_history(api, database):
    job_id, held = start(api, database)
    warn(database, held, 2)
    do(database, claims.succeed, held, Reports(before=None, after=None))
    assert seqs(follow(api, job_id, **{"Last-Event-ID": "1000"})) == [1, 2, 3, 4, 5]


def test_a_reader_that_is_cut_off_again_and_again_misses_nothing(api, database):
    job_id, held = start(api, database)

    def live():
        for _ in range(60):
            warn(database, held)
            time.sleep(0.005)
        do(database, claims.succeed, held, Reports(before=None, after=None))

    writer = threading.Thread(target=live)
    writer.start()
    received, last = [], "0"
    while not received or received[-1].get("event") != "end":
        with api.stream("GET", f"/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": last}) as stream:
            received += itertools.islice(messages(stream.iter_lines()), 7)
        last = str(max(seqs(received)))
    writer.join()
    assert seqs(received) == list(range(1, 64))


def test_a_stream_shows_progress_between_events(api, database):
    job_id, held = start(api, database)
    step = reported.Stepped(
        step=1, total_steps=2, epoch=0.5, loss=0.25, learning_rate=0.1, norm="l1", counts={}, seconds=1.0
    )
    with api.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as stream:
        received = messages(stream.iter_lines())
        assert next(message for message in received if message.get("id") == "2")
        do(database, ingest.record, held, [step])
        progress = next(message for message in received if message.get("event") == "progress")
    assert "id" not in progress
    assert json.loads(progress["data"])["loss"] == 0.25


def test_an_old_stream_closes_so_that_the_client_resumes(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.routes.streams.MAX_STREAM_SECONDS", 0.2)
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api:
        job_id, _ = start(api, database)
        began = time.monotonic()
        received = follow(api, job_id)
        assert time.monotonic() - began < 10
    assert "end" not in [message.get("event") for message in received]


def test_too_many_streams_are_refused_and_the_place_is_free_again(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.places.STREAMS", 1)
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api:
        job_id, held = start(api, database)
        with api.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as stream:
            lines = stream.iter_lines()
            assert next(lines)
            refused = api.get(f"/jobs/{job_id}/events", headers=STREAM)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_at_once")
            assert int(refused.headers["retry-after"]) > 0
            assert api.get(f"/jobs/{job_id}/events").status_code == 200
        do(database, claims.succeed, held, Reports(before=None, after=None))
        deadline = time.monotonic() + 60
        while api.get(f"/jobs/{job_id}/events", headers=STREAM).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("limit", ["of the process", "of the key"])
@pytest.mark.parametrize(
    ("path", "headers"), [("events", STREAM), ("logs?follow=true", {})], ids=["events", "logs that are followed"]
)
def test_streams_that_are_asked_for_at_once_are_no_more_than_there_may_be(
    settings, database, project, monkeypatch, limit, path, headers
):
    if limit == "of the process":
        monkeypatch.setattr("app.http.places.STREAMS", 2)
    else:
        monkeypatch.setattr(quotas, "DEFAULTS", {**quotas.DEFAULTS, "streams_per_key": 2})
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api, ExitStack() as opened:
        job_id, held = start(api, database)
        together = threading.Barrier(10)

        def ask(_):
            together.wait()
            return opened.enter_context(api.stream("GET", f"/jobs/{job_id}/{path}", headers=headers)).status_code

        with ThreadPoolExecutor(10) as callers:
            statuses = list(callers.map(ask, range(10)))
        assert statuses.count(200) == 2
        do(database, claims.succeed, held, Reports(before=None, after=None))


def test_a_place_is_free_again_though_its_client_went_before_the_first_byte(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.places.STREAMS", 1)
    key = add_key(database, project)
    with serving(settings, database) as url, calling(url, key) as api:
        job_id, held = start(api, database)
        asked = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\n"
        for _ in range(30):
            with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as line:
                line.sendall(f"{asked}Accept: text/event-stream\r\n\r\n".encode())
        deadline = time.monotonic() + 20
        while True:
            with api.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as stream:
                if stream.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        do(database, claims.succeed, held, Reports(before=None, after=None))


@pytest.mark.parametrize("what", ["events", "logs?follow=true"])
def test_what_follows_a_job_that_is_deleted_just_ends(settings, database, project, monkeypatch, what):
    # So rarely that a job can end and be deleted between two looks.
    monkeypatch.setattr("app.jobs.watch.WATCH_SECONDS", 1)
    with serving(settings, database) as address, calling(address, add_key(database, project)) as api:
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        with api.stream("GET", f"/jobs/{job_id}/{what}", headers=STREAM) as stream:
            assert stream.status_code == 200
            assert api.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
            assert api.delete(f"/jobs/{job_id}").status_code == 204
            assert "event: end" not in stream.read().decode()
