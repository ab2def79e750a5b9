"""The layout of a data set of files: which folder is its root, which are its parts, and to which class a file belongs.

The layout is found from names alone. A data set is a folder with `train/<class>/<image>` and `test/<class>/<image>`;
its root may lie in wrapping folders of any name. Where there is a `val/` beside `test/`, it is the held-out part; alone
it is the test part. Where a test part is to be drawn, the class folders may also lie in no part at all. Images deeper
than the class folder belong to the class. Names are compared without case; `core.data.file_tree` composes their
accents. Whatever could be read in two ways is refused by name.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from core.data.safe_zip import show
from core.schema.dataset_spec import USUAL_TEST_SHARE
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName

PART_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
"""Folder name in small letters -> what it holds; `val` is the held-out part or the test part."""

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
"""The suffixes of image files. The content decides; a file with another suffix may be an image too."""

HIDDEN = "it is hidden, or a file of the operating system"
"""The reason for files that are not read and need no warning."""

FORMATS_IN_WORDS = "JPEG, PNG, WebP, BMP, TIFF or GIF"

DRAW_TEST = (
    f"have {USUAL_TEST_SHARE:.0%} of each class drawn for testing with --test-share {USUAL_TEST_SHARE} (test_share in "
    "a spec)"
)
"""The remedy for a data set without a test part."""

_MAC = "__MACOSX"
_LEFT_BY_WINDOWS = ("/Thumbs.db", "/desktop.ini")
_DEEPEST = 12
"""Folders below which no part is looked for."""
_SHOWN = 4
"""Folders that an error names at most."""


class Place(NamedTuple):
    """The part and the class that a file belongs to."""

    part: PartName
    label: str


@dataclass
class _Part:
    """A folder of a part, and its class folders."""

    folders: set[str] = field(default_factory=set)
    """Its names as they are written; more than one is ambiguous."""
    classes: dict[str, set[str]] = field(default_factory=dict)
    """Folded name -> the names of the class folders as they are written."""
    has_images: bool = False
    """Whether files with the suffix of an image lie below it."""


@dataclass(frozen=True)
class Layout:
    """The root, the parts and the classes of a data set."""

    root: str
    """The folder that holds the parts, relative to the data set's path; empty for the path itself."""
    folders: Mapping[PartName, str]
    """The folder of each part, relative to the root."""
    labels: Mapping[PartName, Sequence[str]]
    """The classes of each part, those of empty folders included."""
    order: tuple[str, ...] = ()
    """The classes in the order of their labels, where labels are numbers; empty where that order is alphabetical."""
    names_file: str | None = None
    """The file or array with the names of the classes, where labels are numbers that it names."""
    _parts: Mapping[str, PartName] = field(default_factory=dict)
    _labels: Mapping[str, str] = field(default_factory=dict)
    """Folded name -> name of the class."""
    _is_flat: bool = False
    """Whether the class folders lie directly in the root."""

    def place(self, name: str) -> Place | str:
        """Return the place of a file by its path, or the reason why it belongs to no class."""
        if "/." in f"/{name}" or f"/{_MAC}/" in f"/{name}" or name.endswith(_LEFT_BY_WINDOWS):
            return HIDDEN
        folders = name.split("/")
        inner = folders[self.root.count("/") + 1 :] if self.root else folders
        is_below = not self.root or name.startswith(f"{self.root}/")
        if self._is_flat:
            if len(inner) < 2 or not is_below:
                return "it lies in no class folder"
            return Place("train", self._labels[_fold(inner[0])])
        part = self._parts.get(inner[0]) if is_below and len(inner) > 1 else None
        if part is None:
            if is_below and len(inner) == 2 and inner[0].casefold() in PART_NAMES:
                return "it lies in no class folder"
            return "it lies outside " + _listed([f"{folder}/" for folder in self.folders.values()])
        if len(inner) == 2:
            return "it lies in no class folder"
        return Place(part, self._labels[_fold(inner[1])])

    def with_names(self, names: Sequence[str], file: str) -> "Layout":
        """Name the classes, whose folders are numbers. file: the file with the names. Raises BadDataset."""
        numbers = {label: int(label) for labels in self.labels.values() for label in labels}
        for label, number in numbers.items():
            if number >= len(names):
                raise BadDataset(
                    f"{show(file)} names {len(names)} classes, so there is no name for the folder '{label}'",
                    hint="write a name for each class, in the order of the numbers from 0",
                    field="dataset",
                )
        return replace(
            self,
            labels={part: [names[numbers[label]] for label in labels] for part, labels in self.labels.items()},
            order=tuple(names),
            names_file=file,
            _labels={key: names[numbers[label]] for key, label in self._labels.items()},
        )

    def with_drawn_test(self) -> "Layout":
        """Add a test part that is drawn from the training part."""
        return replace(self, labels={**self.labels, "test": self.labels["train"]})

    def where(self, part: PartName) -> str:
        """Say where a part lies, for errors."""
        if part not in self.folders:
            return f"in the {_ROLES[part]} part"
        folder = _folder_of(self, part)
        return f"under '{folder}/'" if folder else "in the top folder"


