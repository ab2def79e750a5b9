"""The recipe of a training run: its optimiser and learning rate, and what shapes the update and the delivered weights.

Every field is one of the specs that train. The defaults of `core.schema.catalog` for the network decide the optimiser;
schedule, warm-up, momentum and weight decay follow from the optimiser.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, StrictFloat, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.schema.catalog import DATASETS, MODELS, ArchitectureEntry, Optimizer, find_architecture
from core.schema.record import Record

Schedule = Literal["piecewise", "one-cycle", "cosine", "constant"]
Deliver = Literal["last", "best"]

STATISTICS_IMAGES = 2048
"""Training images, at most, on which the batch norm statistics of averaged weights are estimated."""

_RATES: Mapping[Optimizer, float] = {"sgd": 0.01, "adamw": 1e-4}
_MOMENTUM = 0.9
_ADAMW_WEIGHT_DECAY = 0.05
_WARMUP = 0.1
"""Share of the run in which the learning rate of AdamW rises, by default."""


class Average(Record):
    """An exponential moving average of the weights, evaluated beside them on the held-out images."""

    decay: StrictFloat = Field(default=0.995, gt=0, lt=1)
    """The factor by which the share of a step in the average falls with each later step: 0.995 averages about the last
    200 steps. The shares add up to 1 from the first step on, and the weights before it have none."""


class AWP(Record):
    """Adversarial weight perturbation (Wu et al. 2020): an update at weights at which the loss is higher."""

    strength: StrictFloat = Field(default=0.005, gt=0, le=1)
    """The length of the perturbation of a layer relative to that of its weights, gamma in the paper."""
    start_epoch: StrictInt = Field(default=0, ge=0, lt=1000)
    """Epochs before the perturbation begins, beside those of a linear probe, which has none."""


def usual_learning_rate(entry: ArchitectureEntry | None, optimizer: Optimizer) -> float:
    """Return the default learning rate of a network, None for one outside the catalogue, with an optimiser.

    The catalogue has the rate of each network for the optimiser that is its default.
    """
    return entry.learning_rate if entry and entry.optimizer == optimizer else _RATES[optimizer]


def defaults_of_network(entry: ArchitectureEntry, optimizer: Any) -> dict[str, Any]:
    """Return the defaults that depend on the network. optimizer: what the spec names, valid or not; None for none."""
    chosen = optimizer if optimizer in _RATES else entry.optimizer
    return {"optimizer": chosen, "learning_rate": usual_learning_rate(entry, chosen)}


def _network(data: Mapping[str, Any]) -> ArchitectureEntry | None:
    base = MODELS.get(data.get("base_model", ""))
    return find_architecture(base.architecture if base else data.get("architecture", ""))


def _default_optimizer(data: Mapping[str, Any]) -> Optimizer:
    entry = _network(data)
    return entry.optimizer if entry else "sgd"


def _default_learning_rate(data: Mapping[str, Any]) -> float:
    return usual_learning_rate(_network(data), data["optimizer"])


def _default_schedule(data: Mapping[str, Any]) -> Schedule:
    if data["optimizer"] == "adamw":
        return "cosine"
    return "one-cycle" if data["kind"] == "train" else "piecewise"


def _default_warmup(data: Mapping[str, Any]) -> float:
    return _WARMUP if data["optimizer"] == "adamw" and data["schedule"] != "one-cycle" else 0.0


def _default_momentum(data: Mapping[str, Any]) -> float | None:
    return _MOMENTUM if data["optimizer"] == "sgd" else None


def _default_weight_decay(data: Mapping[str, Any]) -> float:
    if data["optimizer"] == "adamw":
        return _ADAMW_WEIGHT_DECAY
    entry = DATASETS.get(data["dataset"])
    return entry.weight_decay if entry else 5e-4


class Recipe(Record):
    """How a loss becomes weights. Its fields are validated after those that say what is trained and how long."""

    optimizer: Optimizer = Field(default_factory=_default_optimizer)
    """sgd: with momentum, the default of convolutional networks. adamw: AdamW with betas 0.9 and 0.999, the default of
    transformers and of most networks of timm's."""
    learning_rate: StrictFloat = Field(default_factory=_default_learning_rate, gt=0, le=10)
    """The highest learning rate of the schedule."""
    schedule: Schedule = Field(default_factory=_default_schedule)
    """piecewise: the learning rate, a tenth and a hundredth of it, each for a third of the run; the default of
    fine-tuning with SGD. one-cycle: a linear rise over three tenths of the run, then a linear fall to zero; the default
    of SGD when training from random weights. cosine: a fall to zero along half a cosine, after the warm-up; the default
    of AdamW. constant: no change."""
    warmup: StrictFloat = Field(default_factory=_default_warmup, ge=0)
    """The share of the run, from 0 to below 1, in which the learning rate rises linearly from zero; what the schedule
    says of that time is multiplied by the rise. 0.1 by default for AdamW, else 0. At most a third for piecewise; none
    for one-cycle, which has its own."""
    momentum: StrictFloat | None = Field(default_factory=_default_momentum, ge=0, lt=1)
    """Momentum of SGD; null for AdamW."""
    weight_decay: StrictFloat = Field(default_factory=_default_weight_decay, ge=0, le=1)
    """Weight decay: added to the gradient by SGD, apart from it by AdamW, whose default is 0.05. AdamW does not decay
    biases and norm layers; SGD decays all weights in fine-tuning, and none of these two when training from random
    weights."""
    clip_grad_norm: StrictFloat | None = Field(default=None, gt=0, le=1000)
    """The largest length of the gradient of a batch, all weights together; a longer one is shortened to it. Null for
    no limit."""
    label_smoothing: StrictFloat = Field(default=0.0, ge=0, lt=1)
    """The share of the target of the update's cross-entropy that is spread evenly over all classes; 0 for none. With
    the TRADES loss it concerns the cross-entropy of the clean images. Divergences and attacks never smooth labels."""
    average: Average | None = None
    """An exponential moving average of the weights, whose batch norm statistics are estimated on training images.
    It is evaluated beside the weights on the held-out images, and may be delivered. Null for none."""
    deliver: Deliver = "last"
    """Which weights the run delivers. last: those after the last step; with an average the better of both on the
    held-out images, of equals the average. best: those after the epoch, averaged or not, that leave most held-out
    images robust in every norm."""
    awp: AWP | None = None
    """Adversarial weight perturbation: the gradient of an update is taken where weights are perturbed against the same
    adversarial batch. It takes one more pass per update. Null for none."""

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, warmup: float, info: ValidationInfo) -> float:
        schedule = info.data.get("schedule")
        if warmup >= 1:
            raise PydanticCustomError(
                "warmup_too_long",
                "warmup is a share of the run and must be less than 1: for 2 epochs of 20, write 0.1",
            )
        if warmup and schedule == "one-cycle":
            raise PydanticCustomError(
                "warmup_not_taken",
                "one-cycle rises over three tenths of the run by itself: leave warmup out, or set schedule to cosine",
            )
        if warmup > 1 / 3 and schedule == "piecewise":
            raise PydanticCustomError(
                "warmup_too_long",
                "piecewise drops after a third of the run: set warmup to 0.33 or less, or schedule to cosine",
            )
        return warmup

    @field_validator("momentum")
    @classmethod
    def _check_momentum(cls, momentum: float | None, info: ValidationInfo) -> float | None:
        optimizer = info.data.get("optimizer")
        if momentum is not None and optimizer == "adamw":
            raise PydanticCustomError(
                "option_not_taken", "adamw has fixed betas and takes no momentum: leave it out, or set optimizer to sgd"
            )
        if momentum is None and optimizer == "sgd":
            raise PydanticCustomError("missing", "give a value, or leave it out for {default}", {"default": _MOMENTUM})
        return momentum

    @field_validator("deliver")
    @classmethod
    def _check_deliver(cls, deliver: Deliver, info: ValidationInfo) -> Deliver:
        if deliver == "best" and info.data.get("held_out") == 0:
            raise PydanticCustomError(
                "nothing_held_out",
                "without held-out images no epoch is the best: set held_out to 1 or more, or deliver to last",
            )
        return deliver

    @field_validator("awp")
    @classmethod
    def _check_awp(cls, awp: AWP | None, info: ValidationInfo) -> AWP | None:
        epochs = info.data.get("epochs")
        if awp and epochs is not None and awp.start_epoch >= epochs:
            raise PydanticCustomError(
                "starts_after_the_end",
                "the run has {epochs} epochs: set awp.start_epoch to {last} or less, or awp to null",
                {"epochs": epochs, "last": epochs - 1, "pointer": "/awp/start_epoch"},
            )
        return awp
