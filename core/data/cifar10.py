"""CIFAR-10 (Krizhevsky 2009) through torchvision, which fetches it once and checks it."""

from pathlib import Path

import torch

from core.data.split import Split
from core.errors import BadDataset

_DEFAULT_FOLDER = Path("~/.cache/temper/cifar10")


def load(folder: Path | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Load the training part, the test part and the class names. Raises BadDataset when it cannot be had."""
    from torchvision.datasets import CIFAR10  # slow to import, and only needed here

    folder = (folder or _DEFAULT_FOLDER).expanduser()
    try:
        train, test = (CIFAR10(str(folder), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise BadDataset(
            f"cannot fetch CIFAR-10 into {folder}: {error}",
            hint="give this machine access to the internet once, or unpack cifar-10-python.tar.gz there",
            field="dataset",
        ) from error
    return _split(train), _split(test), tuple(train.classes)


def _split(part) -> Split:  # type: ignore[no-untyped-def]  # torchvision's class, imported late
    pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor(part.targets))
