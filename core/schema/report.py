"""The report of an evaluation: what `report.json`, a checkpoint's header and the API hold.

A report is written strictly and read leniently: building one with an unknown field is an error, while `Reports.read`
ignores fields and sections that it does not know, so that a newer report can be read. Rows, records and flags name a
threat by its id; the id of an l_p ball is its norm. What is known per point stands in columns, an entry per point in
the data set's fixed order.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from core.schema.catalog import Norm
from core.schema.progress import Flag, Rate, WarningRecord, Weights
from core.schema.protocols import Engine, Protocol
from core.schema.record import Record
from core.schema.spec import Spec
from core.schema.threats import COMMON

FORMAT = 1
"""The format of the reports that this version writes."""

NO_CLASS = -1
"""Stands for a predicted class where the logits were NaN or infinite."""


def _split(column: object) -> object:
    return column.split() if isinstance(column, str) else column


def _join(column: tuple[object, ...]) -> str:
    return " ".join(map(str, column))


_AS_TEXT = PlainSerializer(_join), BeforeValidator(_split)
Words = Annotated[tuple[str, ...], *_AS_TEXT, WithJsonSchema({"type": "string", "pattern": r"^\S*( \S+)*$"})]
"""A column of words; in JSON one string, separated by spaces."""
Classes = Annotated[tuple[int, ...], *_AS_TEXT, WithJsonSchema({"type": "string", "pattern": r"^(-?\d+( -?\d+)*)?$"})]
"""A column of class indices, or -1 for none; in JSON one string, separated by spaces."""


class AttackRecord(Record):
    """Result of one attack of a protocol."""

    threat: str
    """Id of the threat."""
    attack: str
    """The attack: apgd-ce, apgd-t, fab-t or square; search or ascent for threats that no training prepares for."""
    attacked: int
    """Points that were robust before it."""
    robust: int
    """Points that are robust after it."""
    not_finite: int = 0
    """Of these, points at which this attack, or one before it in this threat, met an image or logits that are NaN or
    infinite. They are robust for lack of an answer."""
    nan_gradients: int = 0
    """Points at which this attack, or one before it in this threat, met a gradient with NaN, which it took as zero."""
    late: int = 0
    """Points that this attack, or one before it in this threat, fooled in the last tenth of its search, so that a
    longer search might fool more."""
    no_gradient: int = 0
    """Points at which the gradient of this attack, or one before it in this threat, was zero throughout."""
    outside_ball: int = 0
    """Points that this attack, or one before it in this threat, fooled at an image that lies outside the threat by
    rounding, and whose exact projection fools the model no longer. They count as fooled, as in AutoAttack."""
    seconds: float
    """How long it took."""


class Part(Record):
    """Which shard of an evaluation a report covers."""

    index: int
    """Its number, from 1."""
    count: int
    """Number of shards."""
    first: int
    """Position of its first point among all test points, from 0."""


class Points(Record):
    """What is known of each point, in columns."""

    ids: Words
    """An id of each image: the first 16 hexadecimal digits of the SHA-256 of its pixels, as float32 in [0, 1], in the
    order channels, height, width."""
    files: tuple[str, ...] | None = None
    """File names, relative to the root of the data set; null where the images do not come from files of their own."""
    labels: Classes
    """Labels."""
    predicted: dict[str, Classes]
    """Predicted classes: under `clean` of the images, and per threat id of the perturbed images that fooled the model.
    For a robust point the class is its label, for a point that is misclassified without attack the class of the clean
    image, which is -1 where the logits are NaN or infinite."""


class UnseenRow(Record):
    """Accuracy under one threat that no training prepares for, at one budget."""

    threat: str
    """The threat, by its name in the catalogue."""
    budget: float
    """What the attacker may do, in the unit of the catalogue; of a common corruption, the severity."""
    accuracy: Rate
    """Points that are right; under an attack, at this and all smaller budgets of the run."""
    verdicts: str
    """A digit per point: 1 where the model is right, 0 where it is not."""

    @property
    def id(self) -> str:
        """The name of the row."""
        return unseen_row_id(self.threat, self.budget)

    @property
    def is_corruption(self) -> bool:
        """Whether it is a common corruption, and not an attack."""
        return self.threat.startswith(COMMON)


def unseen_row_id(threat: str, budget: float) -> str:
    """Name the row of a threat and a budget, such as "l0 9"."""
    return f"{threat} {budget:g}"


CorruptionSource = Literal["cifar", "imagenet", "files"]


class CommonCorruptions(Record):
    """Accuracy under the common corruptions of Hendrycks & Dietterich (2019)."""

    source: CorruptionSource
    """cifar, imagenet: the run makes the images, with the severities of CIFAR-10-C or of ImageNet-C, according to their
    size. files: they come from the official files."""
    mean: float | None
    """Mean over the 15 standard corruptions and the severities that were evaluated; null where one is missing."""
    per_corruption: dict[str, float]
    """Mean over the severities, per corruption."""
    per_severity: dict[int, float]
    """Mean over the corruptions, per severity."""
    mce: float | None = None
    """Mean corruption error: the mean ratio of the errors to those of the reference model; null without one, or where
    not all severities of the 15 were evaluated."""
    reference_errors: dict[str, float] | None = None
    """The mean error of the reference model per corruption."""


class UnseenReport(Record):
    """Accuracy under threats that no training prepares for."""

    preset: str | None = None
    """The list of threats, where the spec named one."""
    provenance: str | None = None
    """Where the preset comes from."""
    rows: tuple[UnseenRow, ...]
    """A row per threat and budget, in the order of the evaluation."""
    attacks: tuple[AttackRecord, ...] = ()
    """What each attack left robust, in the order in which they ran."""
    common: CommonCorruptions | None = None
    """The common corruptions; null where none was evaluated."""
    average: float | None = None
    """Mean accuracy under the attacks, each at its largest budget; null without attacks."""
    union: Rate | None = None
    """Points that are right under every attack at its largest budget; null without attacks."""

    @property
    def attack_rows(self) -> tuple[UnseenRow, ...]:
        """The rows that are not common corruptions."""
        return tuple(row for row in self.rows if not row.is_corruption)


class Report(Record):
    """How robust a model is. Robust and union accuracy count a point only if it is also right on the clean image."""

    format: int = FORMAT
    """Format of the report, which grows when the meaning of a field changes."""
    protocol: Protocol
    """The attacks that were run."""
    engine: Engine = "temper"
    """Whose code ran them."""
    examples: int
    """Test points evaluated."""
    seed: int
    """Seed of the attacks."""
    batch_size: int
    """Points per logical batch, which shared one stream of random numbers."""
    eps: dict[Norm, float]
    """The radius of each l_p threat, in pixel units of images in [0, 1]."""
    clean: Rate
    """Accuracy without attack."""
    robust: dict[str, Rate]
    """Robust accuracy per threat id."""
    union: Rate
    """Points that are robust to every threat at once."""
    average: float
    """Mean of the robust accuracies."""
    attacks: tuple[AttackRecord, ...]
    """What each attack left robust, in the order in which they ran."""
    flags: tuple[Flag, ...]
    """Reasons to doubt these numbers; empty is good."""
    verdicts: dict[str, str]
    """Under `clean`, each threat id and `union` a digit per point: 1 where the model is right, 0 where it is not."""
    points: Points | None = None
    """Image ids, labels and predicted classes; null where they were not recorded."""
    seconds: float
    """How long the evaluation took."""
    part: Part | None = None
    """Which shard of an evaluation this is; null for a whole evaluation."""
    falls: dict[str, Any] | None = None
    """Where the perturbed images that fooled the model are kept; null where they are not."""
    unseen: UnseenReport | None = None
    """Accuracy under threats that no training prepares for; null where none was asked for."""
    curves: dict[str, Any] | None = None
    """Robust accuracy over the radius, per threat id; null where it was not asked for."""
    per_class: dict[str, Any] | None = None
    """Accuracies per class; null where they were not computed."""
    acceptance: dict[str, Any] | None = None
    """Whether the model met the criteria of the spec; null where the spec has none."""
    context: dict[str, Any] | None = None
    """What only people know, such as the intended purpose and why these radii; null where it was not given."""


class Provenance(Record):
    """What a run was: its spec, its inputs by their hashes, and what computed it."""

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
    extra_examples: int = 0
    """Images of the second data set, which share the batches with them."""
    test_examples: int
    """Images it evaluates on."""
    held_out_examples: int = 0
    """Images that show after each epoch how robust the model is."""
    unread: int = 0
    """Files of the data sets that are not read: images that cannot be used, files that are not images, and those in no
    class folder."""
    total_steps: int
    """Training steps to come."""
    precision: Literal["fp32", "bf16"] | None = None
    """What the training computes in; null for an evaluation, which is always in float32, without TF32."""
    base_sha256: str | None
    """Hash of the base model's weights file; null for random weights."""
    data_sha256: str
    """Hash of the images and labels; of a streamed set, of the names, sizes and labels of its files."""
    versions: dict[str, str]
    """Versions of what computes: python, torch and the like."""
    commit: str | None
    """The git commit of Temper, where there is one."""


