"""A database that breaks at the worst moments: nothing accepted is lost, nothing is done twice, everything goes on."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx2
import pytest
from sqlalchemy import select, text

from app.assets.registry import Registry
from app.jobs import claims, ingest, lifecycle
from app.jobs.claims import RetryPolicy
from app.jobs.leases import LeaseLost, log_key
from app.platform.database import MORE_CONNECTIONS, THREADS, Database
from app.schemas.job_request import parse_request
from app.storage import LocalStore
from app.tables import Attempt, Checkpoint, Event, Job, Metric
from core.schema import events as reported
from core.schema.report import Reports
from tests.app.routes.test_event_stream import follow, seqs
from tests.support import invariants, native
from tests.support.fake_worker import fake_command
from tests.support.instance import DIGITS, add_key, calling, new_instance, serving
from tests.support.processes import processes_with, wait_until
from tests.support.proxy import proxy
from tests.support.servers import postgres
from worker.attempt import run
from worker.workplace import Workplace

# A busy machine takes its time, and nobody here would take a run that was given up: a lease ends where that is asked.
LONG, SHORT = 60.0, 3.0


@pytest.fixture(scope="module")
def postgres_of_its_own():
    """A Postgres that may be broken, and keeps what it has committed."""
    with postgres(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def network(postgres_of_its_own):
    """The way to it."""
    with proxy(postgres_of_its_own.port) as way:
        yield way


@pytest.fixture(scope="module")
def instance(tmp_path_factory, postgres_of_its_own):
    """An instance with a direct way to its database."""
    url = postgres_of_its_own.create_database("broken")
    with new_instance(tmp_path_factory.mktemp("broken"), database_url=url) as made:
        yield made


@pytest.fixture
def behind(settings, postgres_of_its_own, network):
    """The same database by the way that breaks."""
    url = settings.database_url.replace(f":{postgres_of_its_own.port}/", f":{network.port}/")
    database = Database(url)
    yield database
    network.heal()
    database.close()


@pytest.fixture
def broken_api(settings, behind, database, project):
    """The API with that way, and no periodic_tasks that would meet the fault in place of the request."""
    with serving(settings, behind, periodic_tasks=()) as url, calling(url, add_key(database, project)) as api:
        assert api.get("/me").status_code == 200
        yield api


def place(settings, database, *, lease_seconds=LONG):
    settings = settings.model_copy(update={"lease_seconds": lease_seconds})
    registry = Registry(settings.models_dir, settings.datasets_dir)
    return Workplace(settings, database, LocalStore(settings.objects_dir), registry, fake_command)


def post(database, project, **wish):
    with database.writing() as session:
        return lifecycle.create(session, project.id, parse_request({**DIGITS, "name": "n", "metadata": wish})).job.id


def claim(database, *, lease_seconds=LONG):
    with database.writing() as session:
        return claims.claim(
            session, worker="w", lease_seconds=lease_seconds, retry_policy=RetryPolicy(max_crashes=5, backoff_seconds=0)
        )


@contextmanager
def running(held, workplace):
    thread = threading.Thread(target=run, args=(held, workplace))
    thread.start()
    try:
        yield thread
    finally:
        workplace.stopping.set()
        thread.join()


def status(database, job_id):
    with database.reading() as session:
        return session.get_one(Job, job_id).status


def the_commit_after(statement):
    """The moment: a COMMIT on its way, once this statement was."""
    seen = threading.Event()

    def is_it(data):
        if statement in data:
            seen.set()
        return seen.is_set() and b"COMMIT" in data

    return is_it


@pytest.mark.parametrize(("fault", "replayed"), [("lose_the_answer_to", "true"), ("lose", None)])
def test_a_post_with_a_broken_commit_gets_503_and_its_repetition_makes_one_job(
    broken_api, network, database, fault, replayed
):
    key = {"Idempotency-Key": "k"}
    getattr(network, fault)(the_commit_after(b"INSERT INTO jobs"))
    first = broken_api.post("/jobs", json=DIGITS, headers=key)
    assert (first.status_code, first.json()["code"]) == (503, "database_unavailable")
    assert int(first.headers["retry-after"]) > 0
    again = broken_api.post("/jobs", json=DIGITS, headers=key)
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (201, replayed)
    with database.reading() as session:
        assert session.scalars(select(Job.id)).all() == [again.json()["id"]]
    invariants.check(database)


@pytest.mark.parametrize(
    ("fault", "statement"),
    [
        ("lose_the_answer_to", b"INSERT INTO metrics"),
        pytest.param("lose_the_answer_to", b"INSERT INTO checkpoints", marks=pytest.mark.slow),
        pytest.param("lose_the_answer_to", b"INSERT INTO states", marks=pytest.mark.slow),
        pytest.param("lose", b"INSERT INTO metrics", marks=pytest.mark.slow),
        pytest.param("lose", b"INSERT INTO states", marks=pytest.mark.slow),
        pytest.param("lose", b"INSERT INTO checkpoints", marks=pytest.mark.slow),
    ],
)
def test_what_a_worker_reports_over_a_commit_that_breaks_off_is_there_once(
    settings, network, behind, database, project, statement, fault
):
    job_id = post(database, project, states="yes")
    workplace = place(settings, behind)
    getattr(network, fault)(the_commit_after(statement))
    run(claim(database), workplace)
    with database.reading() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.attempt, job.crashes) == ("succeeded", 1, 0)
        assert session.scalars(select(Metric.step).order_by(Metric.step)).all() == list(range(1, 11))
        assert len(session.scalars(select(Checkpoint)).all()) == 1
        told = [(event.type, str(event.data)) for event in session.scalars(select(Event))]
        assert len(set(told)) == len(told)
    invariants.check(database, workplace.store)


@pytest.mark.slow
def test_a_success_whose_commit_breaks_off_is_one(settings, network, behind, database, project):
    job_id = post(database, project, states="yes")
    workplace = place(settings, behind)
    network.lose_the_answer_to(the_commit_after(b"finished_at="))
    run(claim(database), workplace)
    assert status(database, job_id) == "succeeded"
    invariants.check(database, workplace.store)


def test_concurrent_writers_take_turns_and_a_stream_shows_their_events_in_order(
    settings, database, project, postgres_of_its_own
):
    rounds = 5
    with serving(settings, database, periodic_tasks=()) as url, calling(url, add_key(database, project)) as api:
        job_id = post(database, project)
        held = claim(database)
        with ThreadPoolExecutor(2) as pool:
            received = pool.submit(follow, api, job_id)
            for number in range(rounds):
                with database.writing() as session:
                    # This place in the history is taken, but nobody can see it yet.
                    ingest.record(session, held, [reported.Warned(code="early", message=str(number))])
                    session.flush()
                    late = pool.submit(warn, settings, held, f"late {number}")
                    wait_until(lambda: waiting_for_a_lock(postgres_of_its_own, settings), seconds=5)
                    assert not late.done()
                late.result()
            with database.writing() as session:
                claims.succeed(session, held, Reports(before=None, after=None))
            assert seqs(received.result()) == list(range(1, 2 * rounds + 4))
    invariants.check(database)


def warn(settings, held, message):
    database = Database(settings.database_url)
    with database.writing() as session:
        ingest.record(session, held, [reported.Warned(code="late", message=message)])
    database.close()


def waiting_for_a_lock(server, settings):
    database = Database(server.url)
    with database.reading() as session:
        name = settings.database_url.rpartition("/")[2]
        asked = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND wait_event_type = 'Lock'")
        count = session.scalar(asked, {"name": name})
    database.close()
    return count


def test_a_restart_under_load_loses_no_accepted_job_and_a_run_and_a_stream_go_on(
    settings, database, project, postgres_of_its_own
):
    long = post(database, project, seconds="0.25", states="yes")
    workplace = place(settings, Database(settings.database_url))
    over = threading.Event()
    with ExitStack() as stack:
        url = stack.enter_context(serving(settings, database))
        api = stack.enter_context(calling(url, add_key(database, project)))
        pool = stack.enter_context(ThreadPoolExecutor(5))
        thread = stack.enter_context(running(claim(database), workplace))
        stream = pool.submit(follow, api, long)
        clients = [pool.submit(keep_posting, url, api.headers, over, number) for number in range(4)]
        wait_until(lambda: status(database, long) == "running" and processes_with(long))
        time.sleep(0.3)
        postgres_of_its_own.stop("immediate")
        time.sleep(0.7)
        postgres_of_its_own.start(durable=True)
        time.sleep(0.5)
        over.set()
        accepted = [job_id for client in clients for job_id in client.result()[0]]
        refused = [answer for client in clients for answer in client.result()[1]]
        received = stream.result()
        thread.join()
    assert refused
    assert {(each.status_code, each.headers["content-type"], each.json()["code"]) for each in refused} == {
        (503, "application/problem+json", "database_unavailable")
    }
    assert all(int(each.headers["retry-after"]) > 0 for each in refused)
    with database.reading() as session:
        there = session.scalars(select(Job.id).where(Job.id != long)).all()
        assert sorted(there) == sorted(accepted)
        job = session.get_one(Job, long)
        assert (job.status, job.attempt) == ("succeeded", 1)
        assert seqs(received) == list(range(1, job.event_seq + 1))
    invariants.check(database, workplace.store)
    workplace.database.close()


def keep_posting(url, headers, over, number):
    """Post jobs, each until it is accepted; give the ids, and the refusals."""
    accepted, refused = [], []
    with httpx2.Client(base_url=url, headers=headers, timeout=30) as api:
        while not over.is_set() or len(accepted) < 2:
            key = {"Idempotency-Key": f"{number}-{len(accepted)}"}
            while (answer := api.post("/jobs", json=DIGITS, headers=key)).status_code != 201:
                refused.append(answer)
                time.sleep(0.1)
            accepted.append(answer.json()["id"])
    return accepted, refused


@pytest.mark.slow
def test_a_worker_without_the_database_gives_up_and_the_next_one_takes_over(
    settings, network, behind, database, project
):
    job_id = post(database, project, seconds="0.02", states="yes", act="hang", cut="5")
    cut_off, other = (place(settings, way, lease_seconds=SHORT) for way in (behind, database))
    first = claim(behind, lease_seconds=SHORT)
    with running(first, cut_off) as thread, healing(network):
        wait_until(lambda: saved_step(database, job_id) == 5)
        network.half_open()
        begin = time.monotonic()
        wait_until(lambda: not processes_with(job_id))
        assert SHORT / 3 < time.monotonic() - begin < SHORT
        with database.writing() as session:
            spec = {**session.get_one(Job, job_id).spec, "metadata": {"states": "yes"}}
            session.get_one(Job, job_id).spec = spec
        taken = []
        wait_until(lambda: taken.append(claim(database)) or taken[-1])
        network.heal()
        run(taken[-1], other)
        thread.join(20)
        assert not thread.is_alive()
        for late in (
            lambda session: ingest.record(session, first, [reported.Warned(code="late", message="m")]),
            lambda session: claims.succeed(session, first, Reports(before=None, after=None)),
            lambda session: claims.heartbeat(session, first, lease_seconds=60),
        ):
            with pytest.raises(LeaseLost), behind.writing() as session:
                late(session)
    with database.reading() as session:
        job = session.get_one(Job, job_id)
        assert (job.status, job.attempt, job.crashes) == ("succeeded", 2, 1)
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.attempt)).all()
        assert outcomes == ["lost", "succeeded"]
    invariants.check(database, other.store)


def test_a_log_that_is_followed_goes_on_when_the_database_is_back(
    broken_api, network, settings, database, project, tmp_path
):
    store = LocalStore(settings.objects_dir)
    post(database, project)
    held = claim(database)

    def log(part, line):
        (tmp_path / "part").write_text(line)
        store.put(log_key(held.job_id, held.attempt, part), tmp_path / "part")
        with database.writing() as session:
            ingest.add_log(session, held, size=len(line))

    log(1, "before\n")
    with broken_api.stream("GET", f"/jobs/{held.job_id}/logs", params={"follow": True}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "before"
        network.cut()
        time.sleep(1.5)
        log(2, "meanwhile\n")
        network.heal()
        assert next(lines) == "meanwhile"
        with database.writing() as session:
            claims.succeed(session, held, Reports(before=None, after=None))
        assert list(lines) == []


@contextmanager
def healing(network):
    """What waits for a silent network would wait for ever."""
    try:
        yield
    finally:
        network.heal()


def saved_step(database, job_id):
    with database.reading() as session:
        return session.get_one(Job, job_id).saved_step


@pytest.mark.slow
def test_runs_end_when_the_database_is_away_beyond_the_lease_and_resume_later(tmp_path, postgres_of_its_own):
    url = postgres_of_its_own.create_database("away")
    key = f"tmp_abcdefgh_{'x' * 32}"
    clocks = {"lease_seconds": 4, "migrate_at_start": True, "first_api_key": key}
    constants = {"app.jobs.claims.CRASH_BACKOFF_SECONDS": 0}
    with native.instance(tmp_path, *native.FAKE_WORKER, database_url=url, constants=constants, **clocks) as temper:
        temper.start_api()
        with calling(temper.url, key) as api, temper.worker(), temper.worker():
            database = Database(url)
            wish = {"seconds": "0.5", "states": "yes"}
            ids = [api.post("/jobs", json={**DIGITS, "metadata": wish}).json()["id"] for _ in range(2)]
            wait_until(lambda: all(saved_step(database, job_id) >= 2 and processes_with(job_id) for job_id in ids))
            postgres_of_its_own.stop("immediate")
            begin = time.monotonic()
            wait_until(lambda: not any(processes_with(job_id) for job_id in ids))
            assert time.monotonic() - begin < 4
            assert api.get("/jobs").status_code == 503
            time.sleep(8 - (time.monotonic() - begin))
            postgres_of_its_own.start(durable=True)
            for job_id in ids:
                job = native.finish(api, job_id)
                assert (job["status"], job["attempt"], job["crashes"]) == ("succeeded", 2, 1)
                resumed = [each["resumed_step"] for each in api.get(f"/jobs/{job_id}/attempts").json()["data"]]
                assert resumed[0] is None
                assert resumed[1] >= 1
    invariants.check(database, LocalStore(tmp_path / "data" / "objects"))
    database.close()


@pytest.mark.slow
def test_a_request_that_finds_no_free_connection_is_told_to_come_back(broken_api, behind):
    with ExitStack() as stack:
        for _ in range(THREADS + MORE_CONNECTIONS):
            stack.enter_context(behind.engine.connect())
        refused = broken_api.get("/jobs")
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
        assert int(refused.headers["retry-after"]) > 0
    assert broken_api.get("/jobs").status_code == 200


@pytest.mark.slow
def test_a_run_outlives_transactions_that_the_database_ends_as_idle(settings, database, project, monkeypatch):
    job_id = post(database, project, seconds="0.1")
    workplace = place(settings, database)
    original, rounds = ingest.record, iter(range(3))

    def dawdle(session, *rest, **named):
        original(session, *rest, **named)
        if next(rounds, None) is not None:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
            time.sleep(0.2)

    monkeypatch.setattr(ingest, "record", dawdle)
    run(claim(database), workplace)
    assert next(rounds, None) is None
    assert status(database, job_id) == "succeeded"
    invariants.check(database, workplace.store)
