"""Requests that change and delete the same thing at once: one is in time, the others are told so; nobody gets a 5xx.

On Postgres: SQLite's writers go one after the other.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement, count

import pytest

from tests.support.instance import DIGITS

THREADS = 6
URL = "https://93.184.216.34/hook"
NUMBERS = count()

pytestmark = pytest.mark.parametrize("instance", ["postgres"], indirect=True, scope="session")


def rush(api, moves, make, expected):
    """Make each pair of moves at a thing of its own, twice, all at once. Nothing but what is expected is answered, and
    nothing is deleted twice."""
    pairs = [(make(), pair) for pair in combinations_with_replacement(moves, 2)]
    wanted = [(path + suffix, method, body) for path, pair in pairs for method, suffix, body in (*pair, *pair)]

    def ask(each):
        path, method, body = each
        return api.request(method, path, **({} if body is None else {"json": body}))

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, wanted))
    told = sorted({(answer.status_code, answer.text[:300]) for answer in answers})
    assert {status for status, _ in told} <= expected, told
    deleted = [answer.request.url.path for answer in answers if answer.status_code == 204]
    assert len(deleted) == len(set(deleted)) >= 1


JOB_MOVES = [
    ("DELETE", "", None),
    ("POST", "/cancel", None),
    ("POST", "/retry", None),
    ("POST", "/clone", {}),
]


def test_a_job_is_deleted_once_whatever_else_is_asked_of_it(api):
    def make():
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        api.post(f"/jobs/{job_id}/cancel")
        return f"/jobs/{job_id}"

    rush(api, JOB_MOVES, make, {201, 202, 204, 404, 409})


WEBHOOK_MOVES = [
    ("DELETE", "", None),
    ("PATCH", "", {"description": "x"}),
    ("POST", "/rotate_secret", None),
    ("POST", "/test", None),
]


def new_webhook(api, **chosen):
    made = api.post("/webhooks", json={"url": f"{URL}/{next(NUMBERS)}", **chosen})
    return f"/webhooks/{made.json()['id']}"


def test_a_webhook_is_deleted_once_whatever_else_is_asked_of_it(api):
    rush(api, WEBHOOK_MOVES, lambda: new_webhook(api), {200, 202, 204, 404})


def test_a_delivery_is_sent_again_or_gone_with_its_webhook(api):
    for _ in range(4):
        here = new_webhook(api)
        delivery = api.post(f"{here}/test").json()["id"]
        moves = [("POST", f"/deliveries/{delivery}/redeliver", None), ("DELETE", "", None)]
        rush(api, moves, lambda here=here: here, {202, 204, 404})


def test_a_job_moves_on_while_webhooks_that_hear_of_it_are_deleted(api):
    for _ in range(3):
        hooks = [new_webhook(api, events=["job.cancelled"]) for _ in range(4)]
        jobs = [api.post("/jobs", json=DIGITS).json()["id"] for _ in range(4)]
        with ThreadPoolExecutor(THREADS) as pool:
            cancelled = [pool.submit(api.post, f"/jobs/{job}/cancel") for job in jobs]
            deleted = [pool.submit(api.delete, hook) for hook in hooks]
            assert {each.result().status_code for each in cancelled} == {202}
            assert {each.result().status_code for each in deleted} == {204}
