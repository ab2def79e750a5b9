"""The parts of a data set, as a loader returns them."""

from dataclasses import dataclass, field

from core.data.labelled_images import LabelledImages
from core.data.left_out import LeftOut
from core.data.survey import Survey


@dataclass(frozen=True)
class Parts:
    """The training part, the parts beside it, and what is known of their files."""

    train: LabelledImages
    """The training part."""
    classes: tuple[str, ...]
    """The name of each class, by its label."""
    test: LabelledImages | None = None
    """The test part; None where none was asked for."""
    held_out: LabelledImages | None = None
    """The data set's own held-out part; None where it has none."""
    survey: Survey = field(default_factory=Survey)
    """What was found, and what was not read."""
    left_out: LeftOut | None = None
    """The files of a streamed set that cannot be read; None for a set in memory."""
