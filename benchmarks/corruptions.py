"""Compare our common corruptions with imagecorruptions 1.1.2, which has ImageNet's severities, on the same images.

    pip install "numpy<2" "scikit-image<0.26" "scipy<1.13" "setuptools<81" opencv-python-headless
    pip install --no-deps imagecorruptions==1.1.2          in an environment of its own: it is of 2020
    python -m benchmarks.corruptions

Made images of 224 x 224, in grey levels of 255; both rounded down to bytes, as the official files are. Where the result
is not random, or only an angle is, which both are given: the largest and the mean difference of a pixel. Where it is
random: mean and standard deviation of the difference from the clean image, ours and theirs.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.threats.corruptions import NAMES, SEVERITIES, corrupt
from core.threats.random_numbers import PointNumbers

RESULTS = Path(__file__).parent / "results" / "corruptions.md"
_SIDE = 224
_SEED = 0
_RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "snow", "frost", "fog", "elastic_transform"),
    *("speckle_noise", "spatter"),
}
_NOTES = {
    "defocus_blur": "its kernels of radius 8 and 10 sum to more than 1",
    "elastic_transform": "other constants, and no affine map",
    "frost": "photographs there, made textures here",
    "spatter": "a simpler relief of water here",
}


def scenes(images: int) -> Tensor:
    """Make images (images, 3, 224, 224) of bytes: smooth areas, edges, and fine texture."""
    generator = torch.Generator().manual_seed(_SEED)
    size = (_SIDE, _SIDE)
    smooth, patches, fine = (
        F.interpolate(torch.rand(images, 3, cells, cells, generator=generator), size, mode=mode)
        for cells, mode in ((5, "bicubic"), (9, "nearest"), (112, "bilinear"))
    )
    return ((0.5 * smooth + 0.35 * patches + 0.15 * fine).clamp(0, 1) * 255).round() / 255


def _adapted() -> Any:
    """Import imagecorruptions, and give it the names that NumPy and scikit-image had in 2020."""
    from imagecorruptions import corruptions as theirs
    from skimage.filters import gaussian

    def gaussian_of_2020(image: np.ndarray, *given: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
        return gaussian(image, *given, channel_axis=-1 if multichannel else None, **options)

    theirs.gaussian = gaussian_of_2020
    if not hasattr(np, "float_"):
        np.float_ = np.float64
    return theirs


@contextmanager
def _angle(name: str, image: Tensor) -> Iterator[None]:
    """Let imagecorruptions blur along the angle that ours does."""
    if name != "motion_blur":
        yield
        return
    angle = 90 * float(PointNumbers(_SEED, image[None]).uniform(0, 1)) - 45
    with patch("numpy.random.uniform", return_value=angle):
        yield


def _theirs(module: Any, images: Tensor, name: str, severity: int) -> Tensor:
    from PIL import Image

    corrupted = []
    for image in images:
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        with _angle(name, image):
            pixels = np.uint8(getattr(module, name)(picture, severity))
        corrupted.append(torch.from_numpy(pixels).permute(2, 0, 1))
    return torch.stack(corrupted).double()


def _ours(images: Tensor, name: str, severity: int) -> Tensor:
    return (corrupt(images, name, severity, seed=_SEED).double() * 255 + 1e-3).floor()


def table(images: Tensor) -> Iterator[str]:
    """Yield the lines of the report."""
    module, clean = _adapted(), (images * 255).double()
    np.random.seed(_SEED)
    same, random = [], []
    for name in NAMES:
        for severity in SEVERITIES:
            ours, theirs = _ours(images, name, severity), _theirs(module, images, name, severity)
            start, note = f"| {name} | {severity}", _NOTES.get(name, "")
            if name in _RANDOM:
                columns = (corrupted - clean for corrupted in (ours, theirs))
                found = " | ".join(f"{column.mean():.1f} | {column.std():.1f}" for column in columns)
                random.append(f"{start} | {found} | {note} |")
            else:
                difference = (ours - theirs).abs()
                same.append(f"{start} | {difference.max():.0f} | {difference.mean():.2f} | {note} |")
    yield from ["", "| corruption | severity | largest difference | mean | note |", "|---|---|---|---|---|", *same]
    yield from [
        "",
        "| corruption | severity | ours: mean | std | theirs: mean | std | note |",
        "|---|---|---|---|---|---|---|",
    ]
    yield from random


def main() -> None:
    """Print the tables, and write them to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = [
        "# Common corruptions, ours and imagecorruptions 1.1.2",
        "",
        f"`python -m benchmarks.corruptions`: {arguments.images} made images of 224 x 224, ImageNet's severities,",
        "in grey levels of 255. The script says how.",
    ]
    for line in table(scenes(arguments.images)):
        lines.append(line)
        print(line, flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
