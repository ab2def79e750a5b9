"""Rate limits: counted over all API processes, told in headers, and never in the way when the broker is."""

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.instance import DIGITS, add_key, calling, serving
from tests.support.servers import valkey

on_sqlite = pytest.mark.parametrize("instance", ["sqlite"], indirect=True)
pytestmark = on_sqlite


@pytest.fixture(scope="module")
def broker():
    with valkey() as server:
        yield server


def standing(answer):
    """What the headers tell: (limit, window, remaining, reset)."""
    policy = re.fullmatch(r'"requests";q=(\d+);w=(\d+)', answer.headers["ratelimit-policy"])
    now = re.fullmatch(r'"requests";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    return tuple(int(number) for number in (*policy.groups(), *now.groups()))


def test_every_answer_to_a_key_tells_where_it_stands(api):
    answers = [
        api.get("/jobs"),
        api.get("/jobs/job_0"),
        api.post("/jobs", json={}),
        api.post("/jobs", params={"dry_run": True}, json=DIGITS),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 422, 200]
    assert [standing(answer)[:3] for answer in answers] == [(6000, 60, 6000 - made) for made in (1, 2, 3, 4)]
    assert all(0 < standing(answer)[3] <= 60 for answer in answers)
    assert "ratelimit" not in api.get("/livez").headers


@pytest.mark.parametrize("shared", [False, True])
def test_a_key_over_its_limit_is_told_when_to_come_back_and_then_served(
    settings, database, project, broker, monkeypatch, shared
):
    url = broker.url if shared else ""
    monkeypatch.setattr("app.http.rate_limits.RATE_LIMIT_SECONDS", 2)
    narrow = settings.model_copy(update={"rate_limit": 3, "broker_url": url})
    with serving(narrow, database) as address, calling(address, add_key(database, project)) as api:
        assert [api.get("/jobs").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = api.get("/jobs")
        assert refused.json()["code"] == "rate_limited"
        assert refused.json()["violated-policies"] == ["requests"]
        assert standing(refused)[2] == 0
        assert int(refused.headers["retry-after"]) == standing(refused)[3] <= 2
        with calling(address, add_key(database, project)) as another_key:
            assert another_key.get("/jobs").status_code == 200
        time.sleep(int(refused.headers["retry-after"]))
        assert api.get("/jobs").status_code == 200


def test_two_api_processes_count_together_through_the_broker(settings, database, project, broker):
    narrow = settings.model_copy(update={"rate_limit": 10, "broker_url": broker.url})
    key = add_key(database, project)
    with (
        serving(narrow, database) as first,
        serving(narrow, database) as second,
        calling(first, key) as here,
        calling(second, key) as there,
        ThreadPoolExecutor(8) as pool,
    ):
        # FastAPI builds its routes at the first request, which two threads of one process must not do at once.
        assert [api.get("/livez").status_code for api in (here, there)] == [200, 200]
        codes = list(pool.map(lambda number: (here, there)[number % 2].get("/jobs").status_code, range(24)))
    assert (codes.count(200), codes.count(429)) == (10, 14)


def test_without_the_broker_no_request_is_refused_or_delayed(settings, database, project, caplog, monkeypatch):
    # Longer than a busy machine takes for anything else, so that a wait for the broker is told from it.
    monkeypatch.setattr("app.http.rate_limits._PATIENCE_SECONDS", 5)
    with valkey() as broker:
        narrow = settings.model_copy(update={"rate_limit": 2, "broker_url": broker.url})
        with serving(narrow, database) as url, calling(url, add_key(database, project)) as api:
            assert [api.get("/jobs").status_code for _ in range(3)] == [200, 200, 429]
            broker.signal(signal.SIGSTOP)
            began = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(api.get, "/jobs") for _ in range(8)]
                # Those who wait for the broker do not hold up the rest.
                before = time.monotonic()
                assert api.get("/livez").status_code == 200
                assert time.monotonic() - before < 5
                answers = [each.result() for each in asked]
            assert time.monotonic() - began < 15
            assert {answer.status_code for answer in answers} == {200}
            assert not any("ratelimit" in answer.headers for answer in answers)
            assert "requests are not limited now" in caplog.text
            broker.kill()
            assert api.get("/jobs").status_code == 200


def test_the_limit_is_back_when_the_broker_is(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.rate_limits._AWAY_SECONDS", 0.1)
    with valkey() as broker:
        narrow = settings.model_copy(update={"rate_limit": 2, "broker_url": broker.url})
        broker.kill()
        with serving(narrow, database) as url, calling(url, add_key(database, project)) as api:
            assert [api.get("/jobs").status_code for _ in range(4)] == [200] * 4
            broker.start()
            time.sleep(0.2)
            assert [api.get("/jobs").status_code for _ in range(3)] == [200, 200, 429]


def test_after_many_wrong_keys_an_address_is_limited_except_with_a_right_key(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.rate_limits.AUTH_FAILURES", 5)
    known, unused = add_key(database, project), add_key(database, project)
    wrong = f"tmp_{'0' * 8}_{'0' * 32}"
    with serving(settings, database) as url, calling(url, known) as api, calling(url, wrong) as guesser:
        assert api.get("/jobs").status_code == 200
        assert [guesser.get("/jobs").status_code for _ in range(7)] == [401] * 5 + [429] * 2
        refused = guesser.get("/jobs")
        assert refused.json()["code"] == "rate_limited"
        assert refused.json()["violated-policies"] == []
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert api.get("/jobs").status_code == 200
        # A right key that this process has not seen before is looked up, whoever guesses at its address.
        with calling(url, unused) as newcomer:
            assert newcomer.get("/jobs").status_code == 200
        another = f"tmp_{'1' * 8}_{'1' * 32}"
        with calling(url, another) as guesser_of_another:
            assert [guesser_of_another.get("/jobs").status_code for _ in range(3)] == [429] * 3
        assert guesser.get("/livez").status_code == 200


def test_a_key_that_is_no_longer_right_is_no_longer_trusted(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.rate_limits.AUTH_FAILURES", 3)
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api:
        made = api.post("/api_keys", json={"name": "x"}).json()
        with calling(url, made["secret"]) as other:
            assert other.get("/jobs").status_code == 200
            api.delete(f"/api_keys/{made['id']}")
            assert [other.get("/jobs").status_code for _ in range(5)] == [401] * 3 + [429] * 2
