"""Everything that `make chaos` runs, and breaks: servers, ways to them, and the processes of the service."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx2

from app.platform.settings import Settings
from app.storage import open_store
from tests.support.constants import SITE, environment_of
from tests.support.faulty import faulty
from tests.support.native import FAKE_WORKER, ROOT
from tests.support.processes import processes_with
from tests.support.proxy import proxy
from tests.support.servers import free_port, postgres, seaweedfs, valkey

KEY = f"tmp_abcdefgh_{'x' * 32}"
CLOCKS = {"lease_seconds": 8, "poll_seconds": 0.3}
CONSTANTS = {
    "app.jobs.claims.CANCEL_LIMIT_SECONDS": 12,
    "app.jobs.claims.CRASH_BACKOFF_SECONDS": 0.2,
    "app.jobs.claims.MAX_CRASHES_IN_PLACE": 6,
    "app.jobs.claims.MAX_CRASH_BACKOFF_SECONDS": 2,
    "app.jobs.watch.WATCH_SECONDS": 0.2,
    "app.platform.settings.HEARTBEATS_PER_LEASE": 8,
    "app.storage.S3_TIMEOUT_SECONDS": 5,
    "worker.attempt.STALL_SECONDS": 8,
    "worker.files.transfer.PUBLISH_SECONDS": 60,
    "worker.lease.CANCEL_GRACE_SECONDS": 1,
    "worker.lease.PAUSE_GRACE_SECONDS": 4,
    "worker.files.log_uploader.STORE_SECONDS": 2,
}
BUDGETS = {"max_crashes": 12, "quota_queued_jobs": 10_000, "rate_limit": 1_000_000}
_STOPS_WITHIN = 100


class Member:
    """A process of the service. Whoever ends it starts it again."""

    def __init__(self, name, command, environment, log):
        self.name = name
        self.url = f"http://127.0.0.1:{environment['TEMPER_PORT']}"
        self.log = log
        self._command, self._environment = command, environment
        self._told_at = 0.0
        self.process = None
        self.ways = ()
        """Its own ways to database and broker, where it has some."""

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._command], env=self._environment, stdout=log, stderr=log, cwd=ROOT
            )

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tell_to_stop(self):
        self._told_at = time.monotonic()
        self.process.terminate()

    def has_stopped(self):
        """Whether it has; one that does not in time, or not in good order, is a violation."""
        status = self.process.poll()
        if status is None:
            if time.monotonic() - self._told_at > _STOPS_WITHIN:
                # It dies by this, too, and its log shows what each thread was at.
                self.signal(signal.SIGABRT)
                self.process.wait()
                raise AssertionError(f"{self.name} did not stop within {_STOPS_WITHIN} s of SIGTERM")
            return False
        assert status in (0, -signal.SIGTERM), f"{self.name} stopped with exit status {status}"
        return True


class Town:
    """The whole of a server. `folder` is where it keeps what is not in a server's own folder."""

    def __init__(self, folder, *, apis, workers, s3):
        self.folder = folder
        self.s3 = self.store_way = None
        self.members = {"api": [], "worker": []}
        self._counts = {"api": apis, "worker": workers}
        self._with_s3 = s3
        self._ending = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._ending.close()

    def _open(self, stack):
        self.postgres = stack.enter_context(postgres(durable=True))
        self.valkey = stack.enter_context(valkey())
        self.database_url = self.postgres.create_database("chaos")
        chosen = {**CLOCKS, **BUDGETS, "data_dir": self.folder, "first_api_key": KEY, "resource_class": "cpu"}
        direct = {}
        if self._with_s3:
            self.s3 = stack.enter_context(seaweedfs())
            direct = {**self.s3.create_bucket(), "storage_proxy": True}
            way, self.store_way = stack.enter_context(faulty(self.s3.url, share=0.0))
            chosen |= {**direct, "s3_endpoint_url": way}
        self.store = stack.enter_context(contextlib.closing(open_store(Settings(data_dir=self.folder, **direct))))
        stack.callback(self._end_all)
        for kind, command in (("api", ("-m", "client", "api")), ("worker", FAKE_WORKER)):
            for number in range(1, self._counts[kind] + 1):
                self._add(stack, kind, number, command, chosen)
        migrated = subprocess.run(
            [sys.executable, "-m", "client", "migrate"],
            env=self._environment({**chosen, "database_url": self.database_url}),
            cwd=ROOT,
            check=False,
            capture_output=True,
        )
        assert migrated.returncode == 0, migrated.stderr
        for member in self.all_members:
            member.start()
        for api in self.members["api"]:
            self.wait_for(api)

    def _add(self, stack, kind, number, command, chosen):
        """An API goes straight to the servers; each worker has ways of its own, that can be cut."""
        ways = ()
        mine = {"database_url": self.database_url, "broker_url": self.valkey.url, "port": free_port()}
        if kind == "worker":
            ways = tuple(stack.enter_context(proxy(server.port)) for server in (self.postgres, self.valkey))
            mine["database_url"] = self.database_url.replace(f":{self.postgres.port}/", f":{ways[0].port}/")
            mine["broker_url"] = self.valkey.url.replace(f":{self.valkey.port}/", f":{ways[1].port}/")
        mine["heartbeat_file"] = self.folder / f"{kind}-{number}.heartbeat"
        log = self.folder / f"{kind}-{number}.log"
        member = Member(f"{kind} {number}", command, self._environment({**chosen, **mine}), log)
        member.ways = ways
        self.members[kind].append(member)

    @staticmethod
    def _environment(chosen):
        given = {f"TEMPER_{name.upper()}": str(value) for name, value in chosen.items()}
        given |= environment_of(CONSTANTS)
        return {**os.environ, "PYTHONPATH": f"{SITE}:{ROOT}", "PYTHONFAULTHANDLER": "1", **given}

    @property
    def all_members(self):
        return [*self.members["api"], *self.members["worker"]]

    def trainers(self):
        """The training processes there are: they are told their work folder."""
        return processes_with(str(self.folder / "work"))

    def wait_for(self, api, seconds=90):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{api.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{api.name} is not ready after {seconds} s: {api.log.read_text()[-2000:]}")

    def _end_all(self):
        for member in self.all_members:
            if member.process and member.process.poll() is None:
                member.kill()
        for process in self.trainers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
