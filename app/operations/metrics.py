"""Metrics for a Prometheus server: of the whole instance from the database, of this process from its requests.

All metrics of jobs come from the totals and the rows of what is under way, and are cached for a few seconds: so all API
processes give the same values and a restart loses nothing. They are served at TEMPER_METRICS_PORT, apart from the API
and without a key.
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
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app.jobs.moves import MOVES
from app.jobs.watch import Watch
from app.platform.database import AWAY, Database, moment, now, seconds_between
from app.platform.queue import Doorbell
from app.projects import totals
from app.tables import POSTED, UNFINISHED, Delivery, Job, Webhook

log = logging.getLogger(__name__)

KEPT_SECONDS = 5.0
"""Anybody may make others up, and every one would be kept as a series for good."""
MOST_DELIVERIES = 10_000
"""Deliveries that are counted."""
_OF_ATTEMPTS = ("attempts", "held_seconds", "held_gpu_seconds", "claims", "claim_seconds", "claims_within")


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
            "temper_streams_open", "Streams that are open, of events and of logs.", self._watch.streams_of.total()
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
    live = select(Job.status, func.count()).where(Job.status.in_(UNFINISHED), *POSTED).group_by(Job.status)
    counts: dict[str, int] = {status: count for status, count in session.execute(live)}  # noqa: C416  # rows are no pairs to mypy
    ended = totals.read(session, "jobs", project_ids=[totals.INSTANCE])
    counts |= {key.name: round(count) for key, count in ended.items()}
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
    found = totals.read(session, *_OF_ATTEMPTS, project_ids=[totals.INSTANCE])
    found.add(totals.under_way(session, None, moment(session)))
    amounts = {(key.what, key.name): amount for key, amount in found.items() if key.project_id == totals.INSTANCE}
    outcomes = {name: round(count) for (what, name), count in amounts.items() if what == "attempts" and count}
    under_way = outcomes.pop("under_way", 0)
    ended = CounterMetricFamily("temper_attempts", "Attempts by how they ended.", labels=["outcome"])
    for outcome in sorted({"lost", "handed_back", "succeeded", "failed", "cancelled", *outcomes}):
        ended.add_metric([outcome], outcomes.get(outcome, 0))
    yield ended
    yield GaugeMetricFamily("temper_attempts_under_way", "Attempts under way.", under_way)
    lost = outcomes.get("lost", 0)
    yield CounterMetricFamily("temper_attempts_lost", "Attempts whose worker vanished.", lost)
    worked = CounterMetricFamily("temper_worker_seconds", "Seconds that workers held jobs.", labels=["device"])
    for device in ("cpu", "gpu"):
        worked.add_metric([device], amounts.get(("held_seconds", device), 0.0))
    yield worked
    gpu_seconds = amounts.get(("held_gpu_seconds", ""), 0.0)
    yield CounterMetricFamily("temper_gpu_seconds", "Seconds that GPUs were taken, times their number.", gpu_seconds)
    latency = HistogramMetricFamily("temper_claim_latency_seconds", "Seconds from a job's posting to its first claim.")
    within = [(str(float(bound)), amounts.get(("claims_within", str(float(bound))), 0.0)) for bound in totals.WAITS]
    claimed = [*within, ("+Inf", amounts.get(("claims", ""), 0.0))]
    latency.add_metric([], claimed, amounts.get(("claim_seconds", ""), 0.0))
    yield latency


def _webhooks(session: Session) -> Iterator[Metric]:
    told = f"Deliveries in the log, by status; at most {MOST_DELIVERIES} of each are counted."
    deliveries = GaugeMetricFamily("temper_webhook_deliveries", told, labels=["status"])
    for status in ("pending", "succeeded", "failed"):
        some = select(Delivery.id).where(Delivery.status == status).limit(MOST_DELIVERIES).subquery()
        deliveries.add_metric([status], session.scalars(select(func.count()).select_from(some)).one())
    yield deliveries
    enabled: tuple[ColumnElement[bool], ...] = (Delivery.status == "pending", Webhook.disabled_at.is_(None))
    late = select(func.max(seconds_between(now(), Delivery.next_attempt_at))).join(Webhook).where(*enabled)
    overdue = max(session.scalar(late) or 0, 0)
    yield GaugeMetricFamily("temper_webhook_lag_seconds", "How overdue the most overdue attempt is.", overdue)
    failing = select(func.count()).select_from(Delivery).join(Webhook).where(*enabled, Delivery.error.is_not(None))
    yield GaugeMetricFamily(
        "temper_webhook_deliveries_failing", "Deliveries whose last attempt failed.", session.scalar(failing) or 0
    )
