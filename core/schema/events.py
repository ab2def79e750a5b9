"""What a run reports: one JSON line per event, typed. No torch.

`core.training.run.fine_tune` and `core.evaluation.autoattack.run_evaluation` yield these; `python -m core --json`
prints them, the service stores them, the client shows them. A run opens with Started and closes with Finished,
Paused or Failed.
"""

import os
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.schema.catalog import Norm
from core.schema.record import Record as _Record
from core.schema.report import Provenance, Rate, Report, Reports

Phase = Literal["preparing", "training", "evaluating", "publishing"]
Subject = Literal["base", "result"]


class Started(Provenance):
    """The run has read its inputs and is about to work."""

    type: Literal["started"] = "started"


class Resumed(_Record):
    """The run goes on from the state that an earlier one has left."""

    type: Literal["resumed"] = "resumed"
    step: int
    """Training steps behind it; of an evaluation, how often it has kept what it had found."""
    epoch: float
    """Epochs behind it."""


class Entered(_Record):
    """A new phase begins."""

    type: Literal["entered"] = "entered"
    phase: Phase
    """What the run does now."""
    subject: Subject | None = None
    """Which model it is about, when evaluating."""


class NormCount(_Record):
    """How the training images fared under one norm's attack so far."""

    seen: int
    """Images attacked."""
    robust: int
    """Images that were right at the clean point and at every step of the attack."""


class Stepped(_Record):
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
    """Per attacked norm, the running counts: those E-AT draws by."""
    seconds: float
    """Seconds of training so far, those before the run was resumed included."""


class Monitored(_Record):
    """How the model fares on the held-out training images after an epoch."""

    type: Literal["monitored"] = "monitored"
    step: int
    """Training steps behind it."""
    epoch: float
    """Epochs behind it."""
    examples: int
    """Held-out images."""
    robust: dict[Norm, float]
    """Share, per norm, that withstands APGD on the cross-entropy with 20 steps."""
    training_attack: dict[Norm, float]
    """Share, per attacked norm, that withstands the attack that the training uses."""
    union: Rate
    """Images that withstand every norm's stronger attack."""
    seconds: float
    """How long it took."""


class Attacked(_Record):
    """One attack of an evaluation is done."""

    type: Literal["attacked"] = "attacked"
    subject: Subject
    """The model attacked."""
    norm: Norm
    """The norm attacked."""
    attack: str
    """The attack."""
    robust: int
    """Points still right under this norm."""
    examples: int
    """Points evaluated."""
    done: int
    """Attacks done in this evaluation."""
    total: int
    """Attacks in this evaluation."""


class Evaluated(_Record):
    """A model has been evaluated."""

    type: Literal["evaluated"] = "evaluated"
    subject: Subject
    """The model."""
    report: Report
    """The numbers."""


class Saved(_Record):
    """A file has been written whole."""

    type: Literal["saved"] = "saved"
    kind: Literal["checkpoint", "report", "state", "best", "verdicts"]
    """What it holds: the model that the run delivers; its evaluations; all that the run needs to go on from there, of
    an evaluation the verdicts so far; the best weights so far on the held-out images, as a checkpoint; what the
    evaluation that belongs to a training run has found so far."""
    path: str
    """Where it lies."""
    sha256: str
    """Its hash."""
    size: int
    """Its size in bytes."""
    step: int
    """Training steps behind it; of what an evaluation has found, how often that was kept."""
    epoch: float
    """Epochs behind it."""


class Warned(_Record):
    """Something that somebody should know, while the run goes on."""

    type: Literal["warned"] = "warned"
    code: str
    """Stable, for programs."""
    message: str
    """For people."""


PAUSED = os.EX_TEMPFAIL
"""The exit status of a run that was asked to pause: the same command, run again, goes on."""


class Paused(_Record):
    """The run was asked to pause; its state is saved, and the same run can go on from there."""

    type: Literal["paused"] = "paused"
    step: int
    """Training steps behind it."""
    epoch: float
    """Epochs behind it."""


class Finished(_Record):
    """The run is over and all its files are written."""

    type: Literal["finished"] = "finished"
    reports: Reports
    """The evaluations."""
    seconds: float
    """How long the whole run took."""
    peak_memory_bytes: int | None = None
    """The most memory it has had at once, of the GPU or, on a CPU, of the machine; null where nobody has measured."""


class Failed(_Record):
    """The run cannot go on."""

    type: Literal["failed"] = "failed"
    code: str
    """Stable, for programs: the `code` of the error in `core.schema.errors`, or internal_error."""
    message: str
    """What happened."""
    hint: str
    """What to do."""
    field: str | None = None
    """The spec field or input it is about."""
    retryable: bool = False
    """Whether trying again unchanged can succeed."""


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


class Stamped(_Record):
    """An event as the service stores and streams it."""

    seq: int
    """Its place in the job's history, from 1 without gaps."""
    created_at: datetime
    """When it was stored."""
    type: str
    """The event's type, as above, or one of the service's own that begins with "job."."""
    data: dict[str, object]
    """The event's other fields."""
