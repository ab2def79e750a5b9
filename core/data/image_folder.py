"""Image files in class folders: `train/<class>/<image>` and `test/<class>/<image>`, in a folder, zip or tar archive.

`core.data.class_folders` tells parts and classes. Classes are numbered in alphabetical order, or as a file with their
names says where the class folders are numbers. Other files are counted, and kept with the reason why they are not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.data.class_folders import Layout, Place, find_layout
from core.data.class_names import find_names_file, read_names
from core.data.drawn_test import draw_test_part
from core.data.file_tree import Entry, FileTree
from core.data.image_decoding import HEAD, is_image
from core.data.image_source import Item
from core.data.survey import Survey
from core.schema.inspection_report import DatasetFormat, PartName

_LARGEST_FILE = 64 * 2**20


class ImageFolder:
    """The images of class folders; implements `core.data.image_source.ImageSource`.

    Raises BadDataset, also when it is made.
    """

    format: DatasetFormat = "class folders"

    def __init__(
        self,
        path: Path,
        tree: FileTree,
        entries: Sequence[Entry],
        survey: Survey,
        *,
        needed: Sequence[PartName] = ("train", "test"),
        test_share: float | None = None,
    ) -> None:
        """Path: of the folder or archive, which `tree` reads. entries: all of it. survey: counts what is not read."""
        self.path = path
        self._tree, self._survey = tree, survey
        files = [entry for entry in entries if not entry.is_folder]
        layout = find_layout(
            (entry.name for entry in files),
            (entry.name for entry in entries if entry.is_folder),
            path.name,
            needed=needed,
            draws_test=test_share is not None,
        )
        layout = _named(layout, tree, files)
        places: dict[str, Place] = {}
        for entry in files:
            place = layout.place(entry.name)
            if entry.name == layout.names_file:
                continue
            if isinstance(place, str):
                survey.add_unread(entry.name, place)
            elif entry.reason:
                survey.add_unread(entry.name, entry.reason)
            else:
                places[entry.name] = place
        if test_share is not None:
            places = draw_test_part(places, test_share)
            layout = layout.with_drawn_test()
        self.layout = layout
        self.places: Mapping[str, Place] = places
        """The part and the class of each file that may be an image."""

    def __len__(self) -> int:
        return len(self.places)

    def items(self) -> Iterator[Item]:
        """Yield the images of all parts, in the order of the files."""
        too_large: list[str] = []

        def is_wanted(entry: Entry) -> bool:
            if entry.name in self.places and entry.size > _LARGEST_FILE:
                too_large.append(entry.name)
                return False
            return entry.name in self.places

        for entry, content in self._tree.read(is_wanted):
            if is_image(entry.name, content[:HEAD]):
                yield Item(entry.name, self.places[entry.name], content)
            else:
                self._survey.add_unread(entry.name, "it is not an image")
        for name in too_large:
            yield Item(name, self.places[name], f"it is larger than {_LARGEST_FILE // 2**20} MiB")


def _named(layout: Layout, tree: FileTree, files: Sequence[Entry]) -> Layout:
    """Name the classes by a file beside the parts, where all class folders are numbers."""
    if not all(label.isdecimal() for labels in layout.labels.values() for label in labels):
        return layout
    inner = f"{layout.root}/" if layout.root else ""
    beside = [entry for entry in files if entry.name.startswith(inner) and "/" not in entry.name[len(inner) :]]
    file = find_names_file(beside)
    for entry, content in tree.read(lambda entry: entry.name == file) if file else ():
        layout = layout.with_names(read_names(entry.name, content), entry.name)
    return layout
