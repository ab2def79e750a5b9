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
from core.schema.protocols import Engine, Protocol
from core.schema.record import Record as _Record
from core.schema.spec import Spec

Phase = Literal["preparing", "training", "evaluating", "publishing"]
Subject = Literal["base", "result"]


class Started(_Record):
    """The run has read its inputs and is about to work."""

    type: Literal["started"] = "started"
    spec: Spec
    """The resolved spec."""
    device: str
    """Where it runs."""
    architecture: str
    """The network."""
    parameters: int
    """How many parameters the network has."""
    train_examples: int
    """Images it trains on, each once in an epoch."""
    extra_examples: int
    """Images of the second data set, which share the batches with them."""
    test_examples: int
    """Images it evaluates on."""
    total_steps: int
    """Training steps to come."""
    precision: Literal["fp32", "bf16"] | None
    """What the training computes in; null for an evaluation, which is always in float32, without TF32."""
    base_sha256: str | None
    """Hash of the base model's weights file."""
    data_sha256: str
    """Hash of the images and labels; of a streamed set, of the names, sizes and labels of its files."""
    versions: dict[str, str]
    """Versions of what computes: python, torch and the like."""
    commit: str | None
    """The git commit of Temper, where there is one."""


class Resumed(_Record):
    """The run goes on from the state that an earlier one has left."""

    type: Literal["resumed"] = "resumed"
    step: int
    """Training steps behind it; of an evaluation, how often it has kept what it had found."""
    epoch: float
    """Epochs behind it."""


class Rate(_Record):
    """A share of test points, with its 95 % Wilson interval."""

    value: float
    """The share, in [0, 1]."""
    count: int
    """Points that count for it."""
    total: int
    """Points looked at."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


class Flag(_Record):
    """A reason to doubt an evaluation, or to know more about it."""

    code: str
    """Stable, for programs."""
    message: str
    """For people."""
    norm: Norm | None = None
    """The norm it is about, if it is about one."""


class AttackRecord(_Record):
    """What one attack of a protocol left standing."""

    norm: Norm
    """The norm attacked."""
    attack: str
    """The attack: apgd-ce, apgd-t, fab-t or square."""
    attacked: int
    """Points that were still right before it."""
    robust: int
    """Points that are still right after it."""
    seconds: float
    """How long it took."""


class Part(_Record):
    """Which part of an evaluation a report is about, where it is not the whole."""

    index: int
    """Its number, from 1."""
    count: int
    """How many parts there are."""
    first: int
    """The place of its first point among all test points, from 0."""


class Report(_Record):
    """How robust a model is. Robust and union accuracy count a point only if it is right on the clean image too."""

    protocol: Protocol
    """The attacks that were run."""
    engine: Engine = "temper"
    """Whose code ran them."""
    examples: int
    """Test points evaluated."""
    seed: int
    """Seed of the attacks."""
    batch_size: int
    """Points that shared one stream of random numbers."""
    eps: dict[Norm, float]
    """The radius per norm, in pixel units of images in [0, 1]."""
    clean: Rate
    """Accuracy without attack."""
    robust: dict[Norm, Rate]
    """Robust accuracy per norm."""
    union: Rate
    """Points that are right under every norm at once."""
    average: float
    """Mean of the robust accuracies."""
    attacks: tuple[AttackRecord, ...]
    """What each attack left standing, in the order they ran."""
    flags: tuple[Flag, ...]
    """Reasons to doubt these numbers; empty is good."""
    verdicts: dict[Literal["clean", "linf", "l2", "l1", "union"], str]
    """Per point, in the data set's fixed order: 1 where the model is right, 0 where it is not."""
    seconds: float
    """How long the evaluation took."""
    part: Part | None = None
    """Which part of an evaluation this is; null for the whole."""


class Reports(_Record):
    """The evaluations of a run: the content of `report.json` and of the checkpoint's header."""

    before: Report | None
    """The base model, where the run evaluated it."""
    after: Report | None
    """The model that the run delivers, or the one it was asked to evaluate."""
    run: Started | None = None
    """What the run was, with the hashes of model and data: in `report.json`, where nothing else says it."""


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
