"""What a run is: the one description that is API body, command line, stored JSON and checkpoint header. No torch.

A spec is always resolved: what the user leaves out is filled from the catalogue while the spec is validated, so it
says everything that will happen. Every knob, bound, default and help text of a run stands here, or in
`core.schema.catalog` where it depends on the data set or the network.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, prod, sqrt
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
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

from core.schema.catalog import ARCHITECTURES, DATASETS, METHODS, MODELS, NORMS, Augmentation, Norm, find_architecture
from core.schema.model_zoo import PUBLISHED, find_published
from core.schema.protocols import Engine, Protocol

Kind = Literal["finetune", "train", "evaluate"]
Interpolation = Literal["bilinear", "bicubic"]
Schedule = Literal["piecewise", "one-cycle", "constant"]
Loss = Literal["cross-entropy", "trades"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "always", "never"]
JobEvent = Literal[
    "job.queued",
    "job.running",
    "job.pausing",
    "job.paused",
    "job.stopping",
    "job.cancelling",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
]
"""A job of the service has got this status."""
ENDINGS: tuple[JobEvent, ...] = ("job.succeeded", "job.failed", "job.cancelled")


_MOST_DIGITS = 1000
"""Of a whole number in JSON: none that means anything has more, and Python itself reads none of very many."""
# Short and without exponents: Fraction("1e999999999") would compute for hours.
_FRACTION = re.compile(r"-?\d{1,9}(\.\d{1,18})?(/\d{1,9})?")


def _read_radius(value: Any) -> Any:
    if type(value) is int or (type(value) is float and isfinite(value)):
        return value
    text = value.replace(" ", "") if isinstance(value, str) else ""
    numerator, _, denominator = text.partition("/")
    if not _FRACTION.fullmatch(text) or int(denominator or 1) == 0:
        raise PydanticCustomError("not_a_radius", 'give a finite number or a fraction such as "8/255"')
    return float(numerator) / float(denominator or 1)


Radius = Annotated[
    float,
    BeforeValidator(_read_radius, json_schema_input_type=float | str),
    Field(gt=0),
]
# What a terminal would act on has no place in a label.
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Name = Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Steps = Annotated[StrictInt, Field(ge=1, le=1000)]


EXTRA_SHARE = 0.5
# The type that pydantic gives the errors which merely follow from others.
CONSEQUENCE = "default_factory_not_called"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which of the known words was probably meant, or list them all."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words)}"


def _known(what: str, name: str, names: Iterable[str]) -> str:
    names = list(names)
    if name not in names:
        raise PydanticCustomError(
            "unknown_name",
            "there is no {what} '{name}'; {remedy}",
            {"what": what, "name": name, "remedy": did_you_mean(name, names), "allowed": names},
        )
    return name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def _option(name: str) -> Any:
    """Make the default of a method's option: what the catalogue says, or null where the method does not take it."""

    def default(data: Mapping[str, Any]) -> Any:
        return METHODS[data["name"]].options.get(name)

    return default


def _default_beta(data: Mapping[str, Any]) -> float | None:
    return 6.0 if data["loss"] == "trades" else None


def _one_for_all(steps: Any, info: ValidationInfo) -> Any:
    if type(steps) is not int:
        return steps
    if "norms" in info.data and not info.data["norms"]:
        raise PydanticCustomError(
            "option_not_taken", "method {method} attacks no norm: leave steps out", {"method": info.data.get("name")}
        )
    return dict.fromkeys(info.data.get("norms", ()), steps)


