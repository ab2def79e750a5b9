"""Problem documents: the body of every error answer."""

from pydantic import Field

from app.schemas.answer import Answer
from app.schemas.status import Action, Status
from app.schemas.usage import Quota
from core.schema.validation import FieldError


class Problem(Answer):
    """An error, as described by RFC 9457."""

    type: str
    """Address of a page on this server that explains the code."""
    title: str
    """The kind of problem, in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong with this request, and what to do."""
    instance: str
    """Path of the request."""
    code: str
    """Stable, for programs."""
    request_id: str
    """Id of the request, which is also in the X-Request-Id header."""
    errors: list[FieldError]
    """One entry per field that is wrong."""


class QuotaProblem(Problem):
    """The request exceeds a quota of the project."""

    quota: Quota
    """Name of the quota."""
    limit: int
    """Maximum."""
    used: float
    """Amount that would be in use."""


class RateLimitProblem(Problem):
    """Too many requests."""

    violated_policies: list[str] = Field(alias="violated-policies")
    """Policies of the RateLimit-Policy header that were exceeded; empty if the limit is that of wrong keys."""


class ConflictProblem(Problem):
    """The job's status does not allow the action."""

    current_status: Status
    """Status of the job."""
    allowed_actions: list[Action]
    """Actions that the status allows."""
