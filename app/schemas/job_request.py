"""The request for a job: the spec of a run, and beside its fields those that only the service knows.

Users post it as one flat object, and the service stores it as that. A worker, a run and a checkpoint get its spec.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictInt, Tag, TypeAdapter, field_validator
from pydantic_core import PydanticCustomError

from app.schemas.webhooks import ENDINGS, JobEvent
from core.schema.catalog import Kind
from core.schema.record import Record
from core.schema.spec import KIND, AnySpec, EvaluateSpec, FineTuneSpec, Text, TrainSpec, parse


class JobWebhook(Record):
    """A webhook for the events of one job."""

    url: Annotated[Text, Field(min_length=1, max_length=2048)] = Field(examples=["https://example.com/temper"])
    """Where to post messages: https, on the public internet unless the operator allows more."""
    events: tuple[JobEvent, ...] = Field(default=ENDINGS, max_length=20)
    """The events of this job to send; by default those that end it."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        # Whether it may be called is asked later, because that takes a name server.
        if not url.startswith(("https://", "http://")):
            raise PydanticCustomError("address_refused", "write a whole URL such as https://example.com/hook")
        return url

    @field_validator("events")
    @classmethod
    def _check_events(cls, events: tuple[JobEvent, ...]) -> tuple[JobEvent, ...]:
        if not events:
            raise PydanticCustomError("missing", "name an event such as job.succeeded, or leave webhook out")
        return events


class _Request(Record):
    priority: StrictInt = Field(default=0, ge=-100, le=100)
    """A waiting job of higher priority starts first."""
    webhook: JobWebhook | None = None
    """A webhook for this job beside those of the project; null for none."""

    @property
    def spec(self) -> AnySpec:
        """The spec of the run, without the fields of the service."""
        return parse(self.model_dump(exclude=set(_Request.model_fields)))


class FineTuneRequest(_Request, FineTuneSpec):
    """Make a robust base model robust to more norms, by a few epochs of fine-tuning."""


class TrainRequest(_Request, TrainSpec):
    """Train a network from random weights, which makes a base model."""


class EvaluateRequest(_Request, EvaluateSpec):
    """Measure how robust a model is."""


AnyRequest = FineTuneRequest | TrainRequest | EvaluateRequest
JobRequest = Annotated[
    Annotated[FineTuneRequest, Tag("finetune")]
    | Annotated[TrainRequest, Tag("train")]
    | Annotated[EvaluateRequest, Tag("evaluate")],
    KIND,
]
REQUESTS: Mapping[Kind, type[AnyRequest]] = {
    "finetune": FineTuneRequest,
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
}
_adapter: TypeAdapter[AnyRequest] = TypeAdapter(JobRequest, config=ConfigDict(defer_build=True))


def parse_request(body: Any) -> AnyRequest:
    """Validate the body of a job or a stored request, and fill in what it leaves out. Raises ValidationError."""
    return _adapter.validate_python(body)
