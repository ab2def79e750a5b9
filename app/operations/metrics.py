"""Metrics for a Prometheus server: of the whole instance from the database, of this process from its requests.

All metrics of jobs are computed from the rows and cached for a few seconds, so that all API processes give the same
values and a restart loses nothing. They are served at TEMPER_METRICS_PORT, apart from the API and without a key.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, Subquery, and_, case, func, select, union_all
from sqlalchemy.orm import Session

from app.jobs.moves import MOVES
from app.jobs.watch import Watch
from app.platform.database import AWAY, Database, now, seconds_between
from app.platform.queue import Doorbell
from app.projects import usage
from app.tables import Attempt, Delivery, Job, PastAttempt, Webhook

log = logging.getLogger(__name__)

KEPT_SECONDS = 5.0
"""Anybody may make others up, and every one would be kept as a series for good."""
_WAITS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600)
"""Upper bounds in seconds for the time from the posting of a job to its first claim."""


class Metrics:
    """The numbers of one API process and of its instance."""

    def __init__(self, database: Database, watch: Watch, doorbell: Doorbell) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "temper_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.durations = Histogram(
            "temper_http_request_seconds", "Seconds to the head of the answer.", ["route"], registry=self.registry
        )
        self.registry.register(OfInstance(database))
        self.registry.register(_OfProcess(watch, doorbell))

    @contextmanager
    def serving(self, host: str, port: int | None) -> Iterator[None]:
        """Serve the metrics on `port` while the block runs; do nothing if `port` is None. Of several processes on a
        machine, the first gets the port."""
        if port is None:
            yield
            return
        try:
            server, thread = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            log.warning("this process serves no metrics: port %d: %s", port, error.strerror)
            yield
            return
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _OfProcess(Collector):
    def __init__(self, watch: Watch, doorbell: Doorbell) -> None:
        self._watch = watch
        self._doorbell = doorbell

    def collect(self) -> Iterable[Metric]:
        """Report the number of open streams of this process, and whether its broker is out of reach."""
        yield GaugeMetricFamily(
            "temper_streams_open", "Streams that are open, of events and of logs.", self._watch.streams
        )
        if self._doorbell.is_there:
            told = "Whether the broker has failed and is left alone: workers find jobs by polling."
            yield GaugeMetricFamily("temper_broker_circuit_open", told, self._doorbell.is_open)


class OfInstance(Collector):
    """Metrics from the rows. While the database is out of reach there are none, and `temper_database_up` is 0."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = Lock()
        self._read_at = -KEPT_SECONDS
        self._kept: Sequence[Metric] = ()
        self._highest: defaultdict[tuple[str, frozenset[tuple[str, str]]], float] = defaultdict(float)

    def describe(self) -> Iterable[Metric]:
        """Describe no metrics in advance: the registration must not need the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read the metrics from the rows, or return the cached ones of a moment ago."""
        with self._lock:
            if monotonic() - self._read_at >= KEPT_SECONDS:
                self._kept = self._read()
                self._read_at = monotonic()
            return self._kept

    def _read(self) -> Sequence[Metric]:
        up = GaugeMetricFamily("temper_database_up", "Whether the database answers.")
        try:
            with self._database.reading() as session:
                found = [*_jobs(session), *_attempts(session), *_webhooks(session)]
        except AWAY:
            found = []
        up.add_metric([], bool(found))
        for family in found:
            if family.type != "gauge":
                self._hold_up(family)
        return [up, *found]

    def _hold_up(self, family: Metric) -> None:
        """Keep counters from falling, which Prometheus takes for a restart: an attempt that ends while it is read has
        lasted slightly less than was reported before."""
        for place, sample in enumerate(family.samples):
            key = sample.name, frozenset(sample.labels.items())
            self._highest[key] = max(self._highest[key], sample.value)
            family.samples[place] = sample._replace(value=self._highest[key])


def _jobs(session: Session) -> Iterator[Metric]:
    rows = session.execute(select(Job.status, func.count()).where(Job.parent_id.is_(None)).group_by(Job.status))
    counts: dict[str, int] = {status: count for status, count in rows}  # noqa: C416  # rows are no pairs to mypy
    jobs = GaugeMetricFamily("temper_jobs", "Jobs by status.", labels=["status"])
    for status in MOVES:
        jobs.add_metric([status], counts.get(status, 0))
    yield jobs
    waiting = Job.status == "queued", Job.shards_left == 0
    depth = session.scalar(select(func.count()).select_from(Job).where(*waiting))
    yield GaugeMetricFamily("temper_queue_depth", "Jobs and shards that wait for a worker.", depth or 0)
    oldest = select(func.max(seconds_between(now(), Job.created_at))).where(*waiting)
    yield GaugeMetricFamily(
        "temper_queue_oldest_seconds", "Age of the oldest waiting job.", session.scalar(oldest) or 0
    )


