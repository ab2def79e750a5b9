"""The images of a data set of one's own: decoded, brought to one size, counted, and read into memory or streamed.

`core.data.sources` tells where they come from, `core.data.image_decoding` how a picture is seen,
`core.data.preprocessing` how it gets its size. Without an image size all images must have the same one. An image that
cannot be used raises an error, unless the caller asks to leave such images out; then the most frequent size is the
right one. A set that does not fit the memory is streamed from its files.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from core.data import streamed
from core.data.class_folders import Place, name_classes
from core.data.image_decoding import Decoded, Unusable, decode, decode_pixels, read_size
from core.data.image_folder import ImageFolder
from core.data.image_source import ImageSource, Item
from core.data.left_out import MOST_LEFT_OUT
from core.data.memory import available_memory, fits_memory
from core.data.parts import Parts
from core.data.preprocessing import preprocess
from core.data.safe_zip import show
from core.data.sources import open_source
from core.data.split import Split
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName
from core.schema.preprocessing import Preprocessing, Sizes, as_options, propose

MOST_OF_ANOTHER_SIZE = 0.2
"""The share of images that may be left out since they have another size than the others; a set with more of them needs
an image size."""

LeaveOut = Callable[[str, str], None]
"""Called with the name of an image that is left out, and the reason."""


class Found(NamedTuple):
    """An image."""

    place: Place
    """Its part and class."""
    name: str
    """Its path, or its part and row."""
    pixels: np.ndarray
    """(height, width) grey or (height, width, 3) colour, uint8."""


def load(
    path: Path,
    *,
    preprocessing: Preprocessing | None = None,
    test_share: float | None = None,
    leave_out: LeaveOut | None = None,
    needed: Sequence[PartName] = ("train", "test"),
    workers: int | None = None,
    most_left_out: float = MOST_LEFT_OUT,
) -> Parts:
    """Load the parts of a data set and its class names.

    preprocessing: how images get their size; by default they are taken as they are. test_share: the share of each class
    that is drawn as the test part; None for a set that has one. leave_out: called with each image that cannot be used,
    which is then left out; by default the first such image raises an error. needed: the parts that it must have.
    workers, most_left_out: of a streamed set, as in `streamed.load`. Raises BadDataset, which names the file.
    """
    how = preprocessing or Preprocessing()
    survey = Survey()
    source = open_source(path, survey, needed=needed, test_share=test_share)
    reader = ImageReader(source, survey, how, leave_out=leave_out)
    if not fits_memory(size := reader.decoded_bytes()):
        return _stream(source, survey, how, size, path, workers=workers, most_left_out=most_left_out, needed=needed)
    images: dict[Place, list[tuple[str, np.ndarray]]] = {}
    for found in reader.images():
        images.setdefault(found.place, []).append((found.name, found.pixels))
    classes = name_classes(source.layout, survey.counts, path.name, needed=needed)
    in_colour = any(pixels.ndim == 3 for group in images.values() for _, pixels in group)
    parts = {
        part: _stack(images, part, classes, in_colour=in_colour)
        for part in source.layout.labels
        if any(place.part == part for place in images)
    }
    return Parts(parts["train"], classes, parts.get("test"), parts.get("held_out"), survey)


def look_at_shape(path: Path, preprocessing: Preprocessing, test_share: float | None) -> tuple[int, ...] | None:
    """Return the shape (channels, height, width) of the first image of a set that can be read; None where none can.

    preprocessing, test_share: as in `load`.
    """
    try:
        source = open_source(path, Survey(), needed=("train",), test_share=test_share)
        for item in source.items():
            with suppress(Unusable):
                image = _decode(item).image
                return preprocessing.reshape((1 if image.mode == "L" else 3, image.height, image.width))
    except BadDataset:
        pass
    return None


def _stream(
    source: ImageSource,
    survey: Survey,
    preprocessing: Preprocessing,
    size: int,
    path: Path,
    *,
    workers: int | None,
    most_left_out: float,
    needed: Sequence[PartName],
) -> Parts:
    if isinstance(source, ImageFolder):
        return streamed.load(
            source,
            survey,
            preprocessing=preprocessing,
            workers=workers,
            most_left_out=most_left_out,
            needed=needed,
        )
    raise BadDataset(
        f"the images of {show(path.name)} take {size / 2**30:.3g} GiB, and reading them several times that, but "
        f"{available_memory() / 2**30:.3g} GiB of memory are free",
        hint="store them as files in class folders, which are streamed, or give a smaller image_size",
        field="dataset",
    )


@dataclass
class ImageReader:
    """The images of a source, read one after the other.

    survey: counts what is found. preprocessing, leave_out: as in `load`.
    """

    source: ImageSource
    survey: Survey
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    leave_out: LeaveOut | None = None
    sizes: Counter[tuple[int, int]] = field(init=False, default_factory=Counter)
    """Number of images by width and height, as they are in their files."""

    def decoded_bytes(self) -> int:
        """Estimate the bytes of all pixels by the size of the first image."""
        size = self.preprocessing.image_size
        pixels = size * size if size else next((width * height for width, height in self._read_sizes()), 0)
        return 3 * len(self.source) * pixels

    def images(self) -> Iterator[Found]:
        """Yield the images of all parts, in the order of the source. Raises BadDataset."""
        usual = self._find_usual_size() if self.leave_out and self.preprocessing.image_size is None else None
        first: tuple[str, tuple[int, int]] | None = None
        for item in self.source.items():
            try:
                decoded = _decode(item)
                if usual and decoded.image.size != usual:
                    raise Unusable(f"it is not {usual[0]} x {usual[1]}, the most frequent size of the images")
            except Unusable as reason:
                self._refuse(item.name, reason)
                continue
            if usual is None:
                self.sizes[decoded.image.size] += 1
            first = first or (item.name, decoded.image.size)
            if self.preprocessing.image_size is None and decoded.image.size != first[1]:
                raise self._of_another_size(first, (item.name, decoded.image.size))
            pixels = np.asarray(preprocess(decoded.image, self.preprocessing))
            self.survey.add(item.place, item.name, pixels, is_transparent=decoded.is_transparent)
            yield Found(item.place, item.name, pixels)

    def _read_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield width and height of each image that has them, from its header."""
        for item in self.source.items():
            try:
                yield _size_of(item)
            except Unusable:
                continue

    def _find_usual_size(self) -> tuple[int, int] | None:
        """Find the most frequent size. Raises BadDataset where too many images have another one."""
        self.sizes.update(self._read_sizes())
        if not self.sizes:
            return None
        # Of two equally frequent sizes, the smaller: the result must not depend on the order of the files.
        usual = min(self.sizes, key=lambda size: (-self.sizes[size], size))
        others = self.sizes.total() - self.sizes[usual]
        if others > MOST_OF_ANOTHER_SIZE * self.sizes.total():
            found = Sizes.of(self.sizes)
            smallest, largest = (" x ".join(map(str, size)) for size in (found.smallest, found.largest))
            raise BadDataset(
                f"images differ in size: {others:,} of {self.sizes.total():,} are not {usual[0]} x {usual[1]}, the "
                f"most frequent size; they are from {smallest} to {largest}",
                hint=f"{_remedy(self.sizes)}; or resize them to one size yourself",
                field="dataset",
            )
        return usual

    def _refuse(self, name: str, reason: Unusable) -> None:
        if self.leave_out is None:
            raise BadDataset(
                f"cannot read {show(name)}: {reason}",
                hint="replace or remove this file, or leave out such images with --leave-out-unusable",
                field="dataset",
            ) from reason.__cause__
        self.survey.refused += 1
        self.leave_out(name, str(reason))

    def _of_another_size(self, first: tuple[str, tuple[int, int]], other: tuple[str, tuple[int, int]]) -> BadDataset:
        sizes = [f"{width} x {height}" for _, (width, height) in (first, other)]
        return BadDataset(
            f"images differ in size: {show(first[0])} is {sizes[0]}, {show(other[0])} is {sizes[1]}",
            hint=f"{_remedy(Counter(self._read_sizes()))}; or leave out those of another size with "
            "--leave-out-unusable",
            field="dataset",
        )


