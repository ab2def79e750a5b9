"""Whose job is next: each once, and every project its share."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.jobs import claims, lifecycle
from app.jobs.claims import RetryPolicy
from app.schemas.job_request import parse_request
from tests.support.instance import add_project

SPEC = {"base_model": "digits-cnn-linf"}


def post(database, project, count=1, **change):
    with database.writing() as session:
        return [lifecycle.create(session, project.id, parse_request(SPEC | change)).job.id for _ in range(count)]


def claim(database, settings):
    with database.writing() as session:
        return claims.claim(session, worker="w", lease_seconds=600, retry_policy=RetryPolicy.of(settings))


def test_many_jobs_of_one_project_do_not_hold_up_the_one_of_another(database, settings):
    many, one = add_project(database), add_project(database)
    post(database, many, 30)
    (lonely,) = post(database, one)
    assert lonely in {claim(database, settings).job_id for _ in range(2)}


def test_what_is_urgent_goes_first_among_a_projects_own_jobs_only(database, settings):
    pushy, patient = add_project(database), add_project(database)
    post(database, pushy, 3)
    urgent = post(database, pushy, 3, priority=100)
    (lonely,) = post(database, patient, priority=0)
    taken = [claim(database, settings).job_id for _ in range(4)]
    assert lonely in taken[:2]
    assert set(taken) == {lonely, *urgent}


@pytest.mark.parametrize("instance", ["postgres"], indirect=True)  # SQLite has one writer, so never twenty at once
@pytest.mark.parametrize("jobs_each", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_twenty_claimers_take_each_job_once_and_serve_projects_alike(database, settings, jobs_each):
    projects = [add_project(database) for _ in range(4)]
    owner = {job_id: project.id for project in projects for job_id in post(database, project, jobs_each)}
    half = len(owner) // 2

    def take(number):
        return claim(database, settings).job_id

    with ThreadPoolExecutor(20) as pool:
        first = list(pool.map(take, range(half)))
        rest = list(pool.map(take, range(len(owner) - half)))
    assert sorted(first + rest) == sorted(owner)
    shares = Counter(owner[job_id] for job_id in first)
    # Twenty who look at the same moment see the same counts: that is worth some jobs, however many there are.
    even = half / 4
    assert all(abs(shares[project.id] - even) <= max(even / 10, 10) for project in projects), shares
    assert claim(database, settings) is None