class Method(_Part):
    """How a batch becomes a loss."""

    name: str = Field(examples=list(METHODS))
    """The method, by its name in the catalogue."""
    norms: tuple[Norm, ...] = Field(default_factory=lambda data: METHODS[data["name"]].norms or ())
    """The norms it attacks."""
    steps: Annotated[
        dict[Norm, Steps], BeforeValidator(_one_for_all, json_schema_input_type=Steps | dict[Norm, Steps])
    ] = Field(default_factory=lambda data: dict.fromkeys(data["norms"], 10))
    """Steps of the training attack for each attacked norm; one number stands for all. By default 10, on ImageNet 5, and
    15 for l1."""
    loss: Loss | None = Field(default_factory=_option("loss"))
    """What the attack drives up and the update brings down. cross-entropy: that of the adversarial images. trades: the
    divergence of the adversarial answers from the clean ones, times beta, to which the update adds the cross-entropy of
    the clean images (Zhang et al. 2019). Null for the methods nat and pat."""
    beta: Annotated[StrictFloat, Field(gt=0, le=100)] | None = Field(default_factory=_default_beta)
    """Weight of the divergence in the TRADES loss; null for the cross-entropy."""
    pairing: Annotated[StrictFloat, Field(ge=0, le=100)] | None = Field(default_factory=_option("pairing"))
    """Weight of RAMP's logit pairing loss, the paper's lambda: from the first to the second of the norms. Null for the
    other methods."""
    bound: Annotated[StrictFloat, Field(gt=0, le=10)] | None = Field(default_factory=_option("bound"))
    """How different, by LPIPS in the model's own features, PAT may make an image look. By default 0.5, on ImageNet
    0.25. Null for the other methods."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return _known("method", name, METHODS)

    @field_validator("norms")
    @classmethod
    def _right_number(cls, norms: tuple[Norm, ...], info: ValidationInfo) -> tuple[Norm, ...]:
        entry = METHODS.get(info.data.get("name", ""))
        if entry and (len(set(norms)) < len(norms) or not entry.min_norms <= len(norms) <= entry.max_norms):
            few, many = entry.min_norms, entry.max_norms
            raise PydanticCustomError(
                "norm_count",
                "method {method} takes {count} of {norms}, each once: set method.norms",
                {"method": entry.name, "count": few if few == many else f"{few} to {many}", "norms": ", ".join(NORMS)},
            )
        return norms

    @field_validator("steps")
    @classmethod
    def _one_each(cls, steps: dict[Norm, int], info: ValidationInfo) -> dict[Norm, int]:
        norms: Sequence[Norm] = info.data.get("norms", tuple(steps))
        if set(steps) != set(norms):
            raise PydanticCustomError(
                "steps_per_norm",
                "give steps for each attacked norm ({norms}), or one number for all",
                {"norms": ", ".join(norms) or "none"},
            )
        return {norm: steps[norm] for norm in norms}

    @field_validator("loss", "pairing", "bound")
    @classmethod
    def _is_taken(cls, value: Any, info: ValidationInfo) -> Any:
        entry = METHODS.get(info.data.get("name", ""))
        if entry and value is not None and info.field_name not in entry.options:
            taking = [other.name for other in METHODS.values() if info.field_name in other.options]
            raise PydanticCustomError(
                "option_not_taken",
                "method {method} has no {option}: leave it out, or choose from {taking}",
                {"method": entry.name, "option": info.field_name, "taking": ", ".join(taking)},
            )
        if entry and value is None and info.field_name in entry.options:
            default = entry.options[info.field_name]
            raise PydanticCustomError("missing", "give a value, or leave it out for {default}", {"default": default})
        return value

    @field_validator("beta")
    @classmethod
    def _is_for_trades(cls, beta: float | None, info: ValidationInfo) -> float | None:
        loss = info.data.get("loss", "trades" if beta else None)
        if beta is not None and loss != "trades":
            raise PydanticCustomError("option_not_taken", "beta belongs to the TRADES loss: set method.loss to trades")
        if beta is None and loss == "trades":
            raise PydanticCustomError("missing", "give a value, or leave it out for 6")
        return beta


def _named_method(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Evaluation(_Part):
    """How robustness is measured."""

    protocol: Protocol = "paper"
    """fast: APGD on the cross-entropy, 1 x 20 iterations per norm, for curves. paper: APGD-CE and targeted APGD,
    10 x 100 iterations per norm, as in the tables of the E-AT paper. standard: all of AutoAttack."""
    engine: Engine = "temper"
    """Whose code attacks. temper: ours, which gives AutoAttack's verdicts in less time. reference: pyautoattack, the
    original's port, for a number that it signs."""
    examples: StrictInt = Field(default=1000, ge=1, le=1_000_000)
    """Test points to evaluate: the first so many in the data set's fixed order, or all where there are fewer."""
    include_base: StrictBool = True
    """Whether fine-tuning evaluates the base model too, for the row "before"."""
    batch_size: StrictInt = Field(default=250, ge=1, le=100_000)
    """Points that share one stream of random numbers (AutoAttack's `bs`), so part of what defines a verdict. How many
    are computed together is another matter and changes nothing."""
    interpolation: Interpolation = "bilinear"
    """How ImageNet's images are resized, 256 at the shorter side, before the middle is cut out: as the base model had
    it. Data sets whose images have one size are not resized."""


