"""scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 scans of 8 x 8 pixels with 17 grey levels."""

import numpy as np
import torch

from core.data.split import Split

_TEST_EXAMPLES = 500


def load() -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part (500 images) and the class names; the split is fixed."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    # numpy guarantees the stream of RandomState in every version.
    order = np.random.RandomState(0).permutation(len(digits.target))
    pixels = torch.from_numpy(digits.images[order].astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    whole = Split(pixels, labels, white=16)
    everything = torch.arange(len(whole))
    names = tuple(str(digit) for digit in range(10))
    return whole.pick(everything[_TEST_EXAMPLES:]), whole.first(_TEST_EXAMPLES), names
