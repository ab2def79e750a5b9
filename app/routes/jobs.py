"""Jobs: post one, find it, watch it, and read its results. The actions on it are in `app.routes.actions`."""

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import (
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from sqlalchemy.orm import Session

from app import schemas, tables
from app.assets import inputs
from app.assets.registry import Registry
from app.http import entity_tags
from app.http.authentication import ProjectId, needs
from app.http.dependencies import JobId, Json, Reading, Service, TheService, Writing, check_address
from app.http.entity_tags import IfNoneMatch, is_known, not_modified
from app.http.problems import (
    BodyTooLarge,
    IdempotencyKeyReused,
    InvalidBody,
    InvalidParameter,
    InvalidSpec,
    MalformedBody,
    NotFound,
    QuotaExceeded,
    ReportNotReady,
    StoreUnavailable,
    TooManyAtOnce,
    TooManyWebhooks,
    UnsupportedMediaType,
    problems,
)
from app.jobs import estimates, lifecycle, moves, queries, shards, waiting
from app.jobs.requirements import read_key
from app.projects import quotas
from app.routes import answer
from app.routes.assets import send_object, show_input
from app.routes.job_filter import JobFilter
from app.routes.webhooks import show_with_secret
from app.schemas.job_request import REQUESTS, AnyRequest, JobRequest, parse_request
from app.webhooks import subscriptions, url_policy
from core.schema.report import Reports
from core.schema.spec_warnings import spec_warnings
from core.schema.validation import FieldError, field_errors

router = APIRouter(tags=["jobs"])

_ETAG = schemas.headers({"ETag": "Changes when the job does."})
CREATED = _ETAG | schemas.headers({"Location": "The job.", "Idempotent-Replayed": "true on a repeat."})
"""The headers of an answer that is a new job."""
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="A repeated request with the same key creates no second job."),
]


def _unchecked(body: Any, _: ValidatorFunctionWrapHandler) -> Any:
    return body


if TYPE_CHECKING:
    Unchecked = Any
else:
    # Documented as a spec, but not validated by FastAPI: the errors of `parse_spec` say more.
    Unchecked = Annotated[JobRequest, WrapValidator(_unchecked)]


def parse_spec(
    body: Unchecked, project_id: ProjectId, service: TheService, idempotency_key: IdempotencyKey = None
) -> AnyRequest:
    """Validate the body; errors also check that named models and data sets exist. A repeated idempotency key is
    accepted even if they were deleted since."""
    if not isinstance(body, dict):
        raise InvalidSpec([FieldError(pointer="", code="not_an_object", detail="send a job spec as one JSON object")])
    with service.database.reading() as session:
        registry = service.registry.of_project(session, project_id, body)
    try:
        request = parse_request(registry.fill_in(body))
    except ValidationError as error:
        errors = [*registry.check_names(body), *_with_radii(field_errors(error, kinds=REQUESTS), registry, body)]
        raise InvalidSpec(errors, found=error.error_count()) from None
    errors = registry.check(request)
    if errors and not _was_posted(service, project_id, request, idempotency_key):
        raise InvalidSpec(errors)
    return request


def _with_radii(errors: Sequence[FieldError], registry: Registry, body: Mapping[str, Any]) -> list[FieldError]:
    """Propose radii where a spec lacks them and its data set is not in the catalogue; none is ever filled in."""
    proposed = registry.propose_eps(body)
    return [
        error.model_copy(update={"detail": f"{error.detail}; {proposed.say()}"})
        if proposed and (error.pointer, error.code) == ("/eps", "missing")
        else error
        for error in errors
    ]


def _was_posted(service: Service, project_id: str, request: AnyRequest, idempotency_key: str | None) -> bool:
    if idempotency_key is None:
        return False
    with service.database.reading() as session:
        return lifecycle.was_posted(session, project_id, request, idempotency_key)


async def check_webhook(
    request: Annotated[AnyRequest, Depends(parse_spec)], project_id: ProjectId, service: TheService
) -> AnyRequest:
    """Check the URL of the webhook that a spec names, if any. Raises InvalidSpec."""
    if request.webhook:
        try:
            await check_address(service, project_id, request.webhook.url)
        except url_policy.Refused as refusal:
            error = FieldError(pointer="/webhook/url", code="address_refused", detail=str(refusal))
            raise InvalidSpec([error]) from None
    return request