def _default_dataset(data: Mapping[str, Any]) -> str:
    base = MODELS.get(data.get("base_model", ""))
    return base.dataset if base else ""


def _default_eps(data: Mapping[str, Any]) -> dict[Norm, float]:
    entry = DATASETS.get(data["dataset"])
    return dict(entry.eps) if entry else {}


def default_eps(base_model: Any, dataset: Any) -> dict[Norm, float]:
    """Give the radii of a spec that names none; empty where base model and data set do not decide them."""
    named = {"base_model": base_model if isinstance(base_model, str) else "", "dataset": dataset}
    return _default_eps({"dataset": dataset if isinstance(dataset, str) and dataset else _default_dataset(named)})


class _Run(_Part):
    # Stands here, and is narrowed below, so that it comes first wherever a spec is shown.
    kind: Kind


class _FromBase(_Run):
    base_model: Name
    """The model to start from, by its name in the catalogue or among the models of this machine."""

    @field_validator("base_model")
    @classmethod
    def _base_is_named(cls, name: str) -> str:
        if not name:
            raise PydanticCustomError("missing", "name the base model; shipped: {names}", {"names": ", ".join(MODELS)})
        return name


class _FromScratch(_Run):
    architecture: str = Field(examples=list(ARCHITECTURES))
    """The network to train, by its name in the catalogue, or timm/ and a name of timm's, such as timm/convnext_atto."""

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return name if find_architecture(name) else _known("architecture", name, ARCHITECTURES)


class JobWebhook(_Part):
    """Whom the service tells how one job fares."""

    url: Annotated[Text, Field(min_length=1, max_length=2048)] = Field(examples=["https://example.com/temper"])
    """Where to post messages: https, on the public internet unless the operator allows more."""
    events: tuple[JobEvent, ...] = Field(default=ENDINGS, max_length=20)
    """What to tell it of this job; by default its end."""

    @field_validator("events")
    @classmethod
    def _is_told_something(cls, events: tuple[JobEvent, ...]) -> tuple[JobEvent, ...]:
        if not events:
            raise PydanticCustomError("missing", "name an event such as job.succeeded, or leave webhook out")
        return events


