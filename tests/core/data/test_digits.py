"""The digits, which come with the library."""

import torch

from core import data
from core.data import Dataset
from core.schema.catalog import DATASETS


def test_digits_are_split_once_and_for_all(digits: Dataset) -> None:
    entry = DATASETS["digits"]
    assert (len(digits.train), len(digits.test)) == (entry.train_examples, entry.test_examples)
    assert digits.shape == entry.shape
    assert len(digits.classes) == entry.classes
    assert digits.sha256() == data.load("digits").sha256()
    assert digits.sha256() == "8a259e11a6737ad2105d0056c6e25f90bd34fd079587182c604a17d5f02bbef9"
    everything = torch.cat([digits.train.pixels, digits.test.pixels]).flatten(1)
    assert len(everything) == 1797
    assert digits.test.labels.bincount().min() >= 40


def test_images_span_zero_to_one(digits: Dataset) -> None:
    images = digits.train.images()
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
