"""The folder that an attempt works in, on the worker's own disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def work_folder(work_dir: Path, name: str, attempt: int) -> Iterator[Path]:
    """Make a folder for one attempt at what is named, and remove it with all that is in it at the end of the block.

    What earlier attempts have left on this machine goes away, too. A later one is not touched: another worker of this
    machine may have taken over meanwhile.
    """
    folder = work_dir / name / str(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if int(other.name) < attempt:
            shutil.rmtree(other, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()
