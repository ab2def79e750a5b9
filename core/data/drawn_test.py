"""The test part of a data set that has none: a share of each class, drawn the same way each time.

The draw depends on the names of the images alone, not on the seed of a run: otherwise a model that one run has trained
would be tested by another run on images that it was trained on.
"""

from collections.abc import Mapping

import numpy as np

from core.data.class_folders import Place
from core.data.safe_zip import show
from core.schema.errors import BadDataset


def draw_test_part(places: Mapping[str, Place], share: float) -> dict[str, Place]:
    """Move `share` of the training images of each class, at least one, to the test part.

    places: the part and the class of each image, by its name. Raises BadDataset where a class has a single image.
    """
    by_class: dict[str, list[str]] = {}
    for name, place in places.items():
        if place.part == "train":
            by_class.setdefault(place.label, []).append(name)
    moved: dict[str, Place] = dict(places)
    for label, names in by_class.items():
        if len(names) < 2:
            raise BadDataset(
                f"class '{show(label)}' has a single image: none is left to train on when it is drawn for testing",
                hint="add images of that class, or remove it",
                field="dataset",
            )
        count = min(max(round(share * len(names)), 1), len(names) - 1)
        # numpy guarantees the stream of RandomState in every version.
        order = np.random.RandomState(0).permutation(len(names))
        ordered = sorted(names)
        moved |= {ordered[number]: Place("test", label) for number in order[:count]}
    return moved
