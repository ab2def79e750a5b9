"""What a job can name."""

from typing import Literal

from app.schemas.answer import Listed
from core.catalog import Norm


class Model(Listed):
    """A base model that a job can name."""

    object: Literal["model"]
    """What this is."""
    source: Literal["shipped", "local"]
    """shipped with Temper, or a file in this instance's models folder."""
    description: str
    """What it is."""
    architecture: str | None
    """Its network; null for a local file, which only a run opens."""
    dataset: str | None
    """What it was trained on, where that is known."""
    norm: Norm | None
    """The norm it was made robust to, where that is known."""
    eps: float | None
    """The radius it was made robust at, where that is known."""
    size: int | None
    """Bytes of a local file."""


class Dataset(Listed):
    """A data set that a job can name."""

    object: Literal["dataset"]
    """What this is."""
    source: Literal["shipped", "local"]
    """known to Temper, or a folder or archive in this instance's datasets folder."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """Channels, height and width; null for a local one, which only a run opens."""
    classes: int | None
    """How many classes, where that is known."""
    train_examples: int | None
    """Images in the training part, where that is known."""
    test_examples: int | None
    """Images in the test part, where that is known."""
    eps: dict[Norm, float]
    """The radii a job gets that names none."""


class Method(Listed):
    """A training method that a job can name."""

    object: Literal["method"]
    """What this is."""
    description: str
    """What it is."""
    norms: list[Norm] | None
    """The norms it attacks when a job names none; null when a job must name them."""
    min_norms: int
    """The fewest norms it works with."""
    max_norms: int
    """The most norms it works with."""
    options: dict[str, str | float]
    """What a job can set of it beside norms and steps, each with its default."""


class Architecture(Listed):
    """A network that a training job can name."""

    object: Literal["architecture"]
    """What this is."""
    description: str
    """What it is."""
    shape: tuple[int, int, int] | None
    """The only image shape it takes (channels, height, width); null when it takes more than one."""
    learning_rate: float
    """The highest learning rate of a run that names none."""
