"""Jobs: submit them, follow them, act on them, fetch their results."""

import uuid
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import BaseModel

from app.schemas.answer import Page
from app.schemas.assets import Lineage
from app.schemas.attempts import Attempt
from app.schemas.jobs import DryRun, Job, Metrics, PostedJob, Progress, Waiting
from client.errors import NoSuchJob
from client.reading import read
from client.resources.resource import Resource, path_of
from client.retries import Deadline

if TYPE_CHECKING:
    from core.schema.events import Stamped
    from core.schema.report import Reports
    from core.schema.spec import AnySpec

    JobSpec = Mapping[str, Any] | AnySpec

LONG_POLL = 30.0
LATEST = "latest"
"""The handle of the newest job of the project, whatever other jobs are called."""


class Jobs(Resource):
    """The jobs of the project: `temper.jobs`.

    Events, reports and logs are imported when they are used: they hold whole specs, which `list` and `get` do not need.
    """

    @overload
    def submit(
        self, spec: "JobSpec", *, idempotency_key: str | None = None, dry_run: Literal[False] = False
    ) -> PostedJob: ...

    @overload
    def submit(self, spec: "JobSpec", *, idempotency_key: str | None = None, dry_run: Literal[True]) -> DryRun: ...

    def submit(
        self, spec: "JobSpec", *, idempotency_key: str | None = None, dry_run: bool = False
    ) -> PostedJob | DryRun:
        """Post a job and return it; with `dry_run`, only validate and resolve its spec.

        A request that is repeated after a broken connection creates one job. A caller who may itself submit the same
        job twice gives the `idempotency_key`.
        """
        answer = self._connection.request(
            "POST",
            "/jobs",
            json=spec.model_dump(mode="json") if isinstance(spec, BaseModel) else dict(spec),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            params={"dry_run": True} if dry_run else None,
        )
        return read(DryRun, answer.content) if dry_run else read(PostedJob, answer.content)

    def get(self, job_id: str) -> Job:
        """Fetch a job."""
        return self._get(Job, path_of("jobs", job_id))

    def list(self, **filters: str) -> Iterator[Job]:
        """Iterate over the jobs, newest first. The filters are those of `GET /jobs`, such as status."""
        return self._items(Page[Job], "/jobs", filters)

    def id_of(self, handle: str) -> str:
        """Return the id of the job that a handle means: its id, its name where only one job has it, or latest for the
        newest job. Raises NoSuchJob."""
        if handle.startswith("job_"):
            return handle
        same = [job.id for job in islice(self.list(limit="2", **({} if handle == LATEST else {"name": handle})), 2)]
        if not same:
            what = "there is no job yet" if handle == LATEST else f"there is no job {handle!r} in this project"
            raise NoSuchJob(f"{what}: name a job by its id, by a name that only one job has, or as {LATEST}")
        if handle != LATEST and len(same) > 1:
            raise NoSuchJob(f"several jobs are called {handle!r}; name one by its id, such as {same[0]}, the newest")
        return same[0]

    def lineage(self, job_id: str) -> Lineage:
        """Fetch what a job was made of, and what was made of its results."""
        return self._get(Lineage, f"{path_of('jobs', job_id)}/lineage")

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Wait until the status of a job is final, and return the job. Raises StillRunning after `timeout` seconds."""
        deadline = Deadline(job_id, timeout)
        while True:
            left = deadline.left
            poll = min(LONG_POLL, left)
            answer = self._connection.request(
                "GET",
                path_of("jobs", job_id),
                patience=self._connection.patience_of_follower,
                deadline=deadline,
                params={"wait": poll},
                timeout=self._connection.timeouts(deadline, self._connection.timeout + poll),
            )
            job = read(Job, answer.content)
            if job.is_terminal:
                return job
            if not left:
                raise deadline.passed(is_paused=job.status == "paused")

    def watch(
        self, job_id: str, *, after: int = 0, timeout: float | None = None
    ) -> "Iterator[Stamped | Progress | Waiting]":
        """Iterate over the events of a job after number `after`, and in between over its progress, and over the reasons
        why no worker can take it, live, until the job has ended.

        A broken stream is resumed where it broke, so that each event comes once. Raises StillRunning after `timeout`
        seconds.
        """
        from client.resources.event_stream import follow_events

        deadline = Deadline(job_id, timeout)
        return follow_events(self._connection, path_of("jobs", job_id), after=after, deadline=deadline)

    def stream(self, job_id: str, *, after: int = 0, timeout: float | None = None) -> "Iterator[Stamped]":
        """Iterate over the events of a job after number `after`, live, until the job has ended. Raises StillRunning
        after `timeout` seconds."""
        items = self.watch(job_id, after=after, timeout=timeout)
        return (item for item in items if not isinstance(item, Progress | Waiting))

    def events(self, job_id: str) -> "Iterator[Stamped]":
        """Iterate over the events of a job so far."""
        from core.schema.events import Stamped

        return self._items(Page[Stamped], f"{path_of('jobs', job_id)}/events")

    def cancel(self, job_id: str) -> Job:
        """Cancel a job. The checkpoints that it has delivered remain."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask a running job to save its state and to free its worker."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again."""
        return self._act(job_id, "resume")

    def stop(self, job_id: str) -> Job:
        """Ask a running training job to deliver the best weights so far."""
        return self._act(job_id, "stop")

    def retry(self, job_id: str) -> PostedJob:
        """Queue a new job that resumes from the last state of a failed or cancelled job. A job has one retry."""
        return self._post(PostedJob, f"{path_of('jobs', job_id)}/retry")

    def clone(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> PostedJob:
        """Queue a new job with the spec of another one. Overrides are merged into the spec; None restores a default."""
        answer = self._connection.request(
            "POST",
            f"{path_of('jobs', job_id)}/clone",
            json={"overrides": dict(overrides or {})},
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        )
        return read(PostedJob, answer.content)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with all its files."""
        self._delete(path_of("jobs", job_id))

    def attempts(self, job_id: str) -> Iterator[Attempt]:
        """Iterate over the attempts at a job, oldest first."""
        return self._items(Page[Attempt], f"{path_of('jobs', job_id)}/attempts")

    def logs(
        self,
        job_id: str,
        *,
        attempt: int | None = None,
        tail: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Iterator[str]:
        """Iterate over pieces of the log of an attempt, by default of the last one that has a log.

        tail: only this number of lines from the end. follow: continue until the job has ended; a broken connection is
        resumed where it broke, and after `timeout` seconds StillRunning is raised.
        """
        from client.resources.log import follow_log, read_log

        given = {"attempt": attempt, "tail": tail, "follow": "true" if follow else None}
        params = {name: value for name, value in given.items() if value is not None}
        path = path_of("jobs", job_id)
        if follow:
            return follow_log(self._connection, path, params, Deadline(job_id, timeout))
        return read_log(self._connection, path, params)

    def metrics(self, job_id: str) -> Metrics:
        """Fetch the training curve of a job."""
        return self._get(Metrics, f"{path_of('jobs', job_id)}/metrics")

    def report(self, job_id: str) -> "Reports":
        """Fetch the evaluations of a job, with every attack and every point."""
        from core.schema.report import Reports

        return self._get(Reports, f"{path_of('jobs', job_id)}/report")

    def _act(self, job_id: str, action: str) -> Job:
        return self._post(Job, f"{path_of('jobs', job_id)}/{action}")