def _remedy(sizes: Counter[tuple[int, int]]) -> str:
    """Say which preprocessing brings images to one size."""
    options = as_options(propose(sizes))
    return f"bring all to one size with {options} (the shorter sides have a median of {Sizes.of(sizes).median} pixels)"


def _decode(item: Item) -> Decoded:
    """Decode an image of a source. Raises Unusable."""
    match item.content:
        case str():
            raise Unusable(item.content)
        case bytes():
            return decode(item.content)
        case pixels:
            return decode_pixels(pixels)


def _size_of(item: Item) -> tuple[int, int]:
    match item.content:
        case str():
            raise Unusable(item.content)
        case bytes():
            return read_size(item.content)
        case pixels:
            return pixels.shape[1], pixels.shape[0]


def _stack(
    images: dict[Place, list[tuple[str, np.ndarray]]], part: PartName, classes: tuple[str, ...], *, in_colour: bool
) -> Split:
    """Stack the images of a part, in a fixed order that mixes the classes."""
    pairs = [
        (pixels, label)
        for label, class_name in enumerate(classes)
        for _, pixels in sorted(images.get(Place(part, class_name), ()), key=lambda pair: pair[0])
    ]
    stacked = np.stack([_channels(pixels, in_colour=in_colour) for pixels, _ in pairs])
    order = np.random.RandomState(0).permutation(len(pairs))
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return Split(torch.from_numpy(np.ascontiguousarray(stacked[order])), torch.from_numpy(labels[order]))


def _channels(pixels: np.ndarray, *, in_colour: bool) -> np.ndarray:
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1)
    return np.repeat(pixels[None], 3, axis=0) if in_colour else pixels[None]
