"""Class folders: the names of the classes of a data set, and the check that each class has images."""

from collections.abc import Iterable, Mapping, Sequence

from core.schema.errors import BadDataset

PARTS = {"train": "train", "test": "test", "val": "test", "valid": "test"}
"""Folder name -> part of the data set."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def name_classes(counts: Mapping[tuple[str, str], int], parts: Iterable[str], where: str) -> tuple[str, ...]:
    """Return the class names in the order of their labels, which is alphabetical.

    counts: number of images by part and class. parts: those that must have images of every class. where: name of the
    data set, for errors. Raises BadDataset.
    """
    names = {part: {label for its_part, label in counts if its_part == part} for part in parts}
    for part, labels in names.items():
        if not labels:
            raise BadDataset(
                f"no images found under '{part}/' in {where}",
                hint=f"arrange the images as {_layout(list(names))}, in JPEG, PNG or WebP format",
                field="dataset",
            )
    classes = sorted(set().union(*names.values()))
    for part, label in sorted((part, label) for part in names for label in classes):
        if not counts.get((part, label)):
            raise BadDataset(
                f"class '{label}' has no images under '{part}/' in {where}",
                hint="add images of that class, or remove it from every part",
                field="dataset",
            )
    if len(classes) < 2:
        raise BadDataset(f"{where} has a single class", hint="add images of a second class", field="dataset")
    return tuple(classes)


def _layout(parts: Sequence[str]) -> str:
    return " and ".join(f"{part}/<class>/<image>" for part in parts)
