"""What a run has made and the object store did not take: kept on the worker's machine for some days, for the operator
to fetch by hand."""

import logging
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)

_DAY = 24 * 60 * 60


def keep(folder: Path, kept_dir: Path, name: str) -> Path | None:
    """Move the weights and the report in a run's folder aside, to a folder of this name; give it, or None where there
    is nothing to keep. Raises OSError."""
    made = [path for path in (*folder.glob("*.safetensors"), *folder.glob("report.json")) if not path.is_symlink()]
    if not made:
        return None
    kept = kept_dir / name
    kept.mkdir(parents=True, exist_ok=True)
    for path in made:
        shutil.move(path, kept / path.name)
    return kept


def sweep(kept_dir: Path, *, days: float) -> None:
    """Remove what has been kept for so many days."""
    for kept in kept_dir.glob("*"):
        try:
            if time.time() - kept.stat().st_mtime > days * _DAY:
                log.info("%s has been kept for %g days, and is removed", kept, days)
                shutil.rmtree(kept)
        except OSError as error:
            log.warning("%s cannot be removed: %s", kept, error)
