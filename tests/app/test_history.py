"""The work of a request does not grow with what has happened before: not the statements, nor the rows that they read.

Every list of the API and each of its filters is asked here, those to come as well: they are found in the document.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import update

from app.jobs import claims
from app.jobs.requirements import Capacity
from app.jobs.watch import Watch
from app.main import create_app
from app.operations.metrics import Metrics
from app.platform.database import Database, seconds_from_now
from app.platform.queue import Doorbell
from app.tables import ApiKey
from tests.support.history import Long, Scale, analyse, fill
from tests.support.instance import DIGITS, add_key, add_project, calling, new_instance, serving
from tests.support.lists import lists
from tests.support.sql_statements import sent
from tests.support.work import costs

SMALL = Scale(jobs=72, events=1_200, others=40, days=2)
LARGE = Scale(jobs=720, events=12_000, others=400, days=2)
_NUMBERS = re.compile(r"IN \([\d, ]+\)")
SPARE = 1.25
"""By this factor the larger history may cost more: an index is a level deeper, a timestamp a row further."""


@dataclass
class Grown:
    """An instance with a history."""

    database: Database
    api: Any
    long: Long
    project_id: str


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def histories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Grown]]:
    """Two instances: one has ten times the history of the other."""
    with ExitStack() as stack:
        made = []
        for name, scale in (("small", SMALL), ("large", LARGE)):
            chosen = {}
            if request.param == "postgres":
                server = request.getfixturevalue("postgres_server")
                chosen["database_url"] = server.create_database(f"history_{name}")
            folder = tmp_path_factory.mktemp(name)
            settings, database = stack.enter_context(new_instance(folder, **chosen))
            project = add_project(database)
            long = fill(database, project.id, scale)
            analyse(database)
            url = stack.enter_context(serving(settings, database, periodic_tasks=()))
            api = stack.enter_context(calling(url, add_key(database, project)))
            with database.writing() as session:  # its use would be recorded once a minute
                session.execute(update(ApiKey).values(last_used_at=seconds_from_now(3600)))
            made.append(Grown(database, api, long, project.id))
        yield made


def holds(histories, ask, what=""):
    """Ask both instances, and compare what each statement costs: rows, or steps."""
    found = []
    for grown in histories:
        with sent(grown.database) as statements:
            ask(grown)
        texts = [_NUMBERS.sub("IN (...)", text) for text, _ in statements]
        found.append((texts, costs(grown.database, statements)))
    (texts, small), (others, large) = found
    assert others == texts, what
    wrong = [
        f"{before} -> {after}: {text}"
        for text, before, after in zip(texts, small, large, strict=True)
        if after > before * SPARE + 40
    ]
    if wrong:
        pytest.fail("\n".join([str(what), *wrong]), pytrace=False)


@pytest.fixture(scope="module")
def document(histories, tmp_path_factory):
    with new_instance(tmp_path_factory.mktemp("document")) as made:
        return create_app(*made).openapi()


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch):
    # Fewer than a second page of the smaller history has, so that both look at as many.
    monkeypatch.setattr("app.platform.paging.LOOKED_AT", 10)
    monkeypatch.setattr("app.operations.metrics.MOST_DELIVERIES", 20)


def test_every_list_with_every_filter_costs_the_same_whatever_the_history(histories, document):
    asked = 0
    for path, filters in lists(document):
        choices = [{}] + [{name: value} for name, values in filters.items() for value in values]
        first = {name: values[0] for name, values in filters.items()}
        choices += [first, {**first, **{name: values[-1] for name, values in filters.items()}}]
        for chosen in choices:
            holds(histories, lambda grown, path=path, chosen=chosen: read(grown, path, chosen), (path, chosen))
            asked += 1
    assert asked > 40


def read(grown, path, chosen):
    """A page of a list, and where it is not filtered or by all filters the next one."""
    address = path.format(job_id=grown.long.job_id, webhook_id=grown.long.webhook_id)
    first = grown.api.get(address, params={**chosen, "limit": 5})
    assert first.status_code == 200, first.text
    if len(chosen) != 1 and (after := first.json()["last_id"]):
        assert grown.api.get(address, params={**chosen, "limit": 5, "after": after}).status_code == 200


def test_a_follower_of_a_filter_finds_all_jobs_that_match_it_and_no_other(histories):
    small, _ = histories
    for chosen in ({"status": "failed", "dataset": "digits", "kind": "evaluate"}, {"metadata": "team=team-1"}):
        for order in ("asc", "desc"):
            found, after = [], {}
            while True:
                page = small.api.get("/jobs", params={**chosen, **after, "limit": 7, "order": order}).json()
                found += page["data"]
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
            every = [job for job in all_jobs(small) if fits(job, chosen)]
            expected = sorted((job["id"] for job in every), reverse=order == "desc")
            assert [job["id"] for job in found] == expected
            assert expected


def all_jobs(grown):
    jobs, after = [], {}
    while True:
        page = grown.api.get("/jobs", params={"limit": 100, **after}).json()
        jobs += page["data"]
        if not page["has_more"]:
            return jobs
        after = {"after": page["last_id"]}


def fits(job, chosen):
    shown = {"status": job["status"], "kind": job["kind"], "dataset": "digits"}
    if "metadata" in chosen:
        key, _, value = chosen["metadata"].partition("=")
        return job["metadata"].get(key) == value
    return all(shown[name] == value for name, value in chosen.items() if name != "dataset")


REQUESTS = {
    "post": lambda grown: grown.api.post("/jobs", json=DIGITS),
    "post with a key": lambda grown: grown.api.post("/jobs", json=DIGITS, headers={"Idempotency-Key": "a"}),
    "dry run": lambda grown: grown.api.post("/jobs", json=DIGITS, params={"dry_run": True}),
    "usage": lambda grown: grown.api.get("/usage"),
    **{
        f"usage by {by}": lambda grown, by=by: grown.api.get("/usage", params={"group_by": by, "from": some_days_ago()})
        for by in ("day", "month", "kind", "dataset", "base_model")
    },
    "me": lambda grown: grown.api.get("/me"),
    "metrics": lambda grown: grown.api.get(f"/jobs/{grown.long.job_id}/metrics", params={"max_points": 50}),
    "metrics from the middle": lambda grown: grown.api.get(
        f"/jobs/{grown.long.job_id}/metrics", params={"max_points": 50, "after_step": 300}
    ),
    "job": lambda grown: grown.api.get(f"/jobs/{grown.long.job_id}"),
    "lineage": lambda grown: grown.api.get(f"/jobs/{grown.long.job_id}/lineage"),
    "quotas": lambda grown: grown.api.get(f"/projects/{grown.project_id}/quotas"),
    "upload": lambda grown: grown.api.post(
        "/uploads", json={"filename": "x", "bytes": 5, "sha256": "0" * 64, "purpose": "model"}
    ),
}


def some_days_ago():
    return f"{datetime.now(UTC) - timedelta(days=4):%Y-%m-%d}T00:00:00Z"


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_costs_the_same_whatever_the_history(histories, name):
    def ask(grown):
        answer = REQUESTS[name](grown)
        assert answer.is_success, answer.text

    holds(histories, ask, name)


def test_a_claim_costs_the_same_whatever_the_history(histories):
    def claim(grown):
        with grown.database.writing() as session:
            assert claims.claim(
                session,
                worker="w",
                lease_seconds=60,
                retry_policy=claims.RetryPolicy(max_crashes=5),
                capacity=Capacity(),
            )

    for grown in histories:
        grown.api.post("/jobs", json=DIGITS)
    holds(histories, claim)


def test_a_scrape_costs_the_same_whatever_the_history(histories):
    def scrape(grown):
        metrics = Metrics(grown.database, Watch(grown.database), Doorbell(""))
        assert b"temper_attempts_total" in generate_latest(metrics.registry)

    holds(histories, scrape)