class _Measured(_Run):
    dataset: Name = Field(default_factory=_default_dataset)
    """The images, by their name in the catalogue or among the data sets of this machine; by default those that the
    base model was trained on."""
    eps: dict[Norm, Radius] = Field(default_factory=_default_eps)
    """The radius per norm, in pixel units of images in [0, 1], as a number or a fraction such as "8/255". Every norm
    given here, and no other, is evaluated; the method chooses which of them training attacks. By default those of the
    data set."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How robustness is measured."""
    seed: StrictInt = Field(default=0, ge=0, lt=2**32)
    """Decides everything that is drawn at random."""
    name: Text = Field(default="", max_length=128)
    """A label for people."""
    metadata: dict[Annotated[Text, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16
    )
    """Up to 16 pairs of the user's own."""
    priority: StrictInt = Field(default=0, ge=-100, le=100)
    """A waiting job of higher priority starts first."""
    webhook: JobWebhook | None = None
    """Whom the service tells how this job fares; null for nobody but the project's own webhooks. Jobs only: a run on
    the command line has nobody to call, and no checkpoint names the address."""

    @field_validator("dataset")
    @classmethod
    def _dataset_is_named(cls, name: str, info: ValidationInfo) -> str:
        if not name and "base_model" in cls.model_fields and "base_model" not in info.data:
            raise PydanticCustomError(CONSEQUENCE, "the base model decides the data set")
        if not name:
            base = info.data.get("base_model", "")
            other = f"; no base model is shipped as {base!r}, so it does not say which: {did_you_mean(base, MODELS)}"
            raise PydanticCustomError(
                "missing",
                "name the data set; built in: {names}{other}",
                {"names": ", ".join(DATASETS), "other": other if base else ""},
            )
        return name

    @field_validator("eps")
    @classmethod
    def _sensible(cls, eps: dict[Norm, float], info: ValidationInfo) -> dict[Norm, float]:
        if not eps:
            raise PydanticCustomError("missing", 'give a radius per norm, for example {"linf": "8/255"}')
        entry = DATASETS.get(info.data.get("dataset", ""))
        for norm, radius in eps.items():
            check_radius(norm, radius, entry.shape if entry else None)
        return {norm: eps[norm] for norm in NORMS if norm in eps}


def check_radius(norm: Norm, radius: float, shape: tuple[int, ...] | None) -> None:
    """Refuse a radius so large that no classifier can be robust at it, which is how 0-255 units show.

    A ball of radius d^(1/p) / 2 around any image of d pixels reaches the uniform grey image. Without a shape only linf
    can be judged. Raises PydanticCustomError with the pointer of the radius in `ctx`.
    """
    pixels = prod(shape) if shape else None
    limit = 0.5 if norm == "linf" else None if pixels is None else 0.5 * {"l2": sqrt(pixels), "l1": pixels}[norm]
    if limit is None or radius < limit:
        return
    hint = ""
    if radius / 255 < limit:
        hint = f'; for 0-255 units divide by 255: "{radius:g}/255" is {radius / 255:.4g}'
    raise PydanticCustomError(
        "eps_out_of_range",
        "{radius} is not below {limit}, where every image can be turned into the same grey one; eps is in "
        "pixel units of images in [0, 1]{hint}",
        {"norm": norm, "radius": f"{radius:g}", "limit": f"{limit:g}", "hint": hint, "pointer": f"/eps/{norm}"},
    )


def _dataset_default(field: str, otherwise: Any) -> Any:
    """The data set's own value, or `otherwise` for one that the catalogue does not know."""

    def default(data: Mapping[str, Any]) -> Any:
        entry = DATASETS.get(data["dataset"])
        return getattr(entry, field) if entry else otherwise

    return default


def _default_held_out(data: Mapping[str, Any]) -> int | None:
    """A twentieth of the training images, at most 256, where their number is known before they are read."""
    entry = DATASETS.get(data["dataset"])
    if entry is None:
        return None
    return count_held_out(min(entry.train_examples, data.get("train_examples") or entry.train_examples))


def count_held_out(train_examples: int) -> int:
    """Say how many of so many training images are held out when nobody says how many."""
    return min(256, train_examples // 20)


def _default_learning_rate(data: Mapping[str, Any]) -> float:
    base = MODELS.get(data.get("base_model", ""))
    entry = find_architecture(base.architecture if base else data.get("architecture", ""))
    return entry.learning_rate if entry else 0.01


class _Trained(_Measured):
    method: Annotated[Method, BeforeValidator(_named_method, json_schema_input_type=str | Method)] = Field(
        default_factory=lambda: Method(name="e-at")
    )
    """How a batch becomes a loss: a name, which stands for the method with its defaults, or an object with options."""
    epochs: StrictInt = Field(default_factory=_dataset_default("epochs", 3), ge=1, le=1000)
    """Passes over the training images."""
    batch_size: StrictInt = Field(default_factory=_dataset_default("batch_size", 128), ge=1, le=65_536)
    """Images per training step. The last of an epoch takes those that are left; a single one joins the step before."""
    learning_rate: StrictFloat = Field(default_factory=_default_learning_rate, gt=0, le=10)
    """The highest learning rate of the schedule."""
    schedule: Schedule = "piecewise"
    """piecewise: the learning rate, a tenth and a hundredth of it, each for a third of the run. one-cycle: up in a
    straight line for three tenths of the run, then down to zero. constant: no change."""
    momentum: StrictFloat = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: StrictFloat = Field(default_factory=_dataset_default("weight_decay", 5e-4), ge=0, le=1)
    """Weight decay of SGD; when training from random weights, not on biases and batch norm."""
    augmentation: Augmentation = Field(default_factory=_dataset_default("augmentation", "none"))
    """crop-flip: a random crop after padding by an eighth of the size, and a horizontal flip half the time.
    resized-crop-flip: a random crop of 8 to 100 % of the area, resized, and the flip."""
    train_examples: StrictInt | None = Field(default=None, ge=1)
    """Train on so many images, drawn once with the seed; null for all of them."""
    extra_dataset: Name | None = Field(default=None, min_length=1)
    """A second labelled set to train on, by its name among the data sets of this machine: a part of each batch comes
    from it, and an epoch is still every image of the first set once; null for none."""
    extra_share: StrictFloat = Field(default=EXTRA_SHARE, gt=0, lt=1)
    """The part of each batch that comes from the second set, where there is one."""
    held_out: StrictInt | None = Field(default_factory=_default_held_out, ge=0, le=100_000)
    """Of these, keep so many aside, drawn with the seed: after each epoch they show how robust the model is, in every
    norm of eps, and which epoch's weights are the best so far. 0 for none; null for a twentieth, at most 256."""
    precision: Precision = "auto"
    """Arithmetic of training: fp32, or bf16 inside the network and fp32 around it. auto: bf16 on a GPU that computes in
    it, else fp32. Evaluations are always fp32."""
    compile: Compile = "auto"
    """Whether the network that attacks look at is compiled (torch.compile), which changes results only by rounding.
    auto: on a GPU, once the steps that are left would win back the minute that it costs."""
    gpus: StrictInt = Field(default=1, ge=1, le=64)
    """How many GPUs train together, each on its share of every batch."""
    halve_batches: StrictBool = False
    """Whether a batch that does not fit the memory is computed in two halves from then on, whose gradients add up; each
    half has its own batch norm statistics. On one GPU only."""
    save_minutes: StrictFloat = Field(default=10.0, ge=0, le=1440)
    """Save the state of the training, from which a run that was cut off goes on, after each epoch and within one after
    so many minutes; 0 for after every step."""

    @field_validator("method")
    @classmethod
    def _steps_of_the_dataset(cls, method: Method, info: ValidationInfo) -> Method:
        entry = DATASETS.get(info.data.get("dataset", ""))
        if entry is None or "steps" in method.model_fields_set:
            return method
        return method.model_copy(update={"steps": {norm: entry.steps[norm] for norm in method.norms}})

    @field_validator("method")
    @classmethod
    def _bound_of_the_dataset(cls, method: Method, info: ValidationInfo) -> Method:
        entry = DATASETS.get(info.data.get("dataset", ""))
        if entry is None or method.bound is None or "bound" in method.model_fields_set:
            return method
        return method.model_copy(update={"bound": entry.bound})

    @field_validator("method")
    @classmethod
    def _radius_for_each_norm(cls, method: Method, info: ValidationInfo) -> Method:
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
    def _room_for_both(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name and info.data.get("batch_size") == 1:
            raise PydanticCustomError(
                "batch_too_small",
                "a batch of one image has no room for a second data set: set batch_size to 2 or more",
                {"pointer": "/batch_size"},
            )
        return name


class FineTuneSpec(_Trained, _FromBase):
    """Make a robust base model robust to more, by a few epochs of fine-tuning."""

    kind: Literal["finetune"] = "finetune"
    """Fine-tune a base model."""


class TrainSpec(_Trained, _FromScratch):
    """Train a network from random weights: that is how a base model is made."""

    kind: Literal["train"] = "train"
    """Train a network from random weights."""
    epochs: StrictInt = Field(default_factory=_dataset_default("train_epochs", 30), ge=1, le=1000)
    """Passes over the training images."""
    schedule: Schedule = "one-cycle"
    """piecewise: the learning rate, a tenth and a hundredth of it, each for a third of the run. one-cycle: up in a
    straight line for three tenths of the run, then down to zero. constant: no change."""


class EvaluateSpec(_Measured, _FromBase):
    """Measure how robust a model is."""

    kind: Literal["evaluate"] = "evaluate"
    """Evaluate a model."""


def _read_numbers(value: Any) -> Any:
    """Take "0.49, 0.48, 0.45" as a list: a terminal has no other."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Normalisation = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(_read_numbers), Field(max_length=16)
]


class ImportSpec(_Part):
    """Turn weights of others into a checkpoint that a run can start from."""

    architecture: str = Field(default="", examples=list(ARCHITECTURES))
    """The network, by its name in the catalogue, or timm/ and a name of timm's."""
    published: str = ""
    """What the file is, by a name of RobustBench's such as Carmon2019Unlabeled, where --list has it: then network, data
    set, normalisation and what is claimed of it are known."""
    dataset: str = ""
    """The data set the weights were trained on, by its name in the catalogue: it says image size and classes."""
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(_read_numbers)] = Field(
        default=(), max_length=3
    )
    """Channels, height and width of the images they were trained on, where the data set is not in the catalogue."""
    classes: StrictInt | None = Field(default=None, ge=2, le=1_000_000)
    """How many classes they tell apart; by default as many as the data set has, or the last layer."""
    mean: Normalisation = ()
    """Per channel, what is subtracted from images in [0, 1] first; by default what the file holds or is published."""
    std: Normalisation = ()
    """Per channel, what they are divided by then; by default what the file holds or is published."""
    norm: Norm | None = None
    """The norm the weights are said to be robust to, which every run then checks."""
    eps: Radius | None = None
    """The radius they are said to be robust at, in pixel units of images in [0, 1]."""
    key: str = ""
    """Where in the file the weights are, such as state_dict; by default they are found, averaged ones first."""

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return name if not name or find_architecture(name) else _known("architecture", name, ARCHITECTURES)

    @field_validator("published")
    @classmethod
    def _is_published(cls, name: str) -> str:
        found = [entry.name for entry in find_published(name)]
        if len(found) > 1:
            raise PydanticCustomError(
                "ambiguous_name", "{name} names several: give one of {names}", {"name": name, "names": ", ".join(found)}
            )
        if name and not found:
            return _known("published model", name, PUBLISHED)
        return found[0] if found else ""

    @field_validator("dataset")
    @classmethod
    def _dataset_is_known(cls, name: str) -> str:
        return name if not name else _known("data set", name, DATASETS)

    @field_validator("shape")
    @classmethod
    def _three_sides(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) not in (0, 3):
            raise PydanticCustomError("shape", 'give channels, height and width, such as "3,32,32"')
        return shape

    @field_validator("eps")
    @classmethod
    def _with_its_norm(cls, eps: float | None, info: ValidationInfo) -> float | None:
        norm = info.data.get("norm")
        if (eps is None) != (norm is None):
            raise PydanticCustomError("claim", "give norm and eps together, or neither")
        if eps is not None and norm is not None:
            entry = DATASETS.get(info.data.get("dataset", ""))
            check_radius(norm, eps, info.data.get("shape") or (entry.shape if entry else None))
        return eps


def _kind(value: Any) -> Any:
    return value.get("kind", "finetune") if isinstance(value, Mapping) else getattr(value, "kind", None)


TrainingSpec = FineTuneSpec | TrainSpec
AnySpec = FineTuneSpec | TrainSpec | EvaluateSpec
Spec = Annotated[
    Annotated[FineTuneSpec, Tag("finetune")]
    | Annotated[TrainSpec, Tag("train")]
    | Annotated[EvaluateSpec, Tag("evaluate")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="kind is one of finetune, train, evaluate",
    ),
]
SPECS: Mapping[Kind, type[AnySpec]] = {
    "finetune": FineTuneSpec,
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
}
_adapter: TypeAdapter[AnySpec] = TypeAdapter(Spec)


class BadJson(ValueError):
    """What is JSON to Python, and yet says nothing that can be relied on: `place` is where, from the outside in."""

    def __init__(self, code: str, message: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{'.'.join(map(str, place))}: {message}" if place else message)
        self.code = code
        self.message = message
        self.place = place


def read_json(text: str | bytes) -> Any:
    """Read JSON as its standard has it, where no value is lost: without NaN and Infinity, and with each name once in an
    object. Raises ValueError, of which BadJson is a kind."""
    try:
        return _plain(json.loads(text, object_pairs_hook=_Pairs, parse_constant=_constant, parse_int=_whole), ())
    except RecursionError:
        raise BadJson("too_deep", "it is nested too deeply") from None


class _Pairs(list[tuple[str, Any]]):
    """An object as it is written."""


def _constant(word: str) -> BadJson:
    return BadJson("no_number", f"{word} is not a JSON value; give a finite number")


def _whole(digits: str) -> int | BadJson:
    if len(digits) > _MOST_DIGITS:
        return BadJson("too_long", f"a number of {len(digits)} digits is too long; give one of {_MOST_DIGITS} at most")
    return int(digits)


def _plain(value: Any, place: tuple[str | int, ...]) -> Any:
    match value:
        case _Pairs():
            names: set[str] = set()
            for name, _ in value:
                if name in names:
                    raise BadJson("repeated", "give it once", (*place, name))
                names.add(name)
            return {name: _plain(inner, (*place, name)) for name, inner in value}
        case list():
            return [_plain(inner, (*place, number)) for number, inner in enumerate(value)]
        case BadJson():
            raise BadJson(value.code, value.message, place)
    return value


def parse(body: Any) -> AnySpec:
    """Validate a job body, stored JSON or checkpoint header, and fill in what it leaves out. Raises ValidationError."""
    return _adapter.validate_python(body)
