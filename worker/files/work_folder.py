"""Work folders of attempts on the worker's disk, and results that are kept there when they cannot be stored."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_DAY_SECONDS = 24 * 60 * 60


@contextmanager
def work_folder(work_dir: Path, name: str, attempt: int) -> Iterator[Path]:
    """Yield a new folder for one attempt at `name`, and remove it at the end of the block.

    The folders of earlier attempts are removed too. Those of later attempts are not: another worker of this machine may
    have taken over meanwhile.
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


def keep_results(folder: Path, kept_dir: Path, name: str) -> Path | None:
    """Move the weights and the report from a work folder to `kept_dir / name`, for the operator to fetch.

    Returns that folder, or None when there is nothing to keep. Raises OSError.
    """
    results = [path for path in (*folder.glob("*.safetensors"), *folder.glob("report.json")) if not path.is_symlink()]
    if not results:
        return None
    kept = kept_dir / name
    kept.mkdir(parents=True, exist_ok=True)
    for path in results:
        shutil.move(path, kept / path.name)
    return kept


def remove_expired_results(kept_dir: Path, *, days: float) -> None:
    """Remove the results that have been kept for more than `days`."""
    for kept in kept_dir.glob("*"):
        try:
            if time.time() - kept.stat().st_mtime > days * _DAY_SECONDS:
                log.info("%s was kept for %g days and is removed", kept, days)
                shutil.rmtree(kept)
        except OSError as error:
            log.warning("%s cannot be removed: %s", kept, error)