@router.post(
    "/jobs",
    status_code=201,
    response_model=schemas.PostedJob,
    dependencies=[needs("jobs:write"), Json],
    responses={
        200: {"model": schemas.DryRun, "description": "With dry_run: the spec is valid, and nothing is stored."},
        201: {"headers": CREATED},
        **problems(
            MalformedBody,
            BodyTooLarge,
            UnsupportedMediaType,
            InvalidBody,
            InvalidSpec,
            InvalidParameter,
            IdempotencyKeyReused,
            QuotaExceeded,
            TooManyWebhooks,
            TooManyAtOnce,
        ),
    },
)
def create_job(
    request: Annotated[AnyRequest, Depends(check_webhook)],
    project_id: ProjectId,
    service: TheService,
    session: Writing,
    response: Response,
    *,
    dry_run: Annotated[bool, Query(description="Validate and resolve the spec, and store nothing.")] = False,
    idempotency_key: IdempotencyKey = None,
) -> schemas.PostedJob | Response:
    """Queue a job. The smallest spec names only a base model; the answer has the resolved spec with all defaults."""
    if dry_run:
        estimate = estimates.predict(session, project_id, request)
        in_shards = shards.count(session, project_id, request, service.settings)
        told = list(spec_warnings(request))
        return answer(
            schemas.DryRun(
                valid=True, spec=request.model_dump(mode="json"), warnings=told, estimate=estimate, shards=in_shards
            )
        )
    return create_from(session, service, project_id, request, response, idempotency_key=idempotency_key)


@router.get(
    "/jobs",
    response_model=schemas.Page[schemas.Job],
    responses=problems(InvalidParameter),
    dependencies=[needs("jobs:read")],
)
def list_jobs(project_id: ProjectId, session: Reading, chosen: Annotated[JobFilter, Query()]) -> Response:
    """List jobs, newest first."""
    part = queries.list_jobs(
        session,
        project_id,
        matching=chosen.model_dump(include={"name", "status", "kind", "base_model", "dataset"}),
        labels=dict(pair.split("=", 1) for pair in chosen.metadata),
        after=chosen.after,
        limit=chosen.limit,
        order=chosen.order,
    )
    why = waiting.reasons(session, part.rows)
    shown = [show_job(job, why.get(job.id)) for job in part.rows]
    return answer(schemas.page(shown, has_more=part.has_more, last=part.last))


@router.get(
    "/jobs/{job_id}",
    response_model=schemas.Job,
    dependencies=[needs("jobs:read")],
    responses={
        200: {"headers": _ETAG},
        304: {"description": "The job has not changed since If-None-Match.", "headers": _ETAG},
        **problems(NotFound, InvalidParameter, TooManyAtOnce),
    },
)
async def get_job(
    job_id: JobId,
    project_id: ProjectId,
    service: TheService,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="Wait up to this number of seconds until the job differs from If-None-Match or, without that "
            "header, until it has ended.",
        ),
    ] = 0,
    if_none_match: Annotated[str | None, Header(description="The ETag of the job as you know it.")] = None,
) -> Response:
    """Get a job: at once, when it changes, or when it ends."""
    deadline = time.monotonic() + wait
    job, why = await run_sync(_load, service, project_id, job_id)
    if wait and _can_wait(job, why, if_none_match):
        with service.places.polls.at_once(project_id):
            job, why = await _changed(job, why, service, if_none_match, deadline=deadline)
    headers = {"ETag": _etag(job, why)}
    if is_known(headers["ETag"], if_none_match):
        return not_modified(headers["ETag"])
    return answer(show_job(job, why), headers)


async def _changed(
    job: tables.Job, why: schemas.Waiting | None, service: Service, if_none_match: str | None, *, deadline: float
) -> tuple[tables.Job, schemas.Waiting | None]:
    """Wait until the job is one that the caller waits for, the deadline has passed or the server is stopping."""
    while (
        _can_wait(job, why, if_none_match) and not service.watch.stopping and (left := deadline - time.monotonic()) > 0
    ):
        await service.watch.change(job.id, job.version, timeout=left)
        job, why = await run_sync(_load, service, job.project_id, job.id)
    return job, why


@router.get(
    "/jobs/{job_id}/metrics",
    response_model=schemas.Metrics,
    responses=problems(NotFound, InvalidParameter),
    dependencies=[needs("jobs:read")],
)
def get_metrics(
    job_id: JobId,
    project_id: ProjectId,
    session: Reading,
    after_step: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only steps after this one.")] = 0,
    max_points: Annotated[int, Query(ge=1, le=10_000, description="Thin the curve out to this many points.")] = 1000,
) -> Response:
    """Get the training curve so far. For steps that were repeated, it has the values of the later attempt."""
    job = the_job(session, project_id, job_id)
    steps = queries.training_curve(session, job, after_step=after_step, max_points=max_points)
    data = [_show_metric(step) for step in steps]
    return answer(schemas.Metrics(object="metrics", job_id=job.id, attempt=job.attempt, data=data))


@router.get(
    "/jobs/{job_id}/report",
    response_model=Reports,
    responses={
        200: {"headers": entity_tags.ETAG},
        304: {"description": "If-None-Match names the report as it is.", "headers": entity_tags.ETAG},
        **problems(NotFound, ReportNotReady, StoreUnavailable, TooManyAtOnce),
    },
    dependencies=[needs("jobs:read")],
)
async def get_report(
    job_id: JobId, project_id: ProjectId, service: TheService, if_none_match: IfNoneMatch = None
) -> Response:
    """Get the evaluations before and after, with the verdict on every point."""
    job, _ = await run_sync(_load, service, project_id, job_id)
    if job.report_key is None:
        raise ReportNotReady(f"the job is {job.status} and has no report; it is there once the job has succeeded")
    return await send_object(service, project_id, job.report_key, "application/json", if_none_match)