class Delivered(Record):
    """The weights that a training run delivers."""

    weights: Weights
    """Whether they are an average over the steps."""
    step: int
    """Training steps after which they were taken."""
    held_out: Rate | None
    """The share of the held-out images that is robust in every norm with these weights, after that step; null where it
    was not measured. It decided which weights to deliver, so it is higher than on new images."""

    @property
    def text(self) -> str:
        """Name the weights in a few words."""
        return f"the {'averaged ' if self.weights == 'averaged' else ''}weights after step {self.step}"


class Reports(Record):
    """The evaluations of a run: the content of `report.json` and of the checkpoint's header."""

    before: Report | None
    """The base model, where the run evaluated it."""
    after: Report | None
    """The model that the run delivers, or the one that it was asked to evaluate."""
    delivered: Delivered | None = None
    """The weights that a training run delivers; null for an evaluation."""
    warnings: tuple[WarningRecord, ...] = ()
    """Reasons to doubt the run, which its spec, its inputs, the checks of the base model or the training gave."""
    run: Provenance | None = None
    """What the run was; null in a checkpoint, whose header says the same elsewhere."""

    @classmethod
    def read(cls, content: str | bytes) -> Self:
        """Read JSON, ignoring what a newer version may have added. Raises ValidationError on anything else."""
        return cls.model_validate_json(content, extra="ignore")


def _leniently(reports: object) -> object:
    return Reports.model_validate(reports, extra="ignore") if isinstance(reports, dict) else reports


ReadReports = Annotated[Reports, BeforeValidator(_leniently)]
"""Reports as a field of another model, read leniently whatever that model does."""
