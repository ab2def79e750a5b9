"""One path from every exception to an RFC 9457 answer: one table of exceptions and problems, one handler.

Routes raise what the domain raises. Only where the problem depends on the field of the request that caused it does a
route catch an exception itself.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from app.assets import assets, inputs, uploads
from app.http import problems
from app.http.patterns import RULES
from app.http.places import RETRY_SECONDS, NoPlace
from app.http.problems import MEDIA_TYPE, InvalidBody, InvalidParameter, InvalidSpec, MalformedBody, NotFound, Problem
from app.jobs import lifecycle
from app.platform.database import AWAY, Deleted, why
from app.platform.turns import NoTurn
from app.projects import keys, quotas, removal
from app.storage import StorageFull, StorageUnavailable
from app.webhooks import subscriptions
from core.schema.validation import FieldError

log = logging.getLogger(__name__)

_REMEDIES: Mapping[int, str] = {
    sqlite3.SQLITE_FULL: "the disk of the data folder (TEMPER_DATA_DIR) is full; free some of it, then send this again",
    sqlite3.SQLITE_READONLY: "it is read-only; let the service write to the data folder (TEMPER_DATA_DIR)",
    sqlite3.SQLITE_IOERR: "the disk of the data folder (TEMPER_DATA_DIR) fails or is full; look at that disk",
}


def _action_not_allowed(error: lifecycle.NotAllowed) -> Problem:
    return problems.ActionNotAllowed(error.action, error.status, error.allowed_actions)


def _key_reused(_: lifecycle.KeyReused) -> Problem:
    return problems.IdempotencyKeyReused("this Idempotency-Key was used with another spec; make a new one")


def _gone(error: inputs.Gone) -> Problem:
    return InvalidSpec([FieldError(pointer="", code="unknown_name", detail=f"{error}; name another")])


def _name_taken(error: assets.NameTaken) -> Problem:
    return problems.NameTaken(f"{error}; choose another name, or delete that one")


def _not_complete(error: assets.NotComplete) -> Problem:
    return problems.UploadNotUsable(f"{error}; complete it, or upload the file again")


def _in_use(error: assets.InUse) -> Problem:
    users = ", ".join(error.user_ids)
    return problems.FileInUse(f"this is still needed by {users}; wait for them to end, or cancel or delete them")


def _upload_ended(error: uploads.Ended) -> Problem:
    return problems.UploadEnded(f"the upload is {error.status} and takes no more parts")


def _upload_incomplete(error: uploads.Incomplete) -> Problem:
    return problems.UploadIncomplete(
        f"{len(error.missing)} of {error.count} parts are missing; send them, then complete it",
        errors=[
            FieldError(pointer=f"/parts/{number}", code="missing", detail="send this part") for number in error.missing
        ],
    )


def _last_admin_key(_: keys.LastAdminKey) -> Problem:
    detail = "this is the last valid key with the scope admin; make another one before you revoke it"
    return problems.LastAdminKey(detail)


def _project_not_empty(error: removal.NotEmpty) -> Problem:
    detail = f"the project has {error.listed}; send confirm=true to delete it with all of that"
    return problems.ProjectNotEmpty(detail)


def _own_project(_: removal.OwnProject) -> Problem:
    detail = "this key belongs to the project that it would delete; use an admin key of another project"
    return problems.OwnProject(detail)


def _quota_exceeded(error: quotas.QuotaExceeded) -> Problem:
    return problems.QuotaExceeded(str(error), quota=error.quota, limit=error.limit, used=error.used)


def _address_taken(error: subscriptions.AddressTaken) -> Problem:
    return problems.WebhookExists(f"the project has a webhook with the address {error}; change that one")


def _too_many_webhooks(error: subscriptions.TooMany) -> Problem:
    return problems.TooManyWebhooks(f"the project has {error} webhooks; delete one first")


def _webhook_disabled(error: subscriptions.Disabled) -> Problem:
    return problems.WebhookDisabled(f'{error} is disabled; enable it first, with PATCH and {{"disabled": false}}')


def _named_webhook_disabled(_: subscriptions.NamedIsDisabled) -> Problem:
    detail = "the project's webhook with this address is disabled: enable it, or leave webhook out"
    return InvalidSpec([FieldError(pointer="/webhook/url", code="webhook_disabled", detail=detail)])


def _store_full(_: StorageFull) -> Problem:
    return problems.StoreFull("the object store is full; tell the operator of this service")


def _store_unavailable(_: StorageUnavailable) -> Problem:
    detail = "the object store cannot be reached just now; try again in a moment"
    return problems.StoreUnavailable(detail, headers={"Retry-After": "5"})


def _no_place(error: NoPlace) -> Problem:
    return problems.TooManyAtOnce(str(error), headers={"Retry-After": str(RETRY_SECONDS)})


TRANSLATIONS: Mapping[type[Exception], Callable[[Any], Problem]] = {
    lifecycle.NotAllowed: _action_not_allowed,
    lifecycle.KeyReused: _key_reused,
    inputs.Gone: _gone,
    assets.NameTaken: _name_taken,
    assets.NotComplete: _not_complete,
    assets.InUse: _in_use,
    uploads.Ended: _upload_ended,
    uploads.Incomplete: _upload_incomplete,
    keys.BeyondOwn: lambda error: problems.Forbidden(detail=str(error)),
    keys.LastAdminKey: _last_admin_key,
    removal.NotEmpty: _project_not_empty,
    removal.OwnProject: _own_project,
    quotas.QuotaExceeded: _quota_exceeded,
    subscriptions.AddressTaken: _address_taken,
    subscriptions.TooMany: _too_many_webhooks,
    subscriptions.Disabled: _webhook_disabled,
    subscriptions.NamedIsDisabled: _named_webhook_disabled,
    Deleted: lambda error: NotFound(str(error)),
    StorageFull: _store_full,
    StorageUnavailable: _store_unavailable,
    NoPlace: _no_place,
}
"""The problem that each exception of the domain becomes. A subclass without an entry becomes what its base does."""


def install(app: FastAPI) -> None:
    """Register one handler for all errors."""
    for kind in (Problem, RequestValidationError, HTTPException, *TRANSLATIONS, *AWAY, DataError, Exception):
        app.add_exception_handler(kind, _answer)


def answer(request: Request, problem: Problem) -> Response:
    """Format a problem as RFC 9457 defines."""
    body = {
        "type": f"/problems/{problem.code}",
        "title": problem.title(),
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path,
        "code": problem.code,
        "request_id": request.state.request_id,
        "errors": [error.model_dump() for error in problem.errors],
        **problem.extra,
    }
    headers = {"X-Request-Id": request.state.request_id, **problem.headers}
    return Response(json.dumps(body), problem.status, headers, MEDIA_TYPE)


def _answer(request: Request, error: Exception) -> Response:
    problem = error if isinstance(error, Problem) else _as_problem(request, error)
    # A project that asks for more than its share could fill the log; the line of the request says 503.
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(problem, problems.TooManyAtOnce):
        # Only a mistake of ours needs a traceback: a full disk would fill the log with them.
        trace = error if isinstance(problem, problems.InternalError) else None
        cause = why(error)
        log.error("request %s: %s: %s", request.state.request_id, problem.code, cause, exc_info=trace)
    return answer(request, problem)


def _as_problem(request: Request, error: Exception) -> Problem:
    for kind in type(error).__mro__:
        if kind in TRANSLATIONS:
            return TRANSLATIONS[kind](error)
    match error:
        case RequestValidationError():
            return _invalid(request, error)
        case HTTPException():
            return _refused(error)
        case DataError():
            return _unknowable(request)
        case _ if isinstance(error, AWAY):
            return _unavailable(error)
        case _:
            detail = "something went wrong in the service; look for the request id in its log"
            # Starlette raises the exception again after this answer, whereupon uvicorn closes the connection.
            return problems.InternalError(detail, headers={"Connection": "close"})


def _unknowable(request: Request) -> Problem:
    """What Postgres cannot even look for: no text of its own has a NUL character."""
    if "\0" in request.scope["path"]:
        return NotFound("nothing here has an id with a NUL character")
    return InvalidParameter([FieldError(pointer="", code="out_of_range", detail="leave out NUL characters")])


def _unavailable(error: Exception) -> Problem:
    # The low byte is the kind of error; the rest, of no matter here, says where it happened.
    remedy = _REMEDIES.get(getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF)
    if remedy:
        return problems.DatabaseUnavailable(f"the database cannot be written: {remedy}", headers={"Retry-After": "30"})
    reason = error if isinstance(error, NoTurn) else "the database cannot be reached or written just now"
    detail = f"{reason}; try again in a moment"
    return problems.DatabaseUnavailable(detail, headers={"Retry-After": "2"})


def _refused(error: HTTPException) -> Problem:
    """What the framework refuses by itself."""
    headers = error.headers
    match HTTPStatus(error.status_code):
        case HTTPStatus.NOT_FOUND:
            return NotFound("there is nothing at this address; /docs lists the routes", headers=headers)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return problems.MethodNotAllowed("this address does not take that method", headers=headers)
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return problems.BodyTooLarge(error.detail, headers=headers)
        case _:
            return MalformedBody(f"the body cannot be read as JSON: {_why_not_json(error)}", headers=headers)


def _why_not_json(error: HTTPException) -> str:
    match error.__cause__:
        case RecursionError():
            return "it is nested too deeply"
        case UnicodeDecodeError():
            return "it is not UTF-8; send one JSON object in UTF-8"
        case ValueError():
            return "a number in it has thousands of digits; send smaller ones"
        case _:
            return "send one JSON object in UTF-8"


def _invalid(request: Request, error: RequestValidationError) -> Problem:
    details = error.errors()
    if details[0]["type"] == "json_invalid":
        place = details[0]["loc"][1]
        reason = details[0]["ctx"]["error"]
        return MalformedBody(f"the body is not JSON, from character {place} on: {reason}; send one JSON object")
    if details[0]["type"] == "missing" and details[0]["loc"] == ("body",) and request.url.path.endswith("/jobs"):
        missing = FieldError(pointer="", code="missing", detail="send a job spec as the JSON body")
        return InvalidSpec([missing])
    if details[0]["loc"][0] == "body":
        return InvalidBody([_in_body(each["loc"][1:], each["type"], _message(each)) for each in details])
    return InvalidParameter(
        [
            FieldError(
                pointer=f"/{each['loc'][-1]}", code=each["type"], detail=f"{each['loc'][0]} parameter: {_message(each)}"
            )
            for each in details
        ]
    )


def _message(details: Mapping[str, Any]) -> str:
    """Say what is wrong; for a pattern, its rule in words."""
    if details["type"] == "string_pattern_mismatch":
        return RULES[details["ctx"]["pattern"]]
    return str(details["msg"])


def _in_body(place: Sequence[str | int], code: str, message: str) -> FieldError:
    pointer = "".join(f"/{part}" for part in place)
    return FieldError(pointer=pointer, code=code, detail=message.removeprefix("Value error, "))
