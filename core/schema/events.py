"""The events of a run, one JSON line each.

`core.training.run.fine_tune` and `core.evaluation.autoattack.run_evaluation` yield these; `python -m core --json`
prints them, the service stores them, the client shows them. A run opens with Started and closes with Finished,
Paused or Failed.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.schema.catalog import Norm
from core.schema.progress import NormCount, Phase, Rate, Subject, WarningRecord
from core.schema.record import Record
from core.schema.report import Provenance, Report, Reports


class Started(Provenance):
    """The run has read its inputs and is about to work."""

    type: Literal["started"] = "started"


class Resumed(Record):
    """The run resumes from the state of an interrupted one."""

    type: Literal["resumed"] = "resumed"
    step: int
    """Training steps done; of an evaluation, how often its state was saved."""
    epoch: float
    """Epochs done, as a fraction."""


class Entered(Record):
    """A new phase begins."""

    type: Literal["entered"] = "entered"
    phase: Phase
    """The phase."""
    subject: Subject | None = None
    """The model under evaluation; null outside evaluations."""


class Stepped(Record):
    """One training step."""

    type: Literal["stepped"] = "stepped"
    step: int
    """Steps done, this one included."""
    total_steps: int
    """Steps of the whole run."""
    epoch: float
    """Epochs done, as a fraction."""
    loss: float
    """Mean loss of the batch, before the update."""
    learning_rate: float
    """Learning rate of this step."""
    norm: Norm | None
    """The norm that was attacked; null where none was, or several were."""
    counts: dict[Norm, NormCount]
    """Per attacked norm, the running counts, by which E-AT draws the next norm."""
    seconds: float
    """Seconds of training so far, including those before the run was resumed."""


class MonitoredAverage(Record):
    """The robustness of the averaged weights on the held-out training images after an epoch."""

    robust: dict[Norm, float]
    """Per norm, the share that is robust to APGD on the cross-entropy with 20 steps."""
    union: Rate
    """Images that are robust in every norm."""


class Monitored(Record):
    """The robustness of the model on the held-out training images after an epoch."""

    type: Literal["monitored"] = "monitored"
    step: int
    """Training steps done."""
    epoch: float
    """Epochs done, as a fraction."""
    examples: int
    """Number of held-out images."""
    robust: dict[Norm, float]
    """Per norm, the share that is robust to APGD on the cross-entropy with 20 steps."""
    training_attack: dict[Norm, float]
    """Per attacked norm, the share that is robust to the attack of the training."""
    union: Rate
    """Images that are robust in every norm to the stronger of the two attacks."""
    averaged: MonitoredAverage | None = None
    """The same of the averaged weights; null for a run without an average."""
    seconds: float
    """Seconds that this took."""


class Attacked(Record):
    """One attack of an evaluation is done."""

    type: Literal["attacked"] = "attacked"
    subject: Subject
    """The model attacked."""
    threat: str
    """The row of the report: a norm, or a threat with its budget, such as "l0 9"."""
    attack: str
    """The attack: one of a protocol, or search, ascent or corruption for threats that no training prepares for."""
    robust: int
    """Points that are right in this row."""
    examples: int
    """Points evaluated."""
    done: int
    """Attacks done in this evaluation."""
    total: int
    """Attacks in this evaluation."""


class Evaluated(Record):
    """A model has been evaluated."""

    type: Literal["evaluated"] = "evaluated"
    subject: Subject
    """The model."""
    report: Report
    """The numbers."""


class Saved(Record):
    """A file has been written completely."""

    type: Literal["saved"] = "saved"
    kind: Literal["checkpoint", "report", "state", "best", "verdicts"]
    """checkpoint: the model that the run delivers. report: its evaluations. state: what the run needs to resume; for an
    evaluation, the verdicts so far. best: a checkpoint of the best weights so far on the held-out images. verdicts: the
    verdicts so far of the evaluation at the end of a training run."""
    path: str
    """Its path."""
    sha256: str
    """Its SHA-256."""
    size: int
    """Its size in bytes."""
    step: int
    """Training steps done; for the state of an evaluation, how often it was saved."""
    epoch: float
    """Epochs done, as a fraction."""


class Warned(WarningRecord, extra="forbid"):
    """The user should know something; the run continues."""

    type: Literal["warned"] = "warned"


STOPPED_EARLY = "stopped_early"
"""The code of the warning that a run ends before its last step, as requested."""


class Paused(Record):
    """The run was paused on request; its state is saved, and the same command resumes it."""

    type: Literal["paused"] = "paused"
    step: int
    """Training steps done."""
    epoch: float
    """Epochs done, as a fraction."""


class Finished(Record):
    """The run is over and all its files are written."""

    type: Literal["finished"] = "finished"
    reports: Reports
    """The evaluations."""
    seconds: float
    """Seconds that the whole run took."""
    peak_memory_bytes: int | None = None
    """Peak memory of the run, on the GPU or, without one, of the process; null where it was not measured."""


class Failed(Record):
    """The run has failed."""

    type: Literal["failed"] = "failed"
    code: str
    """Stable, for programs: the `code` of the error in `core.schema.errors`, or internal_error."""
    message: str
    """What is wrong."""
    hint: str
    """What to do."""
    field: str | None = None
    """The spec field or input it is about."""
    retryable: bool = False
    """Whether the same run can succeed when it is tried again."""


Event = (
    Started
    | Resumed
    | Entered
    | Stepped
    | Monitored
    | Attacked
    | Evaluated
    | Saved
    | Warned
    | Paused
    | Finished
    | Failed
)
_adapter: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="type")], config=ConfigDict(defer_build=True)
)


def read(line: str | bytes) -> Event:
    """Read one JSON line. Raises ValidationError on anything else."""
    return _adapter.validate_json(line)


class Stamped(Record):
    """An event as the service stores and streams it."""

    seq: int
    """Its place in the job's history, from 1 without gaps."""
    created_at: datetime
    """When it was stored."""
    type: str
    """The event's type, as above, or one of the service's own that begins with "job."."""
    data: dict[str, object]
    """The event's other fields."""
