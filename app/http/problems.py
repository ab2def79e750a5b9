"""The catalogue of errors that the API answers with: RFC 9457 problems, one class each.

The docstring of a class is its explanation for users, served at /problems/<code>. A route declares its problems with
`problems(...)` or `declare(...)` for the OpenAPI document. `app.http.error_handler` maps exceptions to problems.
"""

from collections.abc import Mapping, Sequence
from inspect import getdoc
from typing import Any, ClassVar

from app import schemas
from core.schema.validation import FieldError

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 20
"""Errors that one problem lists: an answer must not be many times as long as what was asked."""


class Problem(Exception):
    """A request that is not granted."""

    status: ClassVar[int]
    code: ClassVar[str]
    schema: ClassVar[type[schemas.Problem]] = schemas.Problem

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = _shorten(detail)
        self.errors = [_brief(error) for error in errors[:MOST_ERRORS]]
        self.headers = headers or {}
        self.extra = extra or {}

    @classmethod
    def title(cls) -> str:
        """Name the kind of problem."""
        return cls.__name__[0] + "".join(
            f" {letter.lower()}" if letter.isupper() else letter for letter in cls.__name__[1:]
        )

    @classmethod
    def explanation(cls) -> str:
        """Return the docstring of the class, which users read as the explanation of the code."""
        return getdoc(cls) or ""


class MalformedBody(Problem):
    """The body is not JSON. Send one JSON object in UTF-8, for example {"base_model": "digits-cnn-linf"}."""

    status, code = 400, "malformed_body"


class Unauthorized(Problem):
    """The request carries no valid API key. Send it as `Authorization: Bearer tmp_...`. The first start of the service
    prints a key and stores it for the local command line; a revoked key stays refused."""

    status, code = 401, "unauthorized"


class Forbidden(Problem):
    """The API key is valid but may not do this. `required_scope` names the scope it lacks, where it lacks one: use a
    key that has it. GET /me shows what a key may do."""

    status, code = 403, "forbidden"

    def __init__(self, scope: schemas.Scope | None = None, detail: str | None = None) -> None:
        lacking = f"this needs a key with the scope {scope}, which yours lacks; GET /me shows what it may do"
        named = f', error="insufficient_scope", scope="{scope}"' if scope else ""
        headers = {"WWW-Authenticate": f'Bearer realm="temper"{named}'}
        super().__init__(detail or lacking, headers=headers, extra={"required_scope": scope})


class NotFound(Problem):
    """There is nothing at this address, or it belongs to another project."""

    status, code = 404, "not_found"


class ReportNotReady(Problem):
    """The job has no report yet. It is there when the job has succeeded; wait for that with GET /jobs/{id}?wait=60."""

    status, code = 404, "report_not_ready"


class NoLog(Problem):
    """The attempt has no log: it has not begun, or nothing of its log has been stored yet. GET /jobs/{id}/attempts
    shows how much there is of each; with follow=true the answer waits for it."""

    status, code = 404, "no_log"


class NotInspected(Problem):
    """The file has no report: it is still to be inspected, or was refused, and `failure` of the data set or model says
    why."""

    status, code = 404, "not_inspected"


class NameTaken(Problem):
    """The name is that of another data set or model, or of one that the catalogue or the operator of this instance has.
    Choose another name, or delete the other one first."""

    status, code = 409, "name_taken"


class UploadNotUsable(Problem):
    """The upload is not complete yet, was meant for something else, or is already that of another data set or model."""

    status, code = 409, "upload_not_usable"


class FileInUse(Problem):
    """The file, checkpoint or job is still needed: by unfinished jobs that use it, start from a checkpoint of it or
    continue from a state of it, or by a model that is being created from its checkpoint. Wait for them, or cancel or
    delete them first."""

    status, code = 409, "file_in_use"


class MethodNotAllowed(Problem):
    """The address exists, but not for this HTTP method: the Allow header names the ones there are."""

    status, code = 405, "method_not_allowed"


