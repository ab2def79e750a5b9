"""ImageFolder data: `train/<class>/<image>` and `test/<class>/<image>`, in a folder or in a zip or tar archive.

`core.data.class_folders` tells parts and classes, `core.data.image_decoding` how a picture is seen. All images must
have the same size. Classes are numbered in alphabetical order. An image that cannot be used raises an error, unless the
caller asks to leave such images out; then the most frequent size is the right one. Other files are counted, and kept
with the reason why they are not read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from core.data.class_folders import Layout, Place, find_layout, name_classes
from core.data.file_tree import Entry, FileTree, open_tree
from core.data.image_decoding import HEAD, Decoded, Unusable, decode, is_image, read_size
from core.data.parts import Parts
from core.data.safe_zip import Caps, show
from core.data.split import Split
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName

_LARGEST_FILE = 64 * 2**20
# Files of the operator, as opposed to uploads, are not limited in size.
_OF_THE_OPERATOR = Caps(total_bytes=2**40)

LeaveOut = Callable[[str, str], None]
"""Called with the name of an image that is left out, and the reason."""


class Found(NamedTuple):
    """An image."""

    place: Place
    """Its part and class."""
    name: str
    """Its path."""
    pixels: np.ndarray
    """(height, width) grey or (height, width, 3) colour, uint8."""


def load(path: Path, *, leave_out: LeaveOut | None = None, needed: Sequence[PartName] = ("train", "test")) -> Parts:
    """Load the parts of a data set and its class names.

    leave_out: called with each image that cannot be used, which is then left out; by default the first such image
    raises an error. needed: the parts that it must have. Raises BadDataset, which names the file.
    """
    survey = Survey()
    folder = ImageFolder(path, survey, leave_out=leave_out, needed=needed)
    images: dict[Place, list[tuple[str, np.ndarray]]] = {}
    for found in folder.images():
        images.setdefault(found.place, []).append((found.name, found.pixels))
    classes = name_classes(folder.layout, survey.counts, path.name, needed=needed)
    in_colour = any(pixels.ndim == 3 for group in images.values() for _, pixels in group)
    parts = {
        part: _stack(images, part, classes, in_colour=in_colour)
        for part in folder.layout.labels
        if any(place.part == part for place in images)
    }
    return Parts(parts["train"], classes, parts.get("test"), parts.get("held_out"), survey)


@dataclass
class ImageFolder:
    """The images of a folder or archive, read one after the other.

    survey: counts what is found and what is not read. leave_out, needed: as in `load`. caps: limits of a zip archive.
    Raises BadDataset, also when it is made.
    """

    path: Path
    survey: Survey
    leave_out: LeaveOut | None = None
    caps: Caps = _OF_THE_OPERATOR
    needed: Sequence[PartName] = ("train", "test")
    layout: Layout = field(init=False)
    _places: dict[str, Place] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._tree: FileTree = open_tree(self.path, self.caps)
        entries = list(self._tree.entries())
        files = [entry for entry in entries if not entry.is_folder]
        self.layout = find_layout(
            (entry.name for entry in files),
            (entry.name for entry in entries if entry.is_folder),
            self.path.name,
            needed=self.needed,
        )
        for entry in files:
            place = self.layout.place(entry.name)
            if isinstance(place, str):
                self.survey.add_unread(entry.name, place)
            elif entry.reason:
                self.survey.add_unread(entry.name, entry.reason)
            else:
                self._places[entry.name] = place

    def images(self) -> Iterator[Found]:
        """Yield the images of all parts, in the order of the files. Raises BadDataset."""
        unlike = {} if self.leave_out is None else self._unlike_most()
        first: Found | None = None
        for name, content in self._contents():
            place = self._places[name]
            if content is not None and not is_image(name, content[:HEAD]):
                self.survey.add_unread(name, "it is not an image")
                continue
            try:
                if reason := unlike.get(name):
                    raise Unusable(reason)
                if content is None:
                    raise Unusable(f"it is larger than {_LARGEST_FILE // 2**20} MiB")
                decoded = decode(content)
            except Unusable as reason:
                self._refuse(name, reason)
                continue
            found = Found(place, name, np.asarray(decoded.image))
            first = first or found
            if found.pixels.shape[:2] != first.pixels.shape[:2]:
                raise self._of_another_size(first, found)
            self._add(found, decoded)
            yield found

    def _contents(self) -> Iterator[tuple[str, bytes | None]]:
        """Yield the files of the classes with their content; None for the content of one that is too large."""
        too_large: list[str] = []

        def is_wanted(entry: Entry) -> bool:
            if entry.name in self._places and entry.size > _LARGEST_FILE:
                too_large.append(entry.name)
                return False
            return entry.name in self._places

        for entry, content in self._tree.read(is_wanted):
            yield entry.name, content
        yield from ((name, None) for name in too_large)

    def _unlike_most(self) -> dict[str, str]:
        """Find the images that do not have the most frequent size, from their headers, with the reason for each."""
        sizes: dict[str, tuple[int, int]] = {}
        for name, content in self._contents():
            if content is not None and is_image(name, content[:HEAD]):
                try:
                    sizes[name] = read_size(content)
                except Unusable:
                    continue
        if not sizes:
            return {}
        # Of two equally frequent sizes, the smaller: the result must not depend on the order of the files.
        counts = Counter(sizes.values())
        usual = min(counts, key=lambda size: (-counts[size], size))
        reason = f"it is not {usual[0]} x {usual[1]}, the most frequent size of the images"
        return {name: reason for name, size in sizes.items() if size != usual}

    def _add(self, found: Found, decoded: Decoded) -> None:
        self.survey.add(found.place, found.name, found.pixels, is_transparent=decoded.is_transparent)

    def _refuse(self, name: str, reason: Unusable) -> None:
        if self.leave_out is None:
            raise BadDataset(
                f"cannot read {show(name)}: {reason}",
                hint="replace or remove this file, or leave out such images with --leave-out-unusable",
                field="dataset",
            ) from reason.__cause__
        self.survey.refused += 1
        self.leave_out(name, str(reason))

    def _of_another_size(self, first: Found, found: Found) -> BadDataset:
        sizes = [f"{width} x {height}" for height, width in (first.pixels.shape[:2], found.pixels.shape[:2])]
        streamed = ", or set --dataset imagenet to crop them to 224 x 224" if self.path.is_dir() else ""
        return BadDataset(
            f"images differ in size: {show(first.name)} is {sizes[0]}, {show(found.name)} is {sizes[1]}",
            hint=f"resize all images to one size, or leave out those of another size with --leave-out-unusable"
            f"{streamed}",
            field="dataset",
        )


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
