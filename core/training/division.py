"""Division of a run's training images into those that train and those that are held out for monitoring."""

import torch

from core.data import Dataset
from core.data.labelled_images import LabelledImages
from core.data.split import Split
from core.schema.errors import BadInput
from core.schema.spec import TrainingSpec, count_held_out
from core.training.random_streams import stream


def divide(spec: TrainingSpec, dataset: Dataset) -> tuple[LabelledImages, Split]:
    """Return the images that train and those that are held out, chosen by the spec's seed.

    Raises BadInput when none would train.
    """
    part = dataset.train
    if spec.train_examples is not None and spec.train_examples < len(part):
        part = part.pick(_shuffle(spec, "subset", len(part))[: spec.train_examples])
    held_out = count_held_out(len(part)) if spec.held_out is None else spec.held_out
    if held_out >= len(part):
        raise BadInput(
            f"{held_out} of {len(part)} training images held out leave none to train on",
            hint=f"set held_out to {count_held_out(len(part))}, or to 0 for none",
            field="held_out",
        )
    order = _shuffle(spec, "held-out", len(part))
    kept = part.pick(order[held_out:].sort().values) if held_out else part
    return kept, part.read(order[:held_out].sort().values)


def _shuffle(spec: TrainingSpec, purpose: str, images: int) -> torch.Tensor:
    return torch.randperm(images, generator=stream(spec.seed, purpose))
