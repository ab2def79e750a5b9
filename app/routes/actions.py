"""Actions on a job: pause, resume, stop, cancel, retry, clone, delete."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from sqlalchemy.orm import Session

from app import schemas
from app.http.authentication import ProjectId, needs
from app.http.body import Body
from app.http.dependencies import JobId, Json, Service, TheService, Writing, in_turn, stored
from app.http.places import NoPlace
from app.http.problems import (
    ActionNotAllowed,
    BodyTooLarge,
    FileInUse,
    IdempotencyKeyReused,
    InvalidBody,
    InvalidParameter,
    InvalidSpec,
    MalformedBody,
    NotFound,
    QuotaExceeded,
    TooManyAtOnce,
    TooManyWebhooks,
    UnsupportedMediaType,
    problems,
)
from app.jobs import lifecycle, waiting
from app.jobs.leases import job_prefix
from app.jobs.requirements import read_key
from app.projects import quotas
from app.routes.jobs import (
    CREATED,
    IdempotencyKey,
    check_webhook,
    create_from,
    parse_spec,
    show_created,
    show_job,
    the_job,
)
from app.schemas.job_request import AnyRequest
from app.storage import StorageUnavailable
from app.webhooks import subscriptions

router = APIRouter(tags=["jobs"])
log = logging.getLogger(__name__)

_MAY = [needs("jobs:write")]
_asked = partial(router.post, status_code=202, responses=problems(NotFound, ActionNotAllowed), dependencies=_MAY)


@_asked("/jobs/{job_id}/pause")
def pause_job(job_id: JobId, project_id: ProjectId, session: Writing) -> schemas.Job:
    """Pause a running job: it saves its state and frees its worker. Pausing twice is not an error."""
    return _ask(session, project_id, job_id, "pause")


@router.post(
    "/jobs/{job_id}/resume",
    status_code=202,
    responses=problems(NotFound, ActionNotAllowed, QuotaExceeded),
    dependencies=_MAY,
)
def resume_job(job_id: JobId, project_id: ProjectId, session: Writing, service: TheService) -> schemas.Job:
    """Queue a paused job again, to continue from its state. Resuming twice is not an error."""
    job = the_job(session, project_id, job_id)
    was_paused = job.status == "paused"
    shown = _ask(session, project_id, job_id, "resume")
    if was_paused:
        quotas.check(session, project_id, service.settings, "queued_jobs")
    service.doorbell.ring_after_commit(session, read_key(job.requires).resource_class, shards=len(shown.shards or ()))
    return shown


@_asked("/jobs/{job_id}/stop")
def stop_job(job_id: JobId, project_id: ProjectId, session: Writing) -> schemas.Job:
    """Stop a running training early: the best weights so far are evaluated and delivered, and the job succeeds.
    Repeating the request is not an error."""
    return _ask(session, project_id, job_id, "stop")


@_asked("/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, project_id: ProjectId, session: Writing) -> schemas.Job:
    """Cancel a job: a waiting one at once, a running one within seconds. Cancelling twice is not an error."""
    return _ask(session, project_id, job_id, "cancel")


@router.post(
    "/jobs/{job_id}/retry",
    status_code=201,
    responses={
        201: {"headers": CREATED},
        **problems(NotFound, ActionNotAllowed, InvalidSpec, QuotaExceeded, TooManyWebhooks),
    },
    dependencies=_MAY,
)
def retry_job(
    job_id: JobId, project_id: ProjectId, session: Writing, service: TheService, response: Response
) -> schemas.PostedJob:
    """Queue a new job with the spec of one that has failed or was cancelled, to go on from its last state. What has
    ended stays as it is. A job has one retry: asking again answers with the same one."""
    job = the_job(session, project_id, job_id)
    created = lifecycle.retry(session, job.id, most_webhooks=subscriptions.MAX_WEBHOOKS)
    if not created.replayed:
        quotas.check(session, project_id, service.settings, *quotas.FOR_A_JOB)
    resource = read_key(created.job.requires).resource_class
    service.doorbell.ring_after_commit(session, resource, shards=created.job.shards_left)
    return show_created(session, created, response)


class Clone(Body):
    """Changes to the spec of the copy."""

    overrides: dict[str, Any] = Field(default={})
    """Merged into the spec: objects field by field, all else replaced; null resets a field to its default.
    A method of another name replaces the whole method."""


def _varied(
    job_id: JobId, clone: Clone, project_id: ProjectId, service: TheService, idempotency_key: IdempotencyKey = None
) -> AnyRequest:
    with service.database.reading() as session:
        job = the_job(session, project_id, job_id)
    return parse_spec(_merged(job.spec, clone.overrides), project_id, service, idempotency_key)


async def _checked(
    request: Annotated[AnyRequest, Depends(_varied)], project_id: ProjectId, service: TheService
) -> AnyRequest:
    return await check_webhook(request, project_id, service)


@router.post(
    "/jobs/{job_id}/clone",
    status_code=201,
    responses={
        201: {"headers": CREATED},
        **problems(
            NotFound,
            MalformedBody,
            BodyTooLarge,
            UnsupportedMediaType,
            InvalidSpec,
            InvalidBody,
            InvalidParameter,
            IdempotencyKeyReused,
            QuotaExceeded,
            TooManyWebhooks,
            TooManyAtOnce,
        ),
    },
    dependencies=[*_MAY, Json],
)
def clone_job(
    job_id: JobId,
    request: Annotated[AnyRequest, Depends(_checked)],
    project_id: ProjectId,
    session: Writing,
    service: TheService,
    response: Response,
    *,
    idempotency_key: IdempotencyKey = None,
) -> schemas.PostedJob:
    """Queue a new job with the spec of this one and the given changes."""
    return create_from(
        session, service, project_id, request, response, idempotency_key=idempotency_key, cloned_from=job_id
    )


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses=problems(NotFound, ActionNotAllowed, FileInUse),
    dependencies=_MAY,
)
async def delete_job(job_id: JobId, project_id: ProjectId, service: TheService) -> None:
    """Delete a job that has ended, with its checkpoints, report and logs, and those of its shards."""
    removed = await in_turn(service, _remove, service, project_id, job_id)
    try:
        for each in removed:
            await stored(service, project_id, service.store.delete, job_prefix(each))
    except (StorageUnavailable, NoPlace) as error:
        log.warning("the files of job %s are left to the sweep: %s", job_id, error)


def _remove(service: Service, project_id: str, job_id: str) -> Sequence[str]:
    with service.database.writing() as session:
        return lifecycle.remove(session, the_job(session, project_id, job_id).id)


def _ask(session: Session, project_id: str, job_id: str, action: schemas.Action) -> schemas.Job:
    job = the_job(session, project_id, job_id)
    job = lifecycle.ask(session, job.id, action)
    return show_job(job, waiting.reasons(session, [job]).get(job.id))


def _merged(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge as RFC 7396 has it, but for an object of another `name`, whose fields are not those of the old one."""
    merged = dict(spec)
    for name, value in changes.items():
        before = merged.pop(name, None)
        if (
            isinstance(value, Mapping)
            and isinstance(before, Mapping)
            and value.get("name", before.get("name")) == before.get("name")
        ):
            merged[name] = _merged(before, value)
        elif value is not None:
            merged[name] = value
    return merged
