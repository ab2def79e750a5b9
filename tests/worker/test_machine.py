"""What a worker keeps to itself on its machine."""

import subprocess
import sys

ASK = """
import ctypes
from worker.machine import keep_to_itself
PR_GET_DUMPABLE = 3
ask = lambda: ctypes.CDLL(None).prctl(PR_GET_DUMPABLE)
before = ask()
keep_to_itself()
print(before, ask())
"""


def test_a_worker_lets_no_process_of_its_user_read_its_memory_and_environment():
    # In a process of its own: what is given up is not had back. Only root may still read all, which tests may run as.
    told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["1", "0"]
