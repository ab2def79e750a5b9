"""What went wrong with a request."""

from pydantic import Field

from app.schemas.answer import Answer
from app.schemas.jobs import Action, Status
from app.schemas.usage import Quota
from core.schema.validation import FieldError


class Problem(Answer):
    """What went wrong with a request, as RFC 9457 has it."""

    type: str
    """A page on this server that explains the code."""
    title: str
    """The kind of problem, in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong here, and what to do."""
    instance: str
    """The path of the request."""
    code: str
    """Stable, for programs."""
    request_id: str
    """Also in the X-Request-Id header."""
    errors: list[FieldError]
    """One entry per field that is wrong."""


class QuotaProblem(Problem):
    """More than a project may have."""

    quota: Quota
    """Of what."""
    limit: int
    """The most there may be."""
    used: float
    """What there would be."""


class RateLimitProblem(Problem):
    """Too many requests."""

    violated_policies: list[str] = Field(alias="violated-policies")
    """Which policies of the RateLimit-Policy header; empty where it was about wrong keys."""


class ConflictProblem(Problem):
    """An action that the job's status does not allow."""

    current_status: Status
    """Where the job is."""
    allowed_actions: list[Action]
    """What may be asked of it now."""
