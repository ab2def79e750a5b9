"""The client: a method per thing that the service does."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, RootModel

from client.connection import PASSING, RECONNECT, Connection, Pauses
from client.credentials import find_credentials
from client.download import download_file
from client.errors import Answered, NoCheckpoint, StillRunning, TemperError, Unreachable
from client.log import follow_log
from client.records import (
    Answer,
    ApiKey,
    Attempt,
    Checkpoint,
    Dataset,
    Delivery,
    DryRun,
    Item,
    Job,
    Me,
    Method,
    Metrics,
    Model,
    NewApiKey,
    NewWebhook,
    Page,
    Progress,
    Project,
    QuotaState,
    Upload,
    Usage,
    Version,
    Webhook,
    read,
)
from client.upload import OnProgress, upload_file
from core.schema.events import Stamped
from core.schema.report import Reports
from core.schema.spec import AnySpec

LONG_POLL = 30.0
# A service that restarts is back within this many seconds, or somebody should look.
RESTART = 60.0
# The service sends a comment on a silent stream of events every 15 seconds.
SILENCE = 45.0
INSPECTION_PAUSE = 3.0
DELIVERY_PAUSE = 0.2

File = TypeVar("File", Dataset, Model)

JobSpec = Mapping[str, Any] | AnySpec

QuotaStates = RootModel[tuple[QuotaState, ...]]


class Temper:
    """A Temper service, as its users see it.

    url and api_key: where it is and with which key; by default TEMPER_URL and TEMPER_API_KEY, else what the service on
    this machine left for us. timeout: seconds to wait for one answer. patience: seconds to go on trying when the
    service is away; a minute at least to watch, wait and download. Every method may raise Unreachable, Unreadable,
    Refused and ServiceFailed; the constructor may raise NoKey.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = 30.0, patience: float = 3.0
    ) -> None:
        self._connection = Connection(find_credentials(url, api_key), timeout=timeout)
        self._timeout = timeout
        self._patience = patience

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the sockets."""
        self._connection.close()

    @overload
    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        dry_run: Literal[False] = False,
    ) -> Job: ...

    @overload
    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        dry_run: Literal[True],
    ) -> DryRun: ...

    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Job | DryRun:
        """Post a job, once, however often the connection breaks; with `dry_run`, only have its spec resolved.

        A caller who may call twice for one job gives the `idempotency_key` itself.
        """
        answer = self._connection.request(
            "POST",
            "/jobs",
            patience=self._patience,
            json=spec.model_dump(mode="json") if isinstance(spec, BaseModel) else dict(spec),
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            params={"dry_run": True} if dry_run else None,
        )
        return read(DryRun, answer.content) if dry_run else read(Job, answer.content)

    def get(self, job_id: str) -> Job:
        """Fetch a job as it stands."""
        return self._get(Job, _path(job_id))

    def list(self, **filters: str) -> Iterator[Job]:
        """Go through the jobs, newest first, page by page. The filters are those of `GET /jobs`, such as status."""
        return self._items(Page[Job], "/jobs", filters)

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Wait until a job has ended, in whatever way, and return it. Raises StillRunning after `timeout` seconds."""
        deadline = time.monotonic() + (inf if timeout is None else timeout)
        while True:
            left = max(0.0, deadline - time.monotonic())
            answer = self._connection.request(
                "GET",
                _path(job_id),
                patience=self._long_patience,
                params={"wait": min(LONG_POLL, left)},
                timeout=self._timeout + LONG_POLL,
            )
            job = read(Job, answer.content)
            if job.is_terminal:
                return job
            if not left:
                raise StillRunning(f"{job_id} has not ended after {timeout:g} seconds; it goes on")

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Stamped | Progress]:
        """Go through a job's events past number `after` and, in between, its progress, live, until the job has ended.

        A stream that breaks is taken up again where it broke, so that each event comes once.
        """
        pauses = Pauses(self._long_patience)
        while True:
            try:
                with self._connection.listen(f"{_path(job_id)}/events", last_event_id=after, silence=SILENCE) as source:
                    pauses.restart()
                    for sent in source:
                        match sent.event:
                            case "end":
                                return
                            case "progress":
                                yield read(Progress, sent.data)
                            case _ if sent.data:
                                event = read(Stamped, sent.data)
                                after = event.seq
                                yield event
                broken: TemperError = Unreachable(f"{self.url} closed the event stream of {job_id}")
            except httpx2.TransportError as error:
                broken = self._connection.unreachable(error)
            except Answered as error:
                if error.problem.status not in PASSING:
                    raise
                broken = error
            pauses.sleep_or_raise(broken, at_least=RECONNECT)

    def stream(self, job_id: str, *, after: int = 0) -> Iterator[Stamped]:
        """Go through a job's events past number `after`, live, until the job has ended. Broken streams are resumed."""
        return (item for item in self.watch(job_id, after=after) if isinstance(item, Stamped))

    def events(self, job_id: str) -> Iterator[Stamped]:
        """Go through a job's events so far."""
        return self._items(Page[Stamped], f"{_path(job_id)}/events")

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be cancelled; return it as it then stands. It keeps what it has delivered."""
        return self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask for a running job to be put aside, with its state saved and its worker freed; return it as it stands."""
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again; return it as it then stands."""
        return self._ask(job_id, "resume")

    def stop(self, job_id: str) -> Job:
        """Ask a running training to deliver the best weights so far; return it as it then stands."""
        return self._ask(job_id, "stop")

    def retry(self, job_id: str) -> Job:
        """Queue a new job that goes on where a failed or cancelled one ended; return it. A job has one retry."""
        return self._ask(job_id, "retry")

    def clone(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Queue a new job whose spec is this one's with the overrides merged in; None takes a default anew."""
        answer = self._connection.request(
            "POST",
            f"{_path(job_id)}/clone",
            patience=self._patience,
            json={"overrides": dict(overrides or {})},
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        )
        return read(Job, answer.content)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with all its files."""
        self._connection.request("DELETE", _path(job_id), patience=self._patience)

    def attempts(self, job_id: str) -> Iterator[Attempt]:
        """Go through a job's attempts, the first one first."""
        return self._items(Page[Attempt], f"{_path(job_id)}/attempts")

    def logs(
        self, job_id: str, *, attempt: int | None = None, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        """Go through the log of an attempt, by default the last one that has one, piece by piece.

        tail: only so many lines from the end. follow: go on until the job has ended; a connection that breaks is taken
        up again where it broke.
        """
        given = {"attempt": attempt, "tail": tail, "follow": "true" if follow else None}
        params = {name: value for name, value in given.items() if value is not None}
        if follow:
            timeout = httpx2.Timeout(self._timeout, read=SILENCE)
            yield from follow_log(
                self._connection, _path(job_id), params, timeout=timeout, patience=self._long_patience
            )
            return
        try:
            with self._connection.stream(f"{_path(job_id)}/logs", headers={}, params=params) as response:
                yield from response.iter_text()
        except httpx2.TransportError as error:
            raise self._connection.unreachable(error) from error

    def metrics(self, job_id: str) -> Metrics:
        """Fetch a job's training curve."""
        return self._get(Metrics, f"{_path(job_id)}/metrics")

    def report(self, job_id: str) -> Reports:
        """Fetch a job's evaluations, with every attack and every point."""
        return self._get(Reports, f"{_path(job_id)}/report")

    def checkpoints(self, job_id: str) -> Iterator[Checkpoint]:
        """Go through the checkpoints of a job."""
        return self._items(Page[Checkpoint], f"{_path(job_id)}/checkpoints")

    def download(self, job_or_checkpoint: str, path: str | Path) -> Path:
        """Fetch a checkpoint, or the latest of a job, to a file or into a folder; return the file.

        A download that breaks is taken up again where it broke. The file is checked against its hash, and is there
        whole or not at all. Raises NoCheckpoint, BadDownload, CannotWrite.
        """
        checkpoint = self._get(Checkpoint, f"/checkpoints/{quote(self._checkpoint_of(job_or_checkpoint), safe='')}")
        path = Path(path)
        target = path / f"{checkpoint.id}.safetensors" if path.is_dir() else path
        download_file(self._connection, checkpoint, target, patience=self._long_patience)
        return target

    def upload(
        self, path: str | Path, *, purpose: str, name: str | None = None, on_progress: OnProgress = lambda *_: None
    ) -> Upload:
        """Send a file and wait until it is verified; `purpose` is dataset or model, `name` its own by default.

        An upload that broke off, in this process or an earlier one, goes on where it broke. `on_progress` is told what
        is being done, how many bytes of it are done, and of how many. Raises CannotRead, NotUploaded.
        """
        path = Path(path)
        patience = self._long_patience
        return upload_file(
            self._connection,
            path,
            purpose=purpose,
            name=name or path.name,
            patience=patience,
            on_progress=on_progress,
        )

    def models(self) -> Iterator[Model]:
        """Go through the base models that a job can name."""
        return self._items(Page[Model], "/models")

    def datasets(self) -> Iterator[Dataset]:
        """Go through the data sets that a job can name."""
        return self._items(Page[Dataset], "/datasets")

    def dataset(self, name: str) -> Dataset:
        """Fetch a data set by its name or id."""
        return self._get(Dataset, f"/datasets/{quote(name, safe='')}")

    def model(self, name: str) -> Model:
        """Fetch a base model by its name or id."""
        return self._get(Model, f"/models/{quote(name, safe='')}")

    def add_dataset(
        self, path: str | Path, *, name: str | None = None, on_progress: OnProgress = lambda *_: None
    ) -> Dataset:
        """Upload a zip of train/<class>/* and test/<class>/*, and wait until it is ready or refused.

        name: what jobs are to call it, by default the file's. Raises CannotRead, NotUploaded.
        """
        path = Path(path)
        sent = self.upload(path, purpose="dataset", on_progress=on_progress)
        made = self._post(Dataset, "/datasets", {"upload": sent.id, "name": name or path.stem})
        return self._wait_for_inspection(made, self.dataset)

    def add_model(
        self, path: str | Path, *, name: str | None = None, on_progress: OnProgress = lambda *_: None, **said: Any
    ) -> Model:
        """Upload weights, or take a checkpoint by its id, and wait until they are ready or refused as a base model.

        name: what jobs are to call it, by default the file's. said: what the file does not say itself, such as
        architecture and dataset; the fields are those of `core.schema.spec.ImportSpec`. Raises CannotRead, NotUploaded.
        """
        if str(path).startswith("ckpt_"):
            source = {"checkpoint": str(path)}
        else:
            source = {"upload": self.upload(path, purpose="model", on_progress=on_progress).id}
        made = self._post(Model, "/models", {**source, "name": name or Path(path).stem, **said})
        return self._wait_for_inspection(made, self.model)

    def remove_dataset(self, name: str) -> None:
        """Remove a data set of one's own, by name or id."""
        self._connection.request("DELETE", f"/datasets/{quote(name, safe='')}", patience=self._patience)

    def remove_model(self, name: str) -> None:
        """Remove a base model of one's own, by name or id."""
        self._connection.request("DELETE", f"/models/{quote(name, safe='')}", patience=self._patience)

    def methods(self) -> Iterator[Method]:
        """Go through the training methods that a job can name."""
        return self._items(Page[Method], "/methods")

    def me(self) -> Me:
        """Say who this client is to the service: project, key and scopes."""
        return self._get(Me, "/me")

    def keys(self, *, project: str | None = None) -> Iterator[ApiKey]:
        """Go through the API keys of a project, newest first; by default of one's own."""
        return self._items(Page[ApiKey], "/api_keys", {"project_id": project} if project else None)

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str] = (),
        expires_at: datetime | None = None,
        project: str | None = None,
    ) -> NewApiKey:
        """Make an API key: with one's own scopes but admin, where none are given. Its secret is shown only here."""
        wish = {"name": name, "scopes": list(scopes) or None, "project_id": project}
        wish["expires_at"] = expires_at.astimezone().isoformat() if expires_at else None
        # Tried once: an answer that was lost must not leave a second key behind.
        return read(NewApiKey, self._connection.request("POST", "/api_keys", patience=0, json=wish).content)

    def revoke_key(self, key_id: str, *, descendants: bool = False) -> ApiKey:
        """Have a key refused from now on, and with `descendants` all that were made with it, and with those."""
        path = f"/api_keys/{quote(key_id, safe='')}{'?descendants=true' if descendants else ''}"
        return read(ApiKey, self._connection.request("DELETE", path, patience=self._patience).content)

    def projects(self) -> Iterator[Project]:
        """Go through the projects, newest first. Takes a key with the scope admin."""
        return self._items(Page[Project], "/projects")

    def create_project(self, name: str) -> Project:
        """Make a project. Takes a key with the scope admin."""
        return read(Project, self._connection.request("POST", "/projects", patience=0, json={"name": name}).content)

    def change_project(
        self, project_id: str, *, name: str | None = None, quotas: Mapping[str, int | None] | None = None
    ) -> Project:
        """Rename a project, or give it limits of its own; None gives it the instance's again. Takes a key with the
        scope admin."""
        wish = {"name": name, "quotas": dict(quotas or {})}
        return self._change(Project, f"/projects/{quote(project_id, safe='')}", wish)

    def quotas(self, *, project: str | None = None) -> tuple[QuotaState, ...]:
        """Say what a project may have, and has; by default one's own, else it takes a key with the scope admin."""
        if project is None:
            return self.me().quotas
        return self._get(QuotaStates, f"/projects/{quote(project, safe='')}/quotas").root

    def usage(
        self, *, since: datetime | None = None, until: datetime | None = None, group_by: str | None = None
    ) -> Usage:
        """Say what the project has used between two moments, by default in this month; group_by divides it by day,
        month, kind, dataset or base_model."""
        moments = {"from": since and since.astimezone().isoformat(), "to": until and until.astimezone().isoformat()}
        given = {**moments, "group_by": group_by}
        return self._get(Usage, "/usage", {name: value for name, value in given.items() if value})

    def webhooks(self) -> Iterator[Webhook]:
        """Go through the project's webhooks, oldest first."""
        return self._items(Page[Webhook], "/webhooks")

    def add_webhook(self, url: str, *, events: Sequence[str] | None = None, description: str = "") -> NewWebhook:
        """Have an address told how the project's jobs fare, by default of their ends. The secret that signs what it is
        told is shown only here."""
        wish = {"url": url, "description": description, **({"events": list(events)} if events is not None else {})}
        # Tried once, like all that shows a secret: a repeat would find the webhook made, and its secret shown.
        return read(NewWebhook, self._connection.request("POST", "/webhooks", patience=0, json=wish).content)

    def change_webhook(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        disabled: bool | None = None,
    ) -> Webhook:
        """Change a webhook; what is None stays as it is."""
        wish = {"url": url, "events": events, "description": description, "disabled": disabled}
        return self._change(Webhook, _webhook(webhook_id), wish)

    def remove_webhook(self, webhook_id: str) -> None:
        """Remove a webhook with its log."""
        self._connection.request("DELETE", _webhook(webhook_id), patience=self._patience)

    def test_webhook(self, webhook_id: str, *, timeout: float = 60.0) -> Delivery:
        """Send a webhook a message that says nothing; return it after its first attempt, or after `timeout` seconds."""
        path = f"{_webhook(webhook_id)}/test"
        delivery = read(Delivery, self._connection.request("POST", path, patience=0).content)
        deadline = time.monotonic() + timeout
        while delivery.status == "pending" and delivery.error is None and time.monotonic() < deadline:
            time.sleep(DELIVERY_PAUSE)
            sent = (each for each in self.deliveries(webhook_id) if each.id == delivery.id)
            delivery = next(sent, delivery)
        return delivery

    def deliveries(self, webhook_id: str, *, status: str | None = None) -> Iterator[Delivery]:
        """Go through what was sent to a webhook or is to be, newest first."""
        return self._items(Page[Delivery], f"{_webhook(webhook_id)}/deliveries", {"status": status} if status else None)

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, under the same id."""
        path = f"{_webhook(webhook_id)}/deliveries/{quote(delivery_id, safe='')}/redeliver"
        return read(Delivery, self._connection.request("POST", path, patience=self._patience).content)

    def rotate_secret(self, webhook_id: str) -> NewWebhook:
        """Give a webhook a new secret, which is shown only here; the one before signs along for 24 hours."""
        path = f"{_webhook(webhook_id)}/rotate_secret"
        return read(NewWebhook, self._connection.request("POST", path, patience=0).content)

    def version(self) -> Version:
        """Say what runs there."""
        return self._get(Version, "/version")

    def _post(self, kind: type[Answer], path: str, body: Mapping[str, Any]) -> Answer:
        return read(kind, self._connection.request("POST", path, patience=self._patience, json=dict(body)).content)

    def _change(self, kind: type[Answer], path: str, wish: Mapping[str, Any]) -> Answer:
        """Change what is not None."""
        body = {name: value for name, value in wish.items() if value is not None}
        return read(kind, self._connection.request("PATCH", path, patience=self._patience, json=body).content)

    def _wait_for_inspection(self, made: File, fetch: Callable[[str], File]) -> File:
        pause = 0.1
        while made.status in ("pending", "inspecting"):
            time.sleep(pause)
            pause = min(2 * pause, INSPECTION_PAUSE)
            made = fetch(made.id)
        return made

    @property
    def _long_patience(self) -> float:
        return max(self._patience, RESTART)

    def _checkpoint_of(self, job_or_checkpoint: str) -> str:
        if not job_or_checkpoint.startswith("job_"):
            return job_or_checkpoint
        job = self.get(job_or_checkpoint)
        if job.checkpoint is None:
            raise NoCheckpoint(f"{job.id} has no checkpoint{'' if job.is_terminal else ' yet'}: it is {job.status}")
        return job.checkpoint

    def _ask(self, job_id: str, action: str) -> Job:
        answer = self._connection.request("POST", f"{_path(job_id)}/{action}", patience=self._patience)
        return read(Job, answer.content)

    def _get(self, kind: type[Answer], path: str, params: Mapping[str, str] | None = None) -> Answer:
        return read(kind, self._connection.request("GET", path, patience=self._patience, params=params).content)

    def _items(self, kind: type[Page[Item]], path: str, filters: Mapping[str, str] | None = None) -> Iterator[Item]:
        query = dict(filters or {})
        while True:
            page = self._get(kind, path, query)
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            query["after"] = page.last_id


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _webhook(webhook_id: str) -> str:
    return f"/webhooks/{quote(webhook_id, safe='')}"
