"""Nothing that tests have started outlives them, however they end: a process waits for their end, and clears up."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path


def guard_process(pid: int) -> None:
    """Have a process killed when this one is gone, if it still runs then."""
    _tell(f"process {pid} {_begun(pid)}")


def guard_folder(folder: Path) -> None:
    """Have a folder removed when this process is gone, if it is still there then."""
    _tell(f"folder {folder}")


def _tell(line: str) -> None:
    guard = _guard()
    assert guard.stdin
    guard.stdin.write(f"{line}\n")
    guard.stdin.flush()


@cache
def _guard() -> "subprocess.Popen[str]":
    # In a session of its own: what is sent to all of the terminal's processes is not for it.
    guard = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True, start_new_session=True)
    atexit.register(guard.communicate)
    return guard


def _begun(pid: int) -> str:
    """When a process began, by which it is told from a later one of that number; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _clear_up() -> None:
    told = [line.rstrip("\n").split(" ", 1) for line in sys.stdin]
    for what, which in told:
        if what == "process":
            pid, _, begun = which.partition(" ")
            if begun and _begun(int(pid)) == begun:
                os.kill(int(pid), signal.SIGKILL)
    for what, which in told:
        if what == "folder":
            shutil.rmtree(which, ignore_errors=True)


if __name__ == "__main__":
    _clear_up()