class ActionNotAllowed(Problem):
    """The job's status does not allow the action: `current_status` and `allowed_actions` say what it does allow."""

    status, code = 409, "action_not_allowed"
    schema = schemas.ConflictProblem

    def __init__(self, action: str, status: schemas.Status, allowed: Sequence[schemas.Action]) -> None:
        remedy = f"allowed now: {', '.join(allowed)}" if allowed else "no action is allowed any more"
        detail = f"a job that is {status} cannot be given the action {action}; {remedy}"
        super().__init__(detail, extra={"current_status": status, "allowed_actions": allowed})


class LastAdminKey(Problem):
    """The key is the last valid one with the scope admin: without it, projects and keys could no longer be managed.
    Create another one first."""

    status, code = 409, "last_admin_key"


class ProjectNotEmpty(Problem):
    """The project has jobs, files, webhooks or keys, which would be deleted with it: `detail` counts them. Send the
    request again with confirm=true to delete it with all of them."""

    status, code = 409, "project_not_empty"


class OwnProject(Problem):
    """The project is that of the key of this request, which would be revoked with it. Delete it with a key of another
    project that has the scope admin."""

    status, code = 409, "own_project"


class UploadEnded(Problem):
    """The upload takes no more parts: it is being verified, or is completed, aborted or expired. Announce the
    file again with POST /uploads if it is still to be sent."""

    status, code = 409, "upload_ended"


class UploadIncomplete(Problem):
    """Parts of the upload are missing. Each entry of `errors` names one: send it, then complete the upload again. GET
    /uploads/{id} lists the parts that are there."""

    status, code = 409, "upload_incomplete"


class BodyTooLarge(Problem):
    """The body is larger than this service takes. A job spec is a few hundred bytes: models and data sets are named in
    it, not sent with it."""

    status, code = 413, "body_too_large"


class UnsupportedMediaType(Problem):
    """The body is not declared as JSON. Send it with `Content-Type: application/json`."""

    status, code = 415, "unsupported_media_type"


class WebhookExists(Problem):
    """The project has a webhook with this address. Change that one: GET /webhooks lists them."""

    status, code = 409, "webhook_exists"


class TooManyWebhooks(Problem):
    """The project has as many webhooks as it may. Delete one."""

    status, code = 409, "too_many_webhooks"


class WebhookDisabled(Problem):
    """The webhook is disabled, by a user or because its receiver answered 410, so nothing is sent to it. Enable it
    first: PATCH it with {"disabled": false}."""

    status, code = 409, "webhook_disabled"


class RangeNotSatisfiable(Problem):
    """The Range header asks for bytes that the file does not have: the Content-Range header gives its size."""

    status, code = 416, "range_not_satisfiable"


class InvalidSpec(Problem):
    """The job spec is not valid. Each entry of `errors` names a field by its JSON pointer and says what to do."""

    status, code = 422, "invalid_spec"

    def __init__(self, errors: Sequence[FieldError], *, found: int = 0) -> None:
        super().__init__(_summary(errors, found), errors=errors)


class InvalidBody(Problem):
    """The body is not what the route takes. Each entry of `errors` names a field by its JSON pointer and says what to
    do."""

    status, code = 422, "invalid_body"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(_summary(errors), errors=errors)


class UploadDamaged(Problem):
    """The length or the sha256 of the received bytes differs from the announced one. Send a part again; announce a file
    again once it no longer changes."""

    status, code = 422, "upload_damaged"


class InvalidParameter(Problem):
    """A query parameter or header is not valid. Each entry of `errors` names one and says what to do."""

    status, code = 422, "invalid_parameter"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(_summary(errors), errors=errors)


class IdempotencyKeyReused(Problem):
    """The Idempotency-Key was used before, with another spec. Make a new key for a new job."""

    status, code = 422, "idempotency_key_reused"


class QuotaExceeded(Problem):
    """The request would exceed the project's quota that `quota` names: `limit` is the maximum, `used` the value that
    the request would lead to. GET /me shows all limits of a project; an operator changes them with
    PATCH /projects/{id}."""

    status, code = 403, "quota_exceeded"
    schema = schemas.QuotaProblem

    def __init__(self, detail: str, *, quota: schemas.Quota, limit: int, used: float) -> None:
        super().__init__(detail, extra={"quota": quota, "limit": limit, "used": used})