def _attempts(session: Session) -> Iterator[Metric]:
    each = _all_attempts().c
    on = case((each.gpus > 0, "gpu"), else_="cpu").label("device")
    held = func.sum(each.seconds), func.sum(each.seconds * each.gpus)
    waits = func.count(each.waited), func.sum(each.waited)
    within = [func.count(case((each.waited <= bound, 1))) for bound in _WAITS]
    groups = session.execute(select(each.outcome, on, func.count(), *held, *waits, *within).group_by(each.outcome, on))
    outcomes: defaultdict[str, int] = defaultdict(int)
    seconds = {"cpu": 0.0, "gpu": 0.0}
    gpu_seconds = waited = 0.0
    claims = [0] * (1 + len(_WAITS))
    for outcome, device, count, of_workers, of_gpus, first, wait, *quick in groups:
        outcomes[outcome or "under_way"] += count
        seconds[device] += of_workers
        gpu_seconds += of_gpus
        waited += wait or 0
        claims = [before + more for before, more in zip(claims, (*quick, first), strict=True)]
    under_way = outcomes.pop("under_way", 0)
    ended = CounterMetricFamily("temper_attempts", "Attempts by how they ended.", labels=["outcome"])
    for outcome in sorted({"lost", "handed_back", "succeeded", "failed", "cancelled", *outcomes}):
        ended.add_metric([outcome], outcomes[outcome])
    yield ended
    yield GaugeMetricFamily("temper_attempts_under_way", "Attempts under way.", under_way)
    yield CounterMetricFamily("temper_attempts_lost", "Attempts whose worker vanished.", outcomes["lost"])
    worked = CounterMetricFamily("temper_worker_seconds", "Seconds that workers held jobs.", labels=["device"])
    for device, total in seconds.items():
        worked.add_metric([device], total)
    yield worked
    yield CounterMetricFamily("temper_gpu_seconds", "Seconds that GPUs were taken, times their number.", gpu_seconds)
    bounds = [*(str(float(bound)) for bound in _WAITS), "+Inf"]
    latency = HistogramMetricFamily("temper_claim_latency_seconds", "Seconds from a job's posting to its first claim.")
    latency.add_metric([], list(zip(bounds, map(float, claims), strict=True)), waited)
    yield latency


def _all_attempts() -> Subquery:
    """Those of deleted jobs, too: a counter never falls."""
    # One that has not said where it computes would count as on a CPU, and then no longer.
    is_unknown = and_(Attempt.device.is_(None), Attempt.ended_at.is_(None))
    held = seconds_between(func.coalesce(Attempt.ended_at, now()), Attempt.started_at)
    seconds = case((is_unknown, 0.0), else_=held).label("seconds")
    told = Attempt.outcome, seconds, usage.GPUS_TAKEN.label("gpus"), usage.WAITED.label("waited")
    present = select(*told).join(Job, Job.id == Attempt.job_id)
    kept = PastAttempt
    past = select(kept.outcome, seconds_between(kept.ended_at, kept.started_at), kept.gpus, kept.waited)
    return union_all(present, past).subquery()


def _webhooks(session: Session) -> Iterator[Metric]:
    rows = session.execute(select(Delivery.status, func.count()).group_by(Delivery.status))
    counts: dict[str, int] = {status: count for status, count in rows}  # noqa: C416
    deliveries = GaugeMetricFamily("temper_webhook_deliveries", "Deliveries in the log, by status.", labels=["status"])
    for status in ("pending", "succeeded", "failed"):
        deliveries.add_metric([status], counts.get(status, 0))
    yield deliveries
    enabled: tuple[ColumnElement[bool], ...] = (Delivery.status == "pending", Webhook.disabled_at.is_(None))
    late = select(func.max(seconds_between(now(), Delivery.next_attempt_at))).join(Webhook).where(*enabled)
    overdue = max(session.scalar(late) or 0, 0)
    yield GaugeMetricFamily("temper_webhook_lag_seconds", "How overdue the most overdue attempt is.", overdue)
    failing = select(func.count()).select_from(Delivery).join(Webhook).where(*enabled, Delivery.error.is_not(None))
    yield GaugeMetricFamily(
        "temper_webhook_deliveries_failing", "Deliveries whose last attempt failed.", session.scalar(failing) or 0
    )
