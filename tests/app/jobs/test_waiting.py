"""Who may claim a job, and what is said of one that nobody alive could take."""

import pytest
from sqlalchemy import delete, update

from app import tasks
from app.assets.architectures import TIMM_NETWORKS
from app.jobs import claims, lifecycle, waiting, workers
from app.jobs.requirements import Capacity, Requirements
from app.jobs.workers import Description, Device
from app.platform.database import now, seconds_from_now
from app.platform.ids import new_id
from app.schemas.job_request import parse_request
from app.tables import Job, Worker
from tests.support.instance import DIGITS, add_project
from tests.support.sql_statements import sent
from tests.support.work import costs

TIMM = {"kind": "train", "architecture": "timm/convnext_atto", "dataset": "digits", "eps": {"linf": 0.1}}
TIMM |= {"epochs": 1, "method": "nat"}


def post(database, project, spec=DIGITS, **options):
    with database.writing() as session:
        return lifecycle.create(session, project.id, parse_request(spec), **options).job.id


def claim(database, capacity):
    with database.writing() as session:
        held = claims.claim(
            session, worker="w", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5), capacity=capacity
        )
    return held and held.job_id


def gpus(*memory):
    return Capacity(gpu_memory=memory)


def live(database, *, memory=(), capabilities=(), seconds=60, is_stopping=False):
    devices = tuple(Device("GPU", each) for each in memory)
    worker = Description(new_id("wrk"), "m:1", "gpu", 1, devices, frozenset(capabilities), {})
    with database.writing() as session:
        workers.beat(session, worker, seconds=seconds, is_stopping=is_stopping)
    return worker


def reason(database, job_id):
    with database.reading() as session:
        return waiting.reasons(session, [session.get_one(Job, job_id)]).get(job_id)


def unserved(database):
    with database.reading() as session:
        return waiting.unserved(session)


def test_a_worker_claims_what_requires_no_more_than_it_has(database, project):
    pair = post(database, project, DIGITS | {"gpus": 2, "priority": 9})
    of_timm = post(database, project, TIMM)
    plain = post(database, project)
    assert claim(database, Capacity()) == plain
    assert claim(database, gpus(1)) is None
    assert claim(database, gpus(1, 1)) == pair
    assert claim(database, gpus(1, 1)) is None
    assert claim(database, Capacity(frozenset([TIMM_NETWORKS]))) == of_timm


def test_what_nobody_can_take_holds_up_neither_its_project_nor_others(database, project):
    other = add_project(database)
    for _ in range(3):
        post(database, project, DIGITS | {"gpus": 64, "priority": 100})
    mine, theirs = post(database, project), post(database, other)
    assert {claim(database, gpus(1)), claim(database, gpus(1))} == {mine, theirs}
    assert claim(database, gpus(1)) is None


def test_priority_orders_the_jobs_of_a_project_whatever_they_require(database, project):
    posted = [
        post(database, project, DIGITS | {"gpus": number, "priority": priority})
        for number, priority in ((1, 5), (2, 7), (3, 7), (2, 1))
    ]
    order = [1, 2, 0, 3]
    assert [claim(database, gpus(1, 1, 1)) for _ in posted] == [posted[place] for place in order]


def test_a_shard_requires_what_its_evaluation_does(database, project):
    job_id = post(database, project, {"kind": "evaluate"} | DIGITS, in_shards=2)
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(requires=Requirements(gpus=2).key))
    assert claim(database, Capacity()) != job_id


def test_a_claim_looks_at_each_group_of_jobs_once_however_many_wait(database, project):
    found = []
    for _ in range(2):
        with database.writing() as session:
            for _ in range(40 if found else 4):
                for wanted in (64, 2):
                    spec = parse_request(DIGITS | {"gpus": wanted})
                    lifecycle.create(session, project.id, spec)
        with sent(database) as statements:
            assert claim(database, Capacity()) is None
        found.append(costs(database, statements))
    assert all(later <= before * 1.25 + 40 for before, later in zip(*found, strict=True)), found


def test_a_job_says_that_no_worker_is_alive_until_one_is(database, project):
    plain, pair = post(database, project), post(database, project, DIGITS | {"gpus": 2})
    assert reason(database, plain).code == "no_worker"
    assert reason(database, plain).message == "no worker is alive; start one (`temper worker`)"
    assert reason(database, pair).message == "no worker is alive; start one that has 2 GPUs"
    assert unserved(database) == ["jobs wait, and no worker is alive; start one (`temper worker`)"]
    live(database, memory=(1,))
    assert reason(database, plain) is None
    assert reason(database, pair).code == "no_suitable_worker"
    told = "it needs 2 GPUs, and no living worker has that; the nearest one has 1 of 2 GPUs"
    assert reason(database, pair).message == told
    assert unserved(database) == [f"a job waits: {told}"]
    live(database, memory=(1, 1))
    assert reason(database, pair) is None
    assert unserved(database) == []


@pytest.mark.parametrize("change", [{"seconds": -1}, {"is_stopping": True}])
def test_a_worker_that_vanished_or_stops_is_none(database, project, change):
    job_id = post(database, project)
    live(database, **change)
    assert reason(database, job_id).code == "no_worker"


def test_a_job_that_does_not_wait_gives_no_reason(database, project):
    job_id = post(database, project)
    assert claim(database, Capacity()) == job_id
    assert reason(database, job_id) is None
    assert unserved(database) == []


def test_an_upload_that_waits_for_its_inspection_is_told_of(database, project):
    with database.writing() as session:
        tasks.add(session, "inspect_dataset", project_id=project.id, subject_id=new_id("ds"))
    assert unserved(database) == ["inspections of files wait, and no worker is alive; start one (`temper worker`)"]
    live(database)
    assert unserved(database) == []


def test_few_sentences_tell_of_many_kinds_of_jobs(database, project):
    live(database)
    for number in range(2, 12):
        post(database, project, DIGITS | {"gpus": number})
    assert len(unserved(database)) == 5


def test_a_worker_is_registered_once_and_again_where_its_row_is_gone(database):
    worker = live(database, memory=(5, None), capabilities=("b", "a"))
    with database.writing() as session:
        session.execute(update(Worker).values(heartbeat_at=seconds_from_now(-60), alive_until=now()))
        workers.beat(session, worker, seconds=60, is_stopping=True)
        (row,) = session.query(Worker).all()
        session.refresh(row)
        assert (row.id, row.is_stopping, row.capabilities) == (worker.id, True, ["a", "b"])
        assert row.alive_until > row.heartbeat_at > row.started_at
        session.execute(delete(Worker))
        workers.beat(session, worker, seconds=60)
        assert workers.capacities(session) == [worker.capacity]
        workers.leave(session, worker.id)
        assert workers.capacities(session) == []


def test_a_worker_takes_the_place_of_a_vanished_one_of_its_name(database):
    live(database, seconds=-1)
    living, last = live(database), live(database)
    with database.reading() as session:
        part = workers.list_workers(session, after=None, limit=10, order="asc")
    assert [row.id for row in part.rows] == sorted([living.id, last.id])