_ROLES: Mapping[PartName, str] = {"train": "training", "test": "test", "held_out": "held-out"}


def find_layout(
    files: Iterable[str],
    folders: Iterable[str],
    where: str,
    *,
    needed: Sequence[PartName] = ("train", "test"),
    draws_test: bool = False,
) -> Layout:
    """Find the layout of a data set from the paths of its files and folders, relative and with `/`.

    where: name of the data set, for errors. needed: the parts that it must have; others are not looked for. draws_test:
    whether the test part is to be drawn from the training part. Raises BadDataset that names the folders where the
    layout is ambiguous, or where a part is missing or superfluous.
    """
    roots, images = _find_parts(files, folders)
    flat = _find_flat(images)
    if not roots and flat is not None and draws_test:
        return _flat_layout(flat, images, where)
    if draws_test:
        needed = ("train",)
    if any(part.has_images for parts in roots.values() for part in parts.values()):
        # Of several folders with the name of a part, those without an image are something else.
        roots = {
            root: kept
            for root, parts in roots.items()
            if (kept := {name: part for name, part in parts.items() if part.has_images or part.classes})
            and any(part.has_images for part in kept.values())
        }
    root = _choose_root(roots, images, where, needed, can_be_drawn=flat is not None)
    parts = roots.get(root, {})
    if draws_test and (own := parts.get("test") or parts.get("val")):
        raise BadDataset(
            f"{where} has its own test part, '{_folder(root, min(own.folders))}/'",
            hint="leave test_share out, or remove that part",
            field="test_share",
        )
    return _layout(root, parts, where, needed)


def _find_flat(images: Sequence[str]) -> str | None:
    """Find the folder that all class folders lie in, by the folders that hold images; None where there is none."""
    split = [folder.split("/") if folder else [] for folder in images]
    root = list(split[0]) if split else []
    for parts in split:
        while parts[: len(root)] != root:
            root.pop()
    classes = {parts[len(root)] for parts in split if len(parts) > len(root)}
    return "/".join(root) if len(classes) > 1 else None


def _flat_layout(root: str, images: Sequence[str], where: str) -> Layout:
    """Make the layout of class folders that lie in no part."""
    part = _Part({""}, {}, has_images=True)
    for folder in images:
        if folder == root:
            continue
        name = folder.removeprefix(f"{root}/" if root else "").partition("/")[0]
        part.classes.setdefault(_fold(name), set()).add(name)
    names = _spell(part, root, where)
    return Layout(root, {"train": ""}, {"train": sorted(names.values())}, _labels=names, _is_flat=True)


