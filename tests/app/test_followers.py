"""A follower of an ascending list, who asks for what comes after the last id it has seen, misses nothing."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from ulid import ULID

from app.assets import uploads
from app.jobs import claims, ingest, lifecycle
from app.platform.ids import later_id
from app.projects import keys
from app.schemas.job_request import parse_request
from app.tables import Project
from app.webhooks import subscriptions
from core.schema.events import Saved
from tests.support.instance import DIGITS

SPEC = parse_request(DIGITS)
ROWS = 30
"""That each of two writers makes."""


def post_job(session, project_id):
    return lifecycle.create(session, project_id, SPEC).job.id


def announce(session, project_id):
    file = {"filename": "x", "size": 1, "sha256": "0" * 64, "purpose": "model", "part_size": 1}
    return uploads.create(session, project_id, **file, seconds=60).id


def make_key(session, project_id):
    return keys.new_key(session, session.get_one(Project, project_id))[0].id


def make_project(session, _):
    return keys.new_project(session, "x").id


def make_webhook(session, project_id):
    url = f"https://example.com/{random.random()}"
    return subscriptions.create(session, project_id, url=url, events=(), description="", limit=1000).id


@pytest.fixture
def clocks_that_differ(monkeypatch):
    """Each id is made by a machine whose clock is wrong by up to a tenth of a second."""
    chance = random.Random(5)

    def made():
        return ULID.from_datetime(datetime.now(UTC) + timedelta(milliseconds=chance.randrange(-100, 100)))

    made.from_int, made.from_str = ULID.from_int, ULID.from_str
    monkeypatch.setattr("app.platform.ids.ULID", made)


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("/jobs", post_job),
        ("/uploads", announce),
        ("/api_keys", make_key),
        ("/projects", make_project),
        ("/webhooks", make_webhook),
    ],
)
@pytest.mark.usefixtures("clocks_that_differ")
def test_a_follower_misses_nothing_that_two_writers_make(api, database, project, path, make):
    chance, done = random.Random(3), threading.Event()
    params = {} if path == "/webhooks" else {"order": "asc"}

    def write(_):
        made = []
        for _ in range(ROWS):
            with database.writing() as session:
                made.append(make(session, project.id))
                # Between the moment at which the id is given and that at which others can see the row.
                time.sleep(chance.random() / 100)
        return made

    def follow():
        seen, after = [], {}
        while True:
            is_last = done.is_set()
            page = api.get(path, params={**params, **after, "limit": 100}).json()
            seen += [row["id"] for row in page["data"]]
            if page["last_id"]:
                after = {"after": page["last_id"]}
            if is_last and not page["has_more"]:
                return seen

    with ThreadPoolExecutor(3) as pool:
        following = pool.submit(follow)
        written = list(pool.map(write, range(2)))
        done.set()
        seen = following.result()
    assert set(seen) >= {row for made in written for row in made}
    assert len(seen) == len(set(seen))


@pytest.mark.usefixtures("clocks_that_differ")
def test_the_checkpoints_of_a_job_are_listed_in_the_order_of_their_commits(database, project):
    made = []
    with database.writing() as session:
        job_id = post_job(session, project.id)
        held = claims.claim(session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5))
    for step in range(20):
        with database.writing() as session:
            saved = Saved(kind="checkpoint", path="/x", step=step, epoch=1.0, size=1, sha256="0" * 64)
            ingest.save(session, held, saved, key=f"{job_id}/{step}")
            made.append(session.get_one(lifecycle.Job, job_id, populate_existing=True).checkpoint_id)
    assert made == sorted(made)


def test_an_id_is_later_than_the_one_before_it_whatever_the_clock_says():
    far = str(ULID.from_datetime(datetime.now(UTC) + timedelta(days=400)))
    after = later_id("job", far).removeprefix("job_")
    assert far < after < str(ULID.from_int(int(ULID.from_str(far)) + 2))
    assert later_id("job", "") > "job_0"