@router.get("/jobs/{job_id}/lineage", responses=problems(NotFound), dependencies=[needs("jobs:read")])
def get_lineage(job_id: JobId, project_id: ProjectId, session: Reading) -> schemas.Lineage:
    """Get the inputs of a job that belong to the project, the jobs that made them, and what was made of this job."""
    job = the_job(session, project_id, job_id)
    taken = [show_input(each) for each in inputs.list_inputs(session, job.id)]
    ancestors = list(inputs.ancestors(session, project_id, job.id))
    dependents = [
        schemas.Dependent(object="model" if isinstance(each, tables.Model) else "job", id=each.id, name=each.name)
        for each in inputs.dependents(session, job)
    ]
    return schemas.Lineage(object="lineage", job_id=job.id, inputs=taken, ancestors=ancestors, dependents=dependents)


def the_job(session: Session, project_id: str, job_id: str) -> tables.Job:
    """Find a job of this project. Raises NotFound."""
    job = queries.find_job(session, project_id, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id!r} in this project")
    return job


def create_from(
    session: Session,
    service: Service,
    project_id: str,
    request: AnyRequest,
    response: Response,
    *,
    idempotency_key: str | None,
    cloned_from: str | None = None,
) -> schemas.PostedJob:
    """Queue a job with this spec. Raises IdempotencyKeyReused, TooManyWebhooks, InvalidSpec where it names a webhook
    that is disabled, quotas.QuotaExceeded."""
    created = lifecycle.create(
        session,
        project_id,
        request,
        idempotency_key=idempotency_key,
        cloned_from=cloned_from,
        most_webhooks=subscriptions.MAX_WEBHOOKS,
        in_shards=shards.count(session, project_id, request, service.settings),
    )
    if not created.replayed:
        if request.webhook:
            subscriptions.check_named(session, project_id, request.webhook.url)
        quotas.check(session, project_id, service.settings, *quotas.FOR_A_JOB)
    service.doorbell.ring_after_commit(
        session, read_key(created.job.requires).resource_class, shards=created.job.shards_left
    )
    return show_created(session, created, response)


def show_created(session: Session, created: lifecycle.Created, response: Response) -> schemas.PostedJob:
    """Show a job that this request, or an earlier one with the same key, has created."""
    response.headers["Location"] = f"/jobs/{created.job.id}"
    why = waiting.reasons(session, [created.job]).get(created.job.id)
    response.headers["ETag"] = _etag(created.job, why)
    if created.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    webhook = None
    if created.webhook:
        webhook = show_with_secret(created.webhook, response)
    return schemas.PostedJob.model_validate({**_facts(created.job, why), "webhook": webhook})


def show_job(job: tables.Job, why: schemas.Waiting | None) -> schemas.Job:
    """Show a job, and why it waits where no worker could take it."""
    return schemas.Job.model_validate(_facts(job, why))


def _facts(job: tables.Job, why: schemas.Waiting | None) -> dict[str, Any]:
    here = f"/jobs/{job.id}"
    parts = ("events", "metrics", "checkpoints", "report")
    return {
        "id": job.id,
        "object": "job",
        "name": job.name,
        "kind": job.kind,
        "status": job.status,
        "waiting": why,
        "phase": job.phase,
        "is_terminal": job.status in moves.TERMINAL,
        "allowed_actions": lifecycle.allowed_actions(job),
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "spec": job.spec,
        "warnings": job.warnings,
        "estimate": job.estimate,
        "actual": job.actual,
        "metadata": job.labels,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "not_before": job.not_before,
        "stopped_early": job.stopped_early,
        "retry_of": job.retry_of,
        "cloned_from": job.cloned_from,
        "shards": job.shards,
        "shard_of": job.parent_id and {"job": job.parent_id, "number": job.shard, "count": job.shard_count},
        "progress": job.progress,
        "failure": job.failure,
        "results": job.results,
        "checkpoint": job.checkpoint_id,
        "links": {"self": here, **{part: f"{here}/{part}" for part in parts}},
    }


def _load(service: Service, project_id: str, job_id: str) -> tuple[tables.Job, schemas.Waiting | None]:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
        return job, waiting.reasons(session, [job]).get(job.id)


def _etag(job: tables.Job, why: schemas.Waiting | None) -> str:
    # Workers come and go without a change of the job's row.
    return f'"{job.id}.{job.version}{f".{sha256(why.message.encode()).hexdigest()[:8]}" if why else ""}"'


def _can_wait(job: tables.Job, why: schemas.Waiting | None, if_none_match: str | None) -> bool:
    return job.status not in moves.TERMINAL and (if_none_match is None or is_known(_etag(job, why), if_none_match))


def _show_metric(step: tables.Metric) -> schemas.Metric:
    return schemas.Metric.model_validate(
        {
            "step": step.step,
            "epoch": step.epoch,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "norm": step.norm,
            "counts": step.counts,
        }
    )
