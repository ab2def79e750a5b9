"""The spec of a data set: what its owner says of images that the files do not say."""

from typing import Annotated

from pydantic import Field, StrictFloat

from core.schema.preprocessing import Preprocessing
from core.schema.record import Record

TestShare = Annotated[StrictFloat, Field(gt=0, lt=1)]
"""A share of the images."""
USUAL_TEST_SHARE = 0.2
"""The share that is proposed for a test part."""


class DatasetSpec(Record):
    """Make a data set of images."""

    preprocessing: Preprocessing = Field(default_factory=Preprocessing)
    """How images are brought to one size; a job may choose another way."""
    test_share: TestShare | None = Field(default=None, examples=[USUAL_TEST_SHARE])
    """The share of the images of each class that is drawn as the test part, where the data set has none: always the
    same images, whatever the seed of a job, so that no model is tested on images that another job has trained on. Null
    for a data set that has its own test part."""
