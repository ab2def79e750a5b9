"""The life of jobs as a state machine: workers that crash, freeze and come back, people who ask for anything at any
time, and a clock that jumps. After every step the invariants hold, and in the end every job can come to its end."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from app.jobs import claims, ingest, lifecycle
from app.jobs.claims import RetryPolicy
from app.jobs.leases import LeaseLost
from app.jobs.lifecycle import NotAllowed
from app.jobs.moves import TERMINAL
from app.schemas import Failure
from app.schemas.job_request import parse_request
from app.tables import Job, Project
from core.schema import events as reported
from core.schema.report import Reports
from tests.support import invariants

PATIENCE = RetryPolicy(
    max_crashes=4, max_crashes_in_place=3, backoff_seconds=10, max_backoff_seconds=30, cancel_seconds=45
)
LEASE = 60
WORKERS = ("ann", "bob", "cid")
FAILURE = Failure(code="bad_weights", message="m", hint="h", field=None, retryable=False)
ACTIONS = ("pause", "resume", "stop", "cancel")


class Life(RuleBasedStateMachine):
    """Real rows in a real database, and workers that exist as the claims they believe to hold."""

    database = None
    claims = Bundle("claims")
    posted = Bundle("posted")

    def __init__(self):
        super().__init__()
        self.ended = {}
        self.asked_to_cancel = set()
        self.steps = {}

    def do(self, action, *args, **options):
        with self.database.writing() as session:
            return action(session, *args, **options)

    @initialize(target=posted)
    def begin(self):
        with self.database.writing() as session:
            session.execute(delete(Job))
            self.project = session.scalars(select(Project.id)).first()
        return self.post(0)

    @rule(target=posted, priority=st.integers(0, 2))
    def post_another(self, priority):
        return self.post(priority)

    def post(self, priority):
        spec = parse_request({"base_model": "digits-cnn-linf", "priority": priority})
        return self.do(lifecycle.create, self.project, spec).job.id

    @rule(target=posted, shards=st.integers(2, 3))
    def post_in_shards(self, shards):
        spec = parse_request({"kind": "evaluate", "base_model": "digits-cnn-linf"})
        return self.do(lifecycle.create, self.project, spec, in_shards=shards).job.id

    @rule(target=claims, worker=st.sampled_from(WORKERS))
    def look_for_work(self, worker):
        """Any ring, early, late, double or for nothing, does just this."""
        claim = self.do(claims.claim, worker=worker, lease_seconds=LEASE, retry_policy=PATIENCE)
        return claim or multiple()

    def holds(self, claim):
        """Whether the worker may still write, by what the rows say."""
        with self.database.reading() as session:
            job = session.get(Job, claim.job_id)
            return job is not None and job.attempt == claim.attempt and job.lease_until is not None

    def write(self, claim, action, *args, **options):
        """Write for a worker: it is done if the worker holds the job, and refused if not."""
        holds = self.holds(claim)
        try:
            self.do(action, claim, *args, **options)
        except LeaseLost:
            assert not holds
        else:
            assert holds

    @rule(claim=claims)
    def renew(self, claim):
        self.write(claim, claims.heartbeat, lease_seconds=LEASE)

    @rule(claim=claims, further=st.integers(0, 2))
    def save_a_state(self, claim, further):
        step = self.steps.get((claim.job_id, claim.attempt), -1) + 1 + further
        self.steps[claim.job_id, claim.attempt] = step
        for kind in ("best", "state"):
            key = f"{claim.prefix}/states/{kind}-{step}/{kind}"
            saved = reported.Saved(kind=kind, path=kind, sha256="0" * 64, size=1, step=step, epoch=step / 10)
            self.write(claim, ingest.save_state, saved, name=kind, key=key)

    @rule(claim=claims)
    def report(self, claim):
        warnings = [reported.Warned(code="stopped_early", message="m"), reported.Entered(phase="evaluating")]
        self.write(claim, ingest.record, warnings)

    @rule(claim=consumes(claims), ending=st.sampled_from(["succeed", "fail", "hand_back", "crash", "vanish"]))
    def end(self, claim, ending):
        match ending:
            case "succeed":
                self.write(claim, claims.succeed, Reports(before=None, after=None))
            case "fail":
                self.write(claim, claims.fail, FAILURE)
            case "hand_back":
                self.write(claim, claims.hand_back)
            case "crash":
                self.write(claim, claims.record_crash, code="killed", retry_policy=PATIENCE)

    @rule(job_id=posted, action=st.sampled_from(ACTIONS))
    def ask(self, job_id, action):
        with self.database.reading() as session:
            allowed = session.get(Job, job_id) and lifecycle.allowed_actions(session.get(Job, job_id))
        if allowed is None:
            return
        try:
            first = self.do(lifecycle.ask, job_id, action)
        except NotAllowed:
            assert action not in allowed
            return
        if action == "cancel":
            self.asked_to_cancel.add(job_id)
        # Asking again changes nothing.
        assert self.do(lifecycle.ask, job_id, action).version == first.version

    @rule(job_id=posted, action=st.sampled_from(ACTIONS))
    def ask_of_a_shard(self, job_id, action):
        """Nothing can be asked of one: it ends with its whole."""
        with self.database.reading() as session:
            shards = session.scalars(select(Job).where(Job.parent_id == job_id)).all()
        for shard in shards:
            if shard.status not in lifecycle.ACTIONS[action].granted:
                with pytest.raises(NotAllowed):
                    self.do(lifecycle.ask, shard.id, action)

    @rule(target=posted, job_id=posted)
    def retry(self, job_id):
        try:
            made = self.do(lifecycle.retry, job_id)
        except NotAllowed:
            with self.database.reading() as session:
                assert session.get_one(Job, job_id).status not in ("failed", "cancelled")
            return multiple()
        assert self.do(lifecycle.retry, job_id).job.id == made.job.id
        return made.job.id

    @rule(seconds=st.sampled_from([1, 20, 50, 100]))
    def let_pass(self, seconds):
        """The clock is the database's; instead of it, all that it is compared with is moved."""
        with self.database.writing() as session:
            for job in session.scalars(select(Job)):
                for name in ("lease_until", "not_before", "asked_at"):
                    if moment := getattr(job, name):
                        setattr(job, name, moment - timedelta(seconds=seconds))

    @rule()
    def sweep(self):
        self.do(claims.expire, PATIENCE)

    @invariant()
    def everything_that_must_hold_holds(self):
        invariants.check(self.database, max_crashes=PATIENCE.max_crashes)
        with self.database.reading() as session:
            for job in session.scalars(select(Job)):
                # What has ended stays as it is, to the last bit that somebody can see.
                was = self.ended.setdefault(job.id, (job.status, job.version)) if job.status in TERMINAL else None
                assert was in (None, (job.status, job.version))
                assert job.id not in self.ended or job.status in TERMINAL
                if job.id in self.asked_to_cancel:
                    assert job.status in ("cancelling", "cancelled")

    def teardown(self):
        """Good workers and enough time bring every job to its end; paused ones wait for somebody."""
        if not self.database:
            return
        for _ in range(200):
            with self.database.reading() as session:
                paused = session.scalars(select(Job.id).where(Job.status == "paused", Job.parent_id.is_(None))).all()
                left = session.scalars(select(Job.id).where(Job.status.not_in(TERMINAL))).all()
            if not left:
                break
            for job_id in paused:
                self.do(lifecycle.ask, job_id, "resume")
            self.let_pass(100)
            while claim := self.do(claims.claim, worker="good", lease_seconds=LEASE, retry_policy=PATIENCE):
                self.do(claims.succeed, claim, Reports(before=None, after=None))
        else:
            raise AssertionError(f"{left} never come to an end")
        invariants.check(self.database)


@pytest.mark.parametrize("instance", ["sqlite"], indirect=True)
def test_whatever_befalls_them_jobs_keep_the_invariants_and_come_to_an_end(database, project):
    run(database, examples=8, steps=20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_more_lives_on_both_databases(database, project):
    run(database, examples=150, steps=60)


def run(database, *, examples, steps):
    """Live through so many examples."""
    of_database = type("LifeHere", (Life,), {"database": database})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(of_database, settings=chosen)