class RateLimited(Problem):
    """The key, or an address that has sent many wrong keys, asks too often. Try again after the seconds in Retry-After.
    The headers RateLimit-Policy and RateLimit tell how many requests a key has left, before there are none."""

    status, code = 429, "rate_limited"
    schema = schemas.RateLimitProblem

    def __init__(self, detail: str, *, seconds: int, policies: Sequence[str] = ()) -> None:
        violated = {"violated-policies": list(policies)}
        super().__init__(f"{detail}; try again in {seconds} s", headers={"Retry-After": str(seconds)}, extra=violated)


class InternalError(Problem):
    """The service has an error. Its log has the details under the request id."""

    status, code = 500, "internal_error"


class DatabaseUnavailable(Problem):
    """The database cannot be reached or written: other transactions have been writing to it for too long, or the disk
    of the data folder is full or cannot be written. `detail` says which, and what to do. Try again after the seconds in
    Retry-After."""

    status, code = 503, "database_unavailable"


class NotReady(Problem):
    """The database schema is not of this version. `detail` says which of the two is older: run `temper migrate` where
    it is the database, or start the newer version of the service."""

    status, code = 503, "not_ready"


class StoreUnavailable(Problem):
    """The object store cannot be read or written. Try again after the seconds in Retry-After."""

    status, code = 503, "storage_unavailable"


class StoreFull(Problem):
    """The object store has no room left. Tell the operator."""

    status, code = 507, "storage_full"


class TooManyAtOnce(Problem):
    """Requests that wait for the object store, a name server, a job or a client hold places, of which each project has
    a share. The project has its share of them, or all are taken; `detail` says of which kind. Try again after the
    seconds in Retry-After, when some of them have ended."""

    status, code = 503, "too_many_at_once"


PROBLEMS: Mapping[str, type[Problem]] = {
    problem.code: problem for problem in sorted(Problem.__subclasses__(), key=lambda each: each.code)
}


def declare(*classes: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """Declare a route's problems for the OpenAPI document."""
    rest = {"model": schemas.Problem, "description": "Anything else, mistakes of the service (500) included."}
    declared: dict[int | str, dict[str, Any]] = {"default": rest}
    for problem in classes:
        same = declared.setdefault(problem.status, {"model": problem.schema, "description": ""})
        if same["model"] is not problem.schema:
            same["model"] = schemas.Problem  # what all of them have
        explanation = " ".join(problem.explanation().split())
        same["description"] = f"{same['description']} `{problem.code}`: {explanation}".strip()
    return declared


def problems(*classes: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """Declare the problems of a route that needs a key."""
    always = InvalidParameter, Unauthorized, Forbidden, RateLimited, DatabaseUnavailable
    return declare(*dict.fromkeys((*classes, *always)))


def name_media_type(document: dict[str, Any]) -> dict[str, Any]:
    """Set the media type of problems in an OpenAPI document to problem+json: FastAPI declares all models as JSON."""
    for methods in document["paths"].values():
        for route in methods.values():
            for status, response in route["responses"].items():
                if status == "default" or status >= "4":
                    (content,) = response["content"].values()
                    response["content"] = {MEDIA_TYPE: content}
    return document


def _summary(errors: Sequence[FieldError], found: int = 0) -> str:
    """Describe the first error and count the others. `errors` may be only the first of the `found` errors."""
    first = _shorten(f"{errors[0].pointer}: {errors[0].detail}".removeprefix(": "))
    if len(errors) == 1:
        return first
    # Some of what was found may only follow from another error, and has no entry of its own.
    more = max(len(errors), found) - 1
    if len(errors) >= MOST_ERRORS and more >= MOST_ERRORS:
        return f"{first} (and up to {more} more; errors has the first {MOST_ERRORS})"
    return f"{first} (and {len(errors) - 1} more in errors)"


def _brief(error: FieldError) -> FieldError:
    return FieldError(pointer=_shorten(error.pointer), code=error.code, detail=_shorten(error.detail))


def _shorten(text: str, to: int = 1000) -> str:
    """Leave out the middle of a long text: the remedy stands at the end."""
    return text if len(text) <= to else f"{text[: to // 2]} … {text[-to // 2 :]}"
