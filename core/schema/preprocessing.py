"""The preprocessing of a data set: the size that images are brought to, and how."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Literal

from pydantic import Field, StrictInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from core.schema.record import Record

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["crop", "pad", "stretch"]

STANDARD_SIZES = (32, 64, 96, 128, 160, 224)
"""The image sizes that are proposed: those that networks of the field are made for."""


class Preprocessing(Record):
    """How images are brought to one size, after they are turned upright and put on white."""

    image_size: StrictInt | None = Field(default=None, ge=8, le=1024, examples=[64])
    """Height and width of the images that the model gets. Null for images as they are, which must all have one size."""
    resize: Resize = "crop"
    """crop: the shorter side is resized to `shorter_side`, and the central square is cut out. pad: the longer side is
    resized to image_size, and black borders make the image square. stretch: each side is resized to image_size, which
    changes the shape of what the image shows. With crop, the augmentation resized-crop-flip takes its boxes from the
    whole image."""
    shorter_side: StrictInt | None = Field(default=None, ge=8, le=2048)
    """With crop, the pixels that the shorter side is resized to before the centre is cut out, as 256 for 224; null for
    image_size."""
    interpolation: Interpolation = "bilinear"
    """The filter that resizes images, with antialiasing: choose what the base model was trained with. The random boxes
    of resized-crop-flip are always bilinear."""

    @field_validator("shorter_side")
    @classmethod
    def _check_shorter_side(cls, pixels: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("image_size")
        if pixels is None or "image_size" not in info.data:
            return pixels
        if size is None or info.data.get("resize") in ("pad", "stretch"):
            raise PydanticCustomError(
                "shorter_side_unused", "shorter_side needs an image_size, and resize crop: leave it out, or set these"
            )
        if pixels < size:
            raise PydanticCustomError(
                "shorter_side_too_small", "must be at least image_size, which is {size}", {"size": size}
            )
        return pixels

    def reshape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape (channels, height, width) of images that had another one before."""
        return shape if self.image_size is None else (shape[0], self.image_size, self.image_size)

    def describe(self) -> str:
        """Describe it in a few words."""
        if self.image_size is None:
            return "as they are"
        how = {
            "crop": f"shorter side to {self.shorter_side or self.image_size}, then the centre",
            "pad": "longer side to that, with black borders",
            "stretch": "stretched",
        }[self.resize]
        return f"{self.image_size} x {self.image_size} ({how}, {self.interpolation})"


def propose(sizes: Mapping[tuple[int, int], int]) -> Preprocessing:
    """Propose the preprocessing of images that differ in size: the standard size nearest to the median shorter side.

    sizes: the number of images by width and height; not empty.
    """
    median = _median(_shorter_sides(sizes))
    # By ratio: from 45 it is as far to 64 as to 32. Of two that are equally near, the smaller.
    return Preprocessing(image_size=min(STANDARD_SIZES, key=lambda size: (abs(log(size / median)), size)))


def as_options(preprocessing: Preprocessing) -> str:
    """Write it as options of a command line, without what is so by default."""
    given = preprocessing.model_dump(exclude_defaults=True)
    return " ".join(f"--preprocessing.{name.replace('_', '-')} {value}" for name, value in given.items())


class SizeBin(Record):
    """A bin of the histogram of image sizes."""

    at_least: int
    """The smallest shorter side in it, in pixels."""
    below: int | None
    """The shorter side from which on images are in the next bin; null for none."""
    images: int
    """Number of images."""


class Sizes(Record):
    """The sizes of images as they are in their files."""

    smallest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    largest: tuple[int, int]
    """Width and height of the image with the most pixels."""
    median: int
    """The median of the shorter sides, in pixels."""
    different: int
    """Number of different sizes."""
    histogram: tuple[SizeBin, ...]
    """Number of images by the shorter side; bins without images are left out."""

    @classmethod
    def of(cls, sizes: Mapping[tuple[int, int], int]) -> "Sizes":
        """Summarise the number of images by width and height; not empty."""
        area = {size: (size[0] * size[1], size) for size in sizes}
        sides = _shorter_sides(sizes)
        return cls(
            smallest=min(sizes, key=area.__getitem__),
            largest=max(sizes, key=area.__getitem__),
            median=_median(sides),
            different=len(sizes),
            histogram=tuple(_histogram(sides)),
        )


def _histogram(sides: Mapping[int, int]) -> Sequence[SizeBin]:
    edges = [1, *STANDARD_SIZES, 448, 896]
    bins = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        count = sum(number for side, number in sides.items() if side >= low and (high is None or side < high))
        if count:
            bins.append(SizeBin(at_least=low, below=high, images=count))
    return bins


def _shorter_sides(sizes: Mapping[tuple[int, int], int]) -> Counter[int]:
    sides: Counter[int] = Counter()
    for size, count in sizes.items():
        sides[min(size)] += count
    return sides


def _median(sides: Mapping[int, int]) -> int:
    half, seen = (sum(sides.values()) + 1) // 2, 0
    for side in sorted(sides):
        seen += sides[side]
        if seen >= half:
            return side
    raise ValueError("there are no images")


def merge(usual: Mapping[str, Any], given: Any) -> Any:
    """Fill in what an object leaves out of a preprocessing; what is no object stays as it is, to be refused."""
    if given is None:
        return dict(usual)
    if not isinstance(given, Mapping):
        return given
    # The usual shorter side belongs to the usual size.
    other_size = not given.keys().isdisjoint({"image_size", "resize"})
    return {**{name: value for name, value in usual.items() if name != "shorter_side" or not other_size}, **given}
