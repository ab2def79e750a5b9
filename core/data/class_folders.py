"""Class folders: what the classes of a data set are called, and that each of them has images."""

from collections.abc import Iterable, Mapping, Sequence

from core.schema.errors import BadDataset

PARTS = {"train": "train", "test": "test", "val": "test", "valid": "test"}
"""The folder of a part, and which part it is."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def name_classes(counts: Mapping[tuple[str, str], int], parts: Iterable[str], where: str) -> tuple[str, ...]:
    """Name the classes in the order of their labels, which is that of their names.

    counts: images by part and class. parts: those that must have images of every class. Raises BadDataset.
    """
    names = {part: {label for its_part, label in counts if its_part == part} for part in parts}
    for part, labels in names.items():
        if not labels:
            raise BadDataset(
                f"no images found under '{part}/' in {where}",
                hint=f"lay it out as {_layout(list(names))}, as JPEG, PNG or WebP",
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
        raise BadDataset(f"{where} has a single class", hint="a classifier needs two classes or more", field="dataset")
    return tuple(classes)


def _layout(parts: Sequence[str]) -> str:
    return " and ".join(f"{part}/<class>/<image>" for part in parts)
