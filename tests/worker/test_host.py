"""What a worker's machine and process tell: protected memory, memory kills, the heartbeat file."""

import os
import subprocess
import sys
import time

import pytest

from worker import host

ASK = """
import ctypes
from worker.host import protect_memory
PR_GET_DUMPABLE = 3
ask = lambda: ctypes.CDLL(None).prctl(PR_GET_DUMPABLE)
before = ask()
protect_memory()
print(before, ask())
"""


def test_other_processes_of_the_user_cannot_read_a_workers_memory():
    # In a process of its own: what is given up is not had back. Only root may still read all, which tests may run as.
    told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["1", "0"]


def test_the_count_is_found_in_both_versions_of_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CONTROL_GROUPS", tmp_path)
    assert host.count_oom_kills() is None
    for file, text in (
        (tmp_path / "memory.events", "low 0\nhigh 4\nmax 2\noom 3\noom_kill 5\noom_group_kill 9\n"),
        (tmp_path / "memory" / "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        monkeypatch.setattr(host, "_counters", lambda file=file: [tmp_path / "nowhere", file])
        assert host.count_oom_kills() == int(text.split("oom_kill ")[1].split()[0])


EAT = """
import os, signal, subprocess, sys
from worker.host import count_oom_kills
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write(str(os.getpid()))
eat = "x = bytearray(400 << 20)\\nfor i in range(0, len(x), 4096): x[i] = 1"
before = count_oom_kills()
ended = subprocess.run([sys.executable, "-c", eat]).returncode
print(before, ended, count_oom_kills())
"""


@pytest.fixture
def small_group():
    """A control group with little memory, where one can be made."""
    memory = host.CONTROL_GROUPS / "memory"
    group = (memory if memory.is_dir() else host.CONTROL_GROUPS) / f"temper-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        limit = next(
            (group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists()), None
        )
        if limit is None:
            pytest.skip("control groups do not limit memory here")
        limit.write_text(str(100 << 20))
        yield group
    finally:
        group.rmdir()


def test_a_process_that_the_kernel_kills_when_memory_runs_out_is_counted(small_group):
    done = subprocess.run([sys.executable, "-c", EAT, str(small_group)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "-9", "1"]


def test_a_health_check_fails_without_a_recent_heartbeat(tmp_path):
    path = tmp_path / "worker.heartbeat"
    assert host.check(path) == f"no worker has run here: {path} does not exist"
    host.HeartbeatFile(path).beat()
    assert host.check(path) == ""
    os.utime(path, (time.time() - 40,) * 2)
    assert host.check(path) == "last heartbeat 40 s ago"


def test_a_heartbeat_file_that_cannot_be_written_stops_no_worker(tmp_path):
    host.HeartbeatFile(tmp_path / "none" / "worker.heartbeat").beat()


def test_device_files_that_a_confined_run_cannot_make_are_made_before(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / "nvidia" / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    modprobe = tmp_path / "nvidia-modprobe"
    modprobe.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/called\ntouch {tmp_path}/nvidia-uvm\n")
    modprobe.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "_NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(host, "_UNIFIED_MEMORY", tmp_path / "nvidia-uvm")
    for _ in range(2):
        host.make_gpu_devices()
    assert (tmp_path / "called").read_text() == "-u -c=0 -c=1\n"
