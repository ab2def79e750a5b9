"""The spec of a run: job, command line, stored JSON and checkpoint header are this one description.

A spec is always resolved: validation fills in what the user leaves out, from the catalogue, so that it says everything
that will happen. Every field of a run stands here with its bounds, default and help text; `core.schema.catalog` has the
defaults that depend on the data set or the network.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from core.schema.catalog import (
    ARCHITECTURES,
    DATASETS,
    EXTRA_SHARE,
    MODELS,
    NORMS,
    Augmentation,
    Kind,
    Norm,
    find_architecture,
)
from core.schema.dataset_spec import TestShare
from core.schema.method import Method
from core.schema.preprocessing import Preprocessing, merge
from core.schema.protocols import DEFAULT_PROTOCOL, LOGICAL_BATCH, Engine, Protocol
from core.schema.radius import Radius, check_radius
from core.schema.recipe import Recipe, defaults_of_network
from core.schema.record import Record
from core.schema.suggestions import check_known, did_you_mean, find_close
from core.schema.unseen import AskedUnseen

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "always", "never"]
Draw = Literal["uniform", "stratified"]
Head = Literal["keep", "new"]

# Control characters could act on a terminal that shows the text.
_TEXT, _NAME = r"^[^\x00-\x1f\x7f-\x9f]*$", r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"
Text = Annotated[str, Field(pattern=_TEXT)]
Name = Annotated[str, Field(max_length=128, pattern=_NAME)]
PATTERN_RULES: Mapping[str, str] = {
    _TEXT: "leave out control characters, such as line breaks and escape codes",
    _NAME: "use only letters, digits, dots, hyphens and underscores, with a letter or digit first",
}
"""What each pattern demands, in words."""

NEW_HEAD = "set head to new, which re-initialises the last layer for the data set's classes"
"""What to do about a base model with other classes than the data set."""

CONSEQUENCE = "default_factory_not_called"
"""The type that pydantic gives to errors that only follow from an error in another field."""


class Evaluation(Record):
    """How robustness is measured."""

    protocol: Protocol = DEFAULT_PROTOCOL
    """fast: APGD on the cross-entropy, 1 x 20 iterations per norm, for curves. paper: APGD-CE and targeted APGD,
    10 x 100 iterations per norm, as in the tables of the E-AT paper. standard: all of AutoAttack."""
    engine: Engine = "temper"
    """The implementation of the attacks. temper: that of this package, which gives AutoAttack's verdicts in less time.
    reference: pyautoattack, the port of the original, for a figure that it has computed."""
    examples: StrictInt = Field(default=1000, ge=1, le=1_000_000)
    """Number of test points to evaluate, or all if there are fewer; `split` says which."""
    include_base: StrictBool = True
    """Whether fine-tuning also evaluates the base model, for the row "before"; not with a new head."""
    batch_size: StrictInt = Field(default=LOGICAL_BATCH, ge=1, le=100_000)
    """Size of a logical batch: points that share one stream of random numbers (AutoAttack's `bs`), so it is part of
    what defines a verdict. The verdicts of a logical batch are those of pyautoattack on it alone; one call of
    pyautoattack on several batches forms new ones of the robust points before each attack, and differs in a few
    verdicts (1 of 240 at batches of 50). The number of points computed together is chosen apart from it and changes no
    verdict."""
    unseen: AskedUnseen | None = None
    """Threats that no training prepares for, evaluated beside the norms: the name of a preset, or a list of threats
    with options. Null for none."""


# A spec is made of the classes below. Fields are validated in the order of the bases from right to left, and a default
# may depend on the fields before it: what a run starts from, then what it measures, then how it trains,
# then by which recipe.


class _FromBase(Record):
    # Narrowed by each spec; declared here so that it is the first field.
    kind: Kind
    base_model: Name
    """The model to start from, by its name in the catalogue or among the models of this machine."""

    @field_validator("base_model")
    @classmethod
    def _check_base_model(cls, name: str) -> str:
        if not name:
            raise PydanticCustomError("missing", "name the base model; shipped: {names}", {"names": ", ".join(MODELS)})
        return name


class _FromScratch(Record):
    kind: Kind
    architecture: str = Field(examples=list(ARCHITECTURES))
    """The network to train, by its name in the catalogue, a Wide ResNet such as wide-resnet-40-2, or timm/ or
    torchvision/ and a name of that library, such as timm/convnext_atto or torchvision/resnet18."""

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, name: str) -> str:
        return name if find_architecture(name) else check_known("architecture", name, ARCHITECTURES)


def _default_dataset(data: Mapping[str, Any]) -> str:
    base = MODELS.get(data.get("base_model", ""))
    return base.dataset if base else ""


def _default_eps(data: Mapping[str, Any]) -> dict[Norm, float]:
    entry = DATASETS.get(data["dataset"])
    return dict(entry.eps) if entry else {}


def _default_split(data: Mapping[str, Any]) -> Draw:
    return "uniform" if data.get("dataset") in DATASETS else "stratified"


def _default_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    entry = DATASETS.get(data.get("dataset", ""))
    return Preprocessing(**entry.preprocessing) if entry else Preprocessing()


def default_eps(base_model: Any, dataset: Any) -> dict[Norm, float]:
    """Give the radii of a spec that names none; empty where base model and data set do not decide them."""
    named = {"base_model": base_model if isinstance(base_model, str) else "", "dataset": dataset}
    return _default_eps({"dataset": dataset if isinstance(dataset, str) and dataset else _default_dataset(named)})


class _Measured(Record):
    dataset: Name = Field(default_factory=_default_dataset)
    """The images, by their name in the catalogue or among the data sets of this machine; by default those that the
    base model was trained on."""
    split: Draw = Field(default_factory=_default_split)
    """How images are drawn where the run uses only some of them. uniform: training and held-out images at random with
    the seed, and the first test points in the data set's fixed order, as in the papers; the default for the data sets
    of the catalogue. stratified: the same, but each class with its share, and every class keeps a training image; the
    default for all others."""
    preprocessing: Preprocessing = Field(default_factory=_default_preprocessing)
    """How images are brought to one size. By default that of the data set: its images as they are, or what it was given
    when it was added; for imagenet 224 pixels, cut out of 256."""
    test_share: TestShare | None = None
    """The share of the images of each class that is drawn as the test part, where the data set has none: always the
    same images, whatever the seed. Null for a data set that has its own test part."""
    eps: dict[Norm, Radius] = Field(default_factory=_default_eps)
    """The radius per norm, in pixel units of images in [0, 1], as a number or a fraction such as "8/255". Exactly these
    norms are evaluated; the method chooses which of them training attacks. By default those of the data set."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How robustness is measured."""
    seed: StrictInt = Field(default=0, ge=0, lt=2**32)
    """Seed of all random numbers."""
    name: Text = Field(default="", max_length=128)
    """A label for people."""
    metadata: dict[Annotated[Text, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )
    """Up to 16 key-value pairs of the user."""

    @field_validator("dataset")
    @classmethod
    def _check_dataset(cls, name: str, info: ValidationInfo) -> str:
        if not name and "base_model" in cls.model_fields and "base_model" not in info.data:
            raise PydanticCustomError(CONSEQUENCE, "the data set is taken from the base model, which is not valid")
        if not name:
            base = info.data.get("base_model", "")
            other = f"; no base model is shipped as {base!r}, so it does not say which: {did_you_mean(base, MODELS)}"
            raise PydanticCustomError(
                "missing",
                "name the data set; built in: {names}{other}",
                {"names": ", ".join(DATASETS), "other": other if base else ""},
            )
        return name

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _merge_preprocessing(cls, given: Any, info: ValidationInfo) -> Any:
        entry = DATASETS.get(info.data.get("dataset", ""))
        return given if isinstance(given, Preprocessing) else merge(entry.preprocessing if entry else {}, given)

    @field_validator("preprocessing")
    @classmethod
    def _check_preprocessing(cls, preprocessing: Preprocessing, info: ValidationInfo) -> Preprocessing:
        entry = DATASETS.get(info.data.get("dataset", ""))
        if entry and entry.streamed and preprocessing.image_size is None:
            raise PydanticCustomError(
                "image_size_missing",
                "the images of {dataset} differ in size: give an image_size, such as 224",
                {"dataset": entry.name, "pointer": "/preprocessing/image_size"},
            )
        return preprocessing

    @field_validator("test_share")
    @classmethod
    def _check_test_share(cls, share: float | None, info: ValidationInfo) -> float | None:
        if share is not None and (entry := DATASETS.get(info.data.get("dataset", ""))):
            raise PydanticCustomError(
                "has_a_test_part", "{dataset} has its own test part: leave test_share out", {"dataset": entry.name}
            )
        return share

    @field_validator("eps")
    @classmethod
    def _check_eps(cls, eps: dict[Norm, float], info: ValidationInfo) -> dict[Norm, float]:
        if not eps:
            raise PydanticCustomError("missing", 'give a radius per norm, for example {"linf": "8/255"}')
        entry = DATASETS.get(info.data.get("dataset", ""))
        preprocessing = info.data.get("preprocessing")
        shape = preprocessing.reshape(entry.shape) if entry and preprocessing else None
        for norm, radius in eps.items():
            check_radius(norm, radius, shape)
        return {norm: eps[norm] for norm in NORMS if norm in eps}


def _of_dataset(field: str, otherwise: Any) -> Any:
    """Make a default: that of the data set, or `otherwise` where the catalogue does not have the data set."""

    def default(data: Mapping[str, Any]) -> Any:
        entry = DATASETS.get(data["dataset"])
        return getattr(entry, field) if entry else otherwise

    return default


def _default_epochs(data: Mapping[str, Any]) -> int:
    entry = DATASETS.get(data["dataset"])
    if data["kind"] == "train":
        return entry.train_epochs if entry else 30
    return entry.epochs if entry else 3


def with_defaults_for(body: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Add to the fields of a spec the defaults that depend on the network of a base model outside the catalogue."""
    entry = find_architecture(architecture)
    if entry is None or body.get("kind", "finetune") != "finetune":
        return dict(body)
    return {**defaults_of_network(entry, body.get("optimizer")), **body}


def with_data_of(body: Mapping[str, Any], dataset: str, eps: Mapping[Norm, float]) -> dict[str, Any]:
    """Add to the fields of a spec the data set that a base model was trained on, and its radii, where it names none.

    dataset, eps: those of the run that made the base model; its norms go before the usual ones of the data set.
    """
    named = {"dataset": dataset, **body} if dataset else dict(body)
    if not eps or named.get("dataset") != dataset:
        return named
    return {"eps": {**_default_eps({"dataset": dataset}), **eps}, **named}


def _default_held_out(data: Mapping[str, Any]) -> int | None:
    entry = DATASETS.get(data["dataset"])
    if entry is None:
        return None
    return count_held_out(min(entry.train_examples, data.get("train_examples") or entry.train_examples))


def count_held_out(train_examples: int) -> int:
    """Return the default number of held-out training images: a twentieth, at most 256."""
    return min(256, train_examples // 20)


def _named_method(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class _Trained(Record):
    method: Annotated[Method, BeforeValidator(_named_method, json_schema_input_type=str | Method)] = Field(
        default_factory=lambda: Method(name="e-at")
    )
    """How a batch becomes a loss: a name, for the method with its defaults, or an object with options."""
    epochs: StrictInt = Field(default_factory=_default_epochs, ge=1, le=1000)
    """Passes over the training images."""
    batch_size: StrictInt = Field(default_factory=_of_dataset("batch_size", 128), ge=1, le=65_536)
    """Images per training step. The last step of an epoch takes the images that remain; a single one joins the step
    before."""
    augmentation: Augmentation = Field(default_factory=_of_dataset("augmentation", "none"))
    """crop-flip: a random crop after padding by an eighth of the size, and a horizontal flip half the time.
    resized-crop-flip: a random crop of 8 to 100 % of the area, resized, and the flip."""
    train_examples: StrictInt | None = Field(default=None, ge=1)
    """Number of training images to use, drawn once with the seed as `split` says; null for all of them."""
    extra_dataset: Name | None = Field(default=None, min_length=1)
    """A second labelled set to train on, by its name among the data sets of this machine: a part of each batch comes
    from it, and an epoch still has every image of the first set once; null for none."""
    extra_share: StrictFloat = Field(default=EXTRA_SHARE, gt=0, lt=1)
    """The fraction of each batch that comes from the second set, if there is one."""
    held_out: StrictInt | None = Field(default_factory=_default_held_out, ge=0, le=100_000)
    """Number of images to hold out, drawn with the seed as `split` says: after each epoch they show how robust the
    model is, in every norm of eps, and which epoch's weights are the best. They come from the training images, or,
    where the data set has a val part beside its test part, from that. 0 for none; null for a twentieth of the training
    images, at most 256."""
    precision: Precision = "auto"
    """Arithmetic of training: fp32, or bf16 inside the network and fp32 around it. auto: bf16 on a GPU that computes in
    it, else fp32. Evaluations always compute in fp32."""
    compile: Compile = "auto"
    """Whether the network under attack is compiled (torch.compile), which changes results only by rounding. auto: on a
    GPU, once the remaining steps would save more than the minute that compiling takes."""
    gpus: StrictInt = Field(default=1, ge=1, le=64)
    """Number of GPUs that train together, each on its share of every batch."""
    accumulate: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=1024)] = 1
    """Gradient accumulation: the number of micro-batches in which each batch is computed, one after the other, to save
    memory. Their gradients add up to that of the batch; each has its own batch norm statistics. auto: starts at 1 and
    doubles each time a batch does not fit the memory; on one GPU only."""
    save_minutes: StrictFloat = Field(default=10.0, ge=0, le=1440)
    """Minutes after which the state of the training is saved within an epoch, beside after each epoch; a run that was
    interrupted resumes from it. 0 for after every step."""

    @field_validator("accumulate", mode="before")
    @classmethod
    def _auto_or_a_number(cls, accumulate: Any) -> Any:
        if accumulate != "auto" and (type(accumulate) is not int or not 1 <= accumulate <= 1024):
            raise PydanticCustomError("not_a_number_of_micro_batches", "give auto, or an integer from 1 to 1024")
        return accumulate

    @field_validator("method")
    @classmethod
    def _fill_steps(cls, method: Method, info: ValidationInfo) -> Method:
        entry = DATASETS.get(info.data.get("dataset", ""))
        if entry is None or "steps" in method.model_fields_set:
            return method
        return method.model_copy(update={"steps": {norm: entry.steps[norm] for norm in method.norms}})

    @field_validator("method")
    @classmethod
    def _fill_bound(cls, method: Method, info: ValidationInfo) -> Method:
        entry = DATASETS.get(info.data.get("dataset", ""))
        if entry is None or method.bound is None or "bound" in method.model_fields_set:
            return method
        return method.model_copy(update={"bound": entry.bound})

    @field_validator("method")
    @classmethod
    def _check_radii(cls, method: Method, info: ValidationInfo) -> Method:
        missing = [norm for norm in method.norms if norm not in info.data.get("eps", method.norms)]
        if missing:
            raise PydanticCustomError(
                "eps_missing",
                "method {method} attacks {norms}, but eps gives no radius for {missing}: add eps.{missing}",
                {
                    "method": method.name,
                    "norms": " and ".join(method.norms),
                    "missing": missing[0],
                    "pointer": f"/eps/{missing[0]}",
                },
            )
        return method

    @field_validator("extra_dataset")
    @classmethod
    def _check_room(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name and info.data.get("batch_size") == 1:
            raise PydanticCustomError(
                "batch_too_small",
                "a batch of one image has no room for a second data set: set batch_size to 2 or more",
                {"pointer": "/batch_size"},
            )
        return name


class FineTuneSpec(Recipe, _Trained, _Measured, _FromBase):
    """Make a robust base model robust to more norms, by a few epochs of fine-tuning."""

    kind: Literal["finetune"] = "finetune"
    """Fine-tune a base model."""
    head: Head = "keep"
    """The last layer of the network, which makes the logits. keep: that of the base model, whose classes are those of
    the data set. new: re-initialised with the seed for the data set's classes, which may be others, in any number; the
    base model itself is then not evaluated, since it answers for its own classes."""
    head_learning_rate: StrictFloat | None = Field(default=None, gt=0, le=10)
    """The highest learning rate of the head; it follows the same schedule. Null for that of all other layers."""
    linear_probe_epochs: StrictInt = Field(default=0, ge=0, le=1000)
    """Epochs before the others in which the head alone trains, at a constant learning rate."""
    freeze: tuple[Annotated[Text, Field(min_length=1, max_length=256)], ...] = Field(default=(), max_length=100)
    """Parameters that do not train: patterns of their names, in which * stands for any characters, such as "conv1.*".
    Layers whose parameters are all frozen keep their batch norm statistics."""

    @property
    def evaluates_base(self) -> bool:
        """Whether the run evaluates the base model, for the row "before"."""
        return self.evaluation.include_base and self.head == "keep"


class TrainSpec(Recipe, _Trained, _Measured, _FromScratch):
    """Train a network from random weights, which makes a base model."""

    kind: Literal["train"] = "train"
    """Train a network from random weights."""


class EvaluateSpec(_Measured, _FromBase):
    """Measure how robust a model is."""

    kind: Literal["evaluate"] = "evaluate"
    """Evaluate a model."""


TrainingSpec = FineTuneSpec | TrainSpec
AnySpec = FineTuneSpec | TrainSpec | EvaluateSpec
SPECS: Mapping[Kind, type[AnySpec]] = {"finetune": FineTuneSpec, "train": TrainSpec, "evaluate": EvaluateSpec}


def _kind(value: Any) -> Any:
    kind = value.get("kind", "finetune") if isinstance(value, Mapping) else getattr(value, "kind", None)
    # A misspelt kind is refused as a field of the spec that is meant, together with the other errors in it.
    return find_close(kind, SPECS) or kind if isinstance(kind, str) else kind


KIND = Discriminator(
    _kind, custom_error_type="unknown_kind", custom_error_message="kind is one of finetune, train, evaluate"
)
"""Tells by `kind` which spec a value is; one that names none is a fine-tuning run."""
Spec = Annotated[
    Annotated[FineTuneSpec, Tag("finetune")]
    | Annotated[TrainSpec, Tag("train")]
    | Annotated[EvaluateSpec, Tag("evaluate")],
    KIND,
]
_adapter: TypeAdapter[AnySpec] = TypeAdapter(Spec, config=ConfigDict(defer_build=True))


def parse(body: Any) -> AnySpec:
    """Validate a spec file or the spec in a header, and fill in what it leaves out. Raises ValidationError."""
    return _adapter.validate_python(body)