def name_classes(
    layout: Layout, counts: Mapping[Place, int], where: str, *, needed: Sequence[PartName] = ("train", "test")
) -> tuple[str, ...]:
    """Return the class names in the order of their labels, which is alphabetical.

    counts: number of images per place. where: name of the data set, for errors. needed: the parts that must have images
    of every class. Raises BadDataset.
    """
    for part in needed:
        if not any(counts.get(Place(part, label)) for label in layout.labels[part]):
            folder = _folder_of(layout, part) if part in layout.folders else part
            raise BadDataset(
                f"no images found in the class folders {layout.where(part)} in {where}",
                hint=f"arrange the images as {folder}/<class>/<image>, in {FORMATS_IN_WORDS} format",
                field="dataset",
            )
    classes = layout.order or sorted({label for part in needed for label in layout.labels[part]})
    for part, label in ((part, label) for part in needed for label in classes):
        if not counts.get(Place(part, label)):
            state = "has no folder" if label not in layout.labels[part] and part in layout.folders else "has no images"
            raise BadDataset(
                f"class '{show(label)}' {state} {layout.where(part)} in {where}",
                hint="add images of that class, or remove it from every part",
                field="dataset",
            )
    if len(classes) < 2 and layout.order:
        raise BadDataset(
            f"{where} has a single class: every image has the label '{show(classes[0])}'",
            hint="add images of a second class",
            field="dataset",
        )
    if len(classes) < 2:
        raise BadDataset(
            f"{where} has a single class: '{show(classes[0])}' is the only folder {layout.where(needed[0])}",
            hint="add a folder with images of a second class; if the classes are folders inside this one, move them up",
            field="dataset",
        )
    unknown = sorted(set(layout.labels.get("held_out", ())) - set(classes))
    if unknown and "held_out" not in needed:
        raise BadDataset(
            f"class '{show(unknown[0])}' of '{_folder_of(layout, 'held_out')}/' has no images to train on in {where}",
            hint="add training images of that class, or remove it from every part",
            field="dataset",
        )
    return tuple(classes)


def _find_parts(files: Iterable[str], folders: Iterable[str]) -> tuple[dict[str, dict[str, _Part]], Sequence[str]]:
    """Return the parts in each folder that holds some, by name of the folder, and the folders that hold images."""
    roots: dict[str, dict[str, _Part]] = {}
    # Many files share a folder: each folder is split once.
    with_images: dict[str, bool] = {}
    for name in files:
        folder, _, file = name.rpartition("/")
        if not with_images.get(folder):
            with_images[folder] = file.lower().endswith(tuple(SUFFIXES)) and not file.startswith(".")
    for folder in folders:
        with_images.setdefault(folder.rstrip("/"), False)
    for folder, has_images in with_images.items():
        if "/." in f"/{folder}" or f"/{_MAC}/" in f"/{folder}/":
            continue
        parts = folder.split("/", _DEEPEST + 1)
        for at, name in enumerate(parts[:_DEEPEST]):
            if kind := PART_NAMES.get(name.casefold()):
                part = roots.setdefault("/".join(parts[:at]), {}).setdefault(kind, _Part())
                part.folders.add(name)
                part.has_images = part.has_images or has_images
                if at + 1 < len(parts):
                    part.classes.setdefault(_fold(parts[at + 1]), set()).add(parts[at + 1])
    return roots, [folder for folder, has_images in with_images.items() if has_images]


def _choose_root(
    roots: Mapping[str, Mapping[str, _Part]],
    images: Sequence[str],
    where: str,
    needed: Sequence[PartName],
    *,
    can_be_drawn: bool,
) -> str:
    """Choose the one folder that holds the parts; `images` are the folders that hold images.

    can_be_drawn: whether all images lie in class folders, of which a test part could be drawn. A data set inside
    another one is a copy, which is not read. Raises BadDataset where several could be meant.
    """
    whole = {root for root in roots if _is_complete(roots[root], needed)}
    top = sorted(root for root in whole or roots if not any(above in (whole or roots) for above in _above(root)))
    if not top:
        folders = " and ".join(f"{part}/<class>/<image>" for part in needed)
        drawn = f"; or, as its folders are classes, {DRAW_TEST}" if can_be_drawn and "test" in needed else ""
        raise BadDataset(
            f"there is no folder '{needed[0]}/' in {where}",
            hint=f"arrange the images as {folders}, in {FORMATS_IN_WORDS} format{drawn}",
            field="dataset",
        )
    if len(top) > 1 and not whole:
        found = [_folder(root, name) + "/" for root in top for part in roots[root].values() for name in part.folders]
        raise BadDataset(
            f"{_listed(sorted(found))} in {where} do not lie in one folder",
            hint="put the folders of all parts beside each other",
            field="dataset",
        )
    rivals = [
        root
        for root in roots
        if root not in whole
        and not _is_below(root, top[0])
        and not (_is_below(top[0], root) and _wraps(root, roots[root], top[0], images))
    ]
    if len(top) > 1 or rivals:
        named = _listed([f"{show(root)}/" if root else "the top folder" for root in sorted([*top, *rivals])])
        raise BadDataset(
            f"{where} holds several data sets: parts lie in {named}",
            hint="give the folder or archive of one of them",
            field="dataset",
        )
    return top[0]


