"""Rows of a service that has run for long, written at once: jobs that have ended, with all that belongs to them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, text
from ulid import ULID

from app.jobs import estimates, lifecycle
from app.jobs.labels import digest
from app.platform.database import Database
from app.projects import totals
from app.schemas.job_request import parse_request
from app.tables import (
    ApiKey,
    Attempt,
    Checkpoint,
    Dataset,
    Delivery,
    Event,
    Job,
    JobLabel,
    Metric,
    Model,
    PastRun,
    Project,
    Table,
    Upload,
    Webhook,
)
from app.webhooks.subscriptions import MAX_WEBHOOKS
from tests.support.instance import DIGITS

_AT_ONCE = 5_000
STATUSES = ("succeeded", "succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Scale:
    """How many rows there are."""

    jobs: int
    attempts_per_job: int = 3
    events: int = 0
    """Of all jobs; as many steps of curves, half of them of one long job."""
    others: int = 100
    """Of keys, uploads, data sets, models, deliveries and projects each."""
    days: int = 25
    """The time in which all that happened."""


@dataclass(frozen=True)
class Long:
    """What tests ask for by its id."""

    job_id: str
    webhook_id: str


def fill(database: Database, project_id: str, scale: Scale) -> Long:
    """Write the history of a project."""
    with database.writing() as session:
        posted = lifecycle.create(session, project_id, parse_request(DIGITS | {"metadata": {"team": "x"}})).job
        job = {column.key: getattr(posted, column.key) for column in Job.__table__.columns}
    begun = datetime.now(UTC) - timedelta(days=scale.days)
    ids = [_id("job", begun, place, scale.jobs) for place in range(scale.jobs)]
    webhook_id, upload_id = _id("whk", begun, 0, 1), _id("upl", begun, 0, 1)
    per_job = max(scale.events // 2 // scale.jobs, 2)
    at = [begun + timedelta(days=scale.days) * place / scale.jobs for place in range(scale.jobs)]

    def jobs() -> Iterator[dict[str, Any]]:
        for place, job_id in enumerate(ids):
            status = STATUSES[place % len(STATUSES)]
            yield job | {
                "id": job_id,
                "status": status,
                "kind": "evaluate" if place % 3 == 0 else "finetune",
                "name": f"run-{place % 3}",
                "base_model": f"model-{place % 4}",
                "dataset": ("digits", "birds")[place % 4 == 1],
                "labels": {"team": f"team-{place % 3}", "run": str(place)},
                "attempt": scale.attempts_per_job,
                "event_seq": per_job,
                **dict.fromkeys(("created_at", "updated_at", "started_at", "finished_at"), at[place]),
            }

    def attempts() -> Iterator[dict[str, Any]]:
        for place, job_id in enumerate(ids):
            for number in range(1, scale.attempts_per_job + 1):
                yield {
                    "job_id": job_id,
                    "attempt": number,
                    "worker": "w",
                    "device": "cpu",
                    "started_at": at[place],
                    "ended_at": at[place] + timedelta(minutes=1),
                    "outcome": "lost" if number < scale.attempts_per_job else STATUSES[place % len(STATUSES)],
                    "log_size": 10,
                }

    def numbered(count_of_long: int) -> Iterator[tuple[str, int]]:
        yield from ((job_id, number) for job_id in ids[1:] for number in range(1, per_job + 1))
        yield from ((ids[0], number) for number in range(1, count_of_long + 1))

    long = max(scale.events // 2, 4)
    common = {"project_id": project_id, "created_at": begun}
    file = {"filename": "x", "size": 5, "sha256": "0" * 64}
    _write(database, Job, jobs())
    _write(
        database,
        JobLabel,
        (
            {"project_id": project_id, "digest": digest(*pair), "job_id": job_id}
            for place, job_id in enumerate(ids)
            for pair in (("team", f"team-{place % 3}"), ("run", str(place)))
        ),
    )
    _write(database, Attempt, attempts())
    _write(
        database,
        Event,
        (
            {"job_id": job_id, "seq": seq, "type": "phase", "data": {"n": seq}, "created_at": begun}
            for job_id, seq in numbered(long)
        ),
    )
    _write(
        database,
        Metric,
        (
            {"job_id": job_id, "attempt": 1, "step": step, "epoch": step / 100, "loss": 1.0, "learning_rate": 0.1}
            | {"norm": None, "counts": {}}
            for job_id, step in numbered(long)
        ),
    )
    _write(
        database,
        Checkpoint,
        (
            {"id": _id("ckpt", begun, place, len(ids)), "job_id": job_id, "attempt": 1, "step": 1, "epoch": 1.0}
            | {"key": job_id, "size": 7, "sha256": "0" * 64, "created_at": begun}
            for place, job_id in enumerate([*[ids[0]] * scale.others, *ids[1:]][: len(ids)])
        ),
    )
    run = {"spec": job["spec"], "seconds": 60.0, "working_seconds": 50.0, "train_examples": 9, "test_examples": 9}
    spec = parse_request(DIGITS)
    run |= {"network": estimates.same_pace(project_id, spec), "alike": estimates.same_kind(project_id, spec)}
    _write(database, PastRun, ({"job_id": job_id, "peak_memory_bytes": 1, "stored_bytes": 1} | run for job_id in ids))
    hook = {"events": [], "description": "", "secret": "x", "updated_at": begun}
    hooks = [webhook_id, *(_id("whk", begun, place, MAX_WEBHOOKS) for place in range(1, MAX_WEBHOOKS))]
    _write(database, Webhook, (common | hook | {"id": each, "url": f"https://{each}/"} for each in hooks))
    _write(
        database,
        Delivery,
        (
            {"id": _id("dlv", begun, place, scale.others), "webhook_id": webhook_id, "type": "job.failed"}
            | {"job_id": None, "payload": "{}", "status": ("succeeded", "failed")[place % 2], "tries": 1, "attempt": 1}
            | {"created_at": begun, "finished_at": datetime.now(UTC), "next_attempt_at": None, "lease_until": None}
            for place in range(scale.others)
        ),
    )
    _write(
        database,
        ApiKey,
        (
            common
            | {"id": _id("key", begun, place, scale.others), "lookup": f"{place:08}", "sha256": "0" * 64, "name": "x"}
            | {"scopes": [], "revoked_at": datetime.now(UTC)}
            for place in range(scale.others)
        ),
    )
    _write(
        database,
        Upload,
        (
            common
            | file
            | {"id": upload_id if not place else _id("upl", begun, place, scale.others), "purpose": "model"}
            | {"sha256": "0" * 64 if place % 2 else "1" * 64, "part_size": 5, "updated_at": begun, "expires_at": begun}
            | {"status": "aborted", "key_suffix": "x", "ended_at": begun, "swept_at": datetime.now(UTC)}
            for place in range(scale.others)
        ),
    )
    inspected = common | file | {"status": "refused", "key": "x", "upload_id": upload_id, "finished_at": begun}
    for table, prefix, more in ((Dataset, "ds", {}), (Model, "model", {"declared": {}})):
        _write(
            database,
            table,
            (
                inspected | more | {"id": _id(prefix, begun, place, scale.others), "name": f"n{place}"}
                for place in range(scale.others)
            ),
        )
    _write(
        database,
        Project,
        (
            {"id": _id("prj", begun, place, scale.others), "name": "x", "quotas": {}, "created_at": begun}
            for place in range(scale.others)
        ),
    )
    with database.writing_on_one_state() as session:
        totals.recount(session)
    while True:
        with database.writing_alone() as session:
            if not totals.fold(session):
                break
    return Long(ids[0], webhook_id)


def analyse(database: Database) -> None:
    """Let the planner know how many rows there are."""
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))


def _id(prefix: str, begun: datetime, place: int, count: int) -> str:
    """An id of the time of a row: rows are dealt out over the time since then, in order."""
    moment = begun + (datetime.now(UTC) - begun) * place / (count + 1)
    return f"{prefix}_{ULID.from_datetime(moment)}"


def _write(database: Database, table: type[Table], rows: Iterator[Mapping[str, Any]]) -> None:
    """Insert rows fast: by COPY into Postgres, many at once into SQLite."""
    some: list[Mapping[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == _AT_ONCE:
            _insert(database, table, some)
            some = []
    if some:
        _insert(database, table, some)


def _insert(database: Database, table: type[Table], rows: Sequence[Mapping[str, Any]]) -> None:
    if database.engine.dialect.name == "sqlite":
        with database.writing() as session:
            session.execute(insert(table), rows)
        return
    columns = [column for column in table.__table__.columns if column.key in rows[0]]
    defaults = {
        column.key: column.default.arg
        for column in table.__table__.columns
        if column.key not in rows[0] and column.default is not None and column.default.is_scalar
    }
    names = [column.name for column in columns] + list(defaults)
    connection = database.engine.raw_connection()
    try:
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {table.__tablename__} ({', '.join(names)}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row([*(_plain(row[column.key]) for column in columns), *defaults.values()])
        connection.commit()
    finally:
        connection.close()


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
