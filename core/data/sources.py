"""The sources of images: files in class folders, arrays of NumPy, Parquet files, and the own files of CIFAR.

The content decides which of them a path holds, not its name. What could be two of them is refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from core.data.arrays import Arrays, is_array_file, is_part_of_a_set
from core.data.cifar_files import CifarFiles, find_cifar_files
from core.data.class_folders import SUFFIXES
from core.data.file_tree import open_tree
from core.data.image_folder import ImageFolder
from core.data.image_source import ImageSource
from core.data.parquet import ParquetFiles, is_parquet_file
from core.data.safe_zip import Caps, show
from core.data.survey import Survey
from core.schema.errors import BadDataset
from core.schema.inspection_report import PartName

OF_THE_OPERATOR = Caps(total_bytes=2**40)
"""Limits of files of the operator's, as opposed to uploads, which are not limited in size."""


def open_source(
    path: Path,
    survey: Survey,
    *,
    caps: Caps = OF_THE_OPERATOR,
    needed: Sequence[PartName] = ("train", "test"),
    test_share: float | None = None,
    untrusted: bool = False,
) -> ImageSource:
    """Tell what lies at a path: a folder, a zip or tar archive, a `.npz` file or a Parquet file.

    survey: counts the files that are not read. caps: limits of an archive. needed: the parts that it must have.
    test_share: the share of each class that is drawn as the test part; None for a set that has one. untrusted: as in
    `file_tree.open_tree`. Raises BadDataset.
    """
    # A file with many images is larger than one image may be; each source limits its own files.
    tree = open_tree(path, replace(caps, member_bytes=caps.total_bytes), untrusted=untrusted)
    entries = list(tree.entries())
    files = [entry for entry in entries if not (entry.is_folder or entry.reason or "/." in f"/{entry.name}")]
    has_images = any(PurePosixPath(entry.name).suffix.lower() in SUFFIXES for entry in files)
    # Beside images an array of another kind, such as features, is a file that is not read.
    arrays = any(is_part_of_a_set(entry.name) or (is_array_file(entry.name) and not has_images) for entry in files)
    parquet = any(is_parquet_file(entry.name) for entry in files)
    cifar = find_cifar_files(entry.name for entry in files)
    kinds = {"arrays": arrays, "Parquet files": parquet, "files of CIFAR": bool(cifar)}
    found = [kind for kind, there in kinds.items() if there]
    if found and has_images:
        found.append("images")
    if len(found) > 1:
        raise BadDataset(
            f"{show(path.name)} holds {found[0]} as well as {found[1]}",
            hint="give a folder or archive of one of them",
            field="dataset",
        )
    if cifar:
        return CifarFiles(path.name, tree, files, cifar, survey, needed=needed, test_share=test_share)
    if arrays:
        return Arrays(path.name, tree, files, survey, needed=needed, test_share=test_share)
    if parquet:
        return ParquetFiles(path.name, tree, files, survey, needed=needed, test_share=test_share)
    return ImageFolder(path, tree, entries, survey, needed=needed, test_share=test_share)
