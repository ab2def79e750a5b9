"""What tests start is gone when they are, even when they are killed."""

import subprocess
import sys
from pathlib import Path

from tests.support.guard import _begun
from tests.support.processes import wait_until

ROOT = Path(__file__).parent.parent
_TESTS = """
import time

from tests.support.servers import postgres, valkey
with postgres() as database, valkey() as broker:
    main = (database._data / "postmaster.pid").read_text().split()[0]
    print(main, broker.process.pid, database._folder, broker._folder, flush=True)
    time.sleep(600)
"""


def test_servers_and_their_folders_go_when_the_tests_are_killed():
    with subprocess.Popen([sys.executable, "-c", _TESTS], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        *pids, database, broker = tests.stdout.readline().split()
        began = {int(pid): _begun(int(pid)) for pid in pids}
        assert all(began.values())
        tests.kill()
    wait_until(lambda: not any(_begun(pid) == begun for pid, begun in began.items()), seconds=20)
    wait_until(lambda: not Path(database).exists() and not Path(broker).exists(), seconds=20)
