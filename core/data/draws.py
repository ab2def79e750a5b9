"""The images that a run uses where it does not use all: the first test points, training images, held-out images.

Uniform draws are those of the papers: at random, and the first test points in the data set's order. In stratified draws
each class has its share, to within an image, and every class keeps a training image.
"""

import torch
from torch import Tensor

from core.data.labelled_images import LabelledImages
from core.data.split import Split
from core.schema.errors import BadInput
from core.schema.spec import Draw, count_held_out


def read_test_points(part: LabelledImages, examples: int, draw: Draw) -> Split:
    """Read the first test points: this many, or all where there are fewer. Those that cannot be read are left out."""
    order = order_test_points(part, draw)
    found, end = part.read(order[:examples]), examples
    while (missing := examples - len(found)) > 0 and end < len(order):
        found, end = found.concat(part.read(order[end : end + missing])), end + missing
    return found


def order_test_points(part: LabelledImages, draw: Draw) -> Tensor:
    """Return the order (examples,) in which test points are taken."""
    order = torch.arange(len(part))
    return _by_class(part.labels.cpu(), order) if draw == "stratified" else order


def draw_training_images(labels: Tensor, examples: int, draw: Draw, generator: torch.Generator) -> Tensor:
    """Draw the indices (examples,) of training images. labels: (n,), n > examples. Raises BadInput."""
    order = torch.randperm(len(labels), generator=generator)
    if draw == "uniform":
        return order[:examples]
    classes = len(labels.unique())
    if examples < classes:
        raise BadInput(
            f"{examples} training images are fewer than the {classes} classes: a class would have none",
            hint=f"set train_examples to {classes} or more, or split to uniform",
            field="train_examples",
        )
    return _by_class(labels, order, keep="first")[:examples]


def draw_held_out_images(
    labels: Tensor, examples: int, draw: Draw, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Divide the training images into those that train and those that are held out: the indices of each, ascending.

    labels: (n,). Raises BadInput where the held-out images would leave nothing, or a class, without training.
    """
    order = torch.randperm(len(labels), generator=generator)
    most = len(labels) - 1
    if draw == "stratified":
        order = _by_class(labels, order, keep="last")
        most = len(labels) - len(labels.unique())
    if examples > most:
        left = "none" if examples >= len(labels) else "a class without images"
        raise BadInput(
            f"{examples} of {len(labels)} training images held out leave {left} to train on",
            hint=f"set held_out to {min(count_held_out(len(labels)), most)}, or to 0 for none",
            field="held_out",
        )
    return order[examples:].sort().values, order[:examples].sort().values


def _by_class(labels: Tensor, order: Tensor, *, keep: str = "") -> Tensor:
    """Reorder examples so that in every prefix each class has its share, to within an image.

    labels: (n,). order: (n,) a permutation, which decides among the examples of a class. keep: "first" to begin with
    one example of each class, "last" to end with one of each.
    """
    _, classes, counts = labels[order].unique(return_inverse=True, return_counts=True)
    position = torch.empty(len(order), dtype=torch.float64)
    for number, count in enumerate(counts.tolist()):
        within = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if keep == "first":
            within[0] = -1
        elif keep == "last":
            within[-1] = 2
        position[classes == number] = within
    return order[position.argsort(stable=True)]
