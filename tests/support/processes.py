"""What tests ask of the machine: is it so by now, and is anybody left?"""

import contextlib
import time
from pathlib import Path


def wait_until(claim_holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not claim_holds():
        assert time.monotonic() < deadline, "that took too long"
        time.sleep(0.02)


def processes_with(text):
    """Find the processes whose command line has this text in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