def _wraps(root: str, parts: Mapping[str, _Part], inner: str, images: Sequence[str]) -> bool:
    """Whether a folder only wraps another one, and bears the name of a part by chance: all its images lie in there."""
    folders = [_join(root, name) for part in parts.values() for name in part.folders]
    return all(_is_below(folder, inner) for folder in images if any(_is_below(folder, part) for part in folders))


def _above(folder: str) -> Iterator[str]:
    """Yield the folders that a folder lies in."""
    while folder:
        folder = folder.rpartition("/")[0]
        yield folder


def _is_complete(parts: Mapping[str, _Part], needed: Sequence[PartName]) -> bool:
    return "train" in parts and ("test" not in needed or "test" in parts or "val" in parts)


def _layout(root: str, parts: Mapping[str, _Part], where: str, needed: Sequence[PartName]) -> Layout:
    roles: dict[PartName, _Part] = {}
    if "train" in parts:
        roles["train"] = parts["train"]
    if "test" in needed:
        test, val = parts.get("test"), parts.get("val")
        # A test folder without class folders holds images without labels, as that of ImageNet.
        if test and val and not test.classes and val.classes:
            test, val = val, None
        if test or val:
            roles["test"] = test or val or _Part()
        if test and val:
            roles["held_out"] = val
    for part in roles.values():
        if len(part.folders) > 1:
            both = sorted(f"{_folder(root, name)}/" for name in part.folders)
            raise BadDataset(
                f"{_listed(both)} in {where} could each be the {_role_of(part, roles)} part",
                hint="keep one of them, or put their images together",
                field="dataset",
            )
    folders = {role: next(iter(part.folders)) for role, part in roles.items()}
    for role in needed:
        if role not in roles:
            there = sorted(f"'{_folder(root, name)}/'" for part in parts.values() for name in part.folders)
            raise BadDataset(
                f"there is no folder '{role}/' beside {_listed(there)} in {where}",
                hint=f"arrange the images as {role}/<class>/<image>, in {FORMATS_IN_WORDS} format"
                + (f"; or {DRAW_TEST}" if role == "test" else ""),
                field="dataset",
            )
    for role in needed:
        if not roles[role].classes:
            raise BadDataset(
                f"'{_folder(root, folders[role])}/' in {where} has no class folders",
                hint=f"put the images of each class into a folder of their own: {folders[role]}/<class>/<image>",
                field="dataset",
            )
    spelled = {role: _spell(part, _folder(root, folders[role]), where) for role, part in roles.items()}
    # The training part decides how a class is written.
    names: dict[str, str] = {}
    for role in spelled:
        for key, written in spelled[role].items():
            names.setdefault(key, written)
    return Layout(
        root,
        folders,
        {role: sorted(names[key] for key in written) for role, written in spelled.items()},
        _parts={folder: role for role, folder in folders.items()},
        _labels=names,
    )


def _spell(part: _Part, folder: str, where: str) -> dict[str, str]:
    """Return the one name of each class folder by its folded name. Raises BadDataset where two differ only in case."""
    for written in part.classes.values():
        if len(written) > 1:
            one, other = sorted(written)[:2]
            raise BadDataset(
                f"the class folders '{show(one)}' and '{show(other)}' under '{folder}/' in {where} differ only in case",
                hint="rename one of them, or put their images together",
                field="dataset",
            )
    return {key: next(iter(written)) for key, written in part.classes.items()}


def _role_of(part: _Part, roles: Mapping[PartName, _Part]) -> str:
    return _ROLES[next(role for role, other in roles.items() if other is part)]


def _folder_of(layout: Layout, part: PartName) -> str:
    return _folder(layout.root, layout.folders[part])


def _folder(root: str, name: str) -> str:
    """Name a folder in an error."""
    return show(_join(root, name))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _is_below(folder: str, other: str) -> bool:
    return not other or folder == other or folder.startswith(f"{other}/")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:_SHOWN], f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
