"""One Idempotency-Key, many at once: one job, and everybody is told of that one."""

import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select

from app.tables import Job
from tests.support.instance import DIGITS

CALLERS = 50
KEY = {"Idempotency-Key": "the same for all"}


def test_fifty_at_once_with_one_key_make_one_job_and_get_the_same_answer(api, database):
    together = threading.Barrier(CALLERS)
    assert api.get("/jobs").json()["data"] == []

    def post(_):
        together.wait()
        return api.post("/jobs", json=DIGITS, headers=KEY)

    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(post, range(CALLERS)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len({(answer.headers["location"], answer.headers["etag"]) for answer in answers}) == 1
    replayed = [answer for answer in answers if answer.headers.get("idempotent-replayed") == "true"]
    assert len(replayed) == CALLERS - 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
    other = api.post("/jobs", json={**DIGITS, "seed": 7}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
