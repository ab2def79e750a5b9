"""A confined command does what training needs, and nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core import confinement
from core.landlock import SIGNALS, version

ROOT = Path(__file__).parents[2]
confines = pytest.mark.skipif(version() < SIGNALS, reason="this kernel has no Landlock, or one older than Linux 6.12")

_ATTEMPTS = """
import os, sys, socket

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

"""


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def python(script, work, *options, read=()):
    """Run a script in confinement, and give what it has printed."""
    command = [sys.executable, "-m", "core.confinement", "--write", str(work), *options]
    command += [part for path in read for part in ("--read", str(path))]
    done = subprocess.run(
        [*command, sys.executable, "-c", _ATTEMPTS + script],
        env={**os.environ, "TMPDIR": str(work)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@confines
def test_only_what_is_granted_is_read_and_only_the_work_folder_changes(tmp_path, work):
    granted, other = tmp_path / "granted", tmp_path / "other"
    for file in (granted, other):
        file.write_text("content")
    (work / "link").symlink_to(granted)
    script = f"""
print(
    attempt(lambda: open({str(work / "link")!r}).read()),
    attempt(lambda: open({str(granted)!r}, "a")),
    attempt(lambda: os.unlink({str(granted)!r})),
    attempt(lambda: open({str(other)!r})),
    attempt(lambda: os.truncate({str(other)!r}, 0)),
    attempt(lambda: os.rename({str(work / "link")!r}, {str(tmp_path / "out")!r})),
    attempt(lambda: (os.makedirs("{work}/a"), open("{work}/a/b", "w").close(), os.rename("{work}/a/b", "{work}/d"))),
)
"""
    refused = "PermissionError"
    assert python(script, work, read=[granted]).split() == ["done", *[refused] * 5, "done"]
    assert (granted.read_text(), other.read_text()) == ("content", "content")


@confines
def test_a_data_set_that_is_spread_over_disks_by_links_is_read(tmp_path, work):
    disk = tmp_path / "disk"
    (disk / "cat").mkdir(parents=True)
    (disk / "cat" / "1.png").write_text("image")
    dataset = tmp_path / "pets"
    dataset.mkdir()
    (dataset / "train").symlink_to(disk)
    script = f"print(open({str(dataset / 'train' / 'cat' / '1.png')!r}).read())"
    assert python(script, work, read=[dataset]) == "image"


@pytest.mark.parametrize(
    ("sockets", "allowed"),
    [("none", []), ("unix", ["unix"]), ("loopback", ["unix", "TCP", "UDP", "own server"])],
)
@confines
def test_only_the_sockets_of_a_run_can_be_opened(work, sockets, allowed):
    if sockets == "loopback" and any("several processes" in gap for gap in confinement.find_gaps()):
        allowed.remove("UDP")
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"""
def serve():
    with socket.create_server(("127.0.0.1", 0)) as own:
        socket.create_connection(own.getsockname()).close()

tried = {{
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "TCP": lambda: socket.socket(socket.AF_INET),
    "UDP": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "packets": lambda: socket.socket(socket.AF_PACKET),
    "machines": lambda: socket.socket(socket.AF_VSOCK),
    "own server": serve,
    "server": lambda: socket.create_connection({server.getsockname()}, 5),
}}
print(*(name for name, action in tried.items() if attempt(action) == "done"), sep=",")
"""
        found = [name for name in python(script, work, "--sockets", sockets).split(",") if name]
    # Without a network of its own, a run of several processes reaches the ports that the system gives out.
    assert [name for name in found if name != "server" or "UDP" in found] == allowed


@confines
def test_an_abstract_unix_socket_of_another_process_is_out_of_reach(work):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0temper-test-{os.getpid()}")
        server.listen()
        address = server.getsockname()
        script = f"print(attempt(lambda: socket.socket(socket.AF_UNIX).connect({address!r})))"
        assert python(script, work, "--sockets", "unix") == "PermissionError"


@confines
def test_of_proc_there_are_the_own_process_and_the_machine(work):
    names = ["self/maps", "self/statm", "self/fd", "sys/vm/overcommit_memory", "cpuinfo", "meminfo"]
    others = ["1/environ", "1/maps", f"{os.getpid()}/environ", f"{os.getpid()}/mem", f"{os.getpid()}/cmdline"]
    script = f"""
def look(name):
    path = "/proc/" + name
    return attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))

print(*(look(name) for name in {names + others}))
"""
    assert python(script, work).split() == ["done"] * len(names) + ["PermissionError"] * len(others)


def test_a_kernel_without_landlock_still_refuses_servers(monkeypatch):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from core import confinement, landlock; import sys; landlock.version = lambda: 0; confinement.main()",
            *(sys.executable, "-c", _ATTEMPTS + "print(attempt(socket.socket), attempt(lambda: open('/etc/passwd')))"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["PermissionError", "done"]


@pytest.mark.parametrize("interface", range(1, version() + 1))
def test_every_older_version_of_the_interface_is_used(interface, work):
    """With what that kernel knows, as far as this one tells: it refuses to handle what it does not know itself."""
    code = f"from core import confinement, landlock; landlock.version = lambda: {interface}; confinement.main()"
    script = (
        _ATTEMPTS
        + f"print(attempt(lambda: open({str(work.parent / 'secret')!r})), attempt(lambda: open('/etc/passwd')))"
    )
    (work.parent / "secret").touch()
    done = subprocess.run(
        [sys.executable, "-c", code, "--write", str(work), sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["PermissionError", "done"]


def test_what_cannot_be_kept_out_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "core.confinement", "--check"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    gaps = json.loads(done.stdout)
    assert all(gap.startswith("a run ") for gap in gaps)
    assert any("no Landlock" in gap for gap in gaps) == (version() == 0)


def test_a_command_line_without_a_command_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "core.confinement"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "name a command" in done.stderr) == (2, True)


_LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset
loader = DataLoader(TensorDataset(torch.rand(64, 3, 64, 64)), batch_size=16, num_workers=2)
print(sum(len(images) for (images,) in loader))
"""

_COMPILED = """
import torch
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
images = torch.rand(2, 3, 8, 8, requires_grad=True)
found = torch.compile(network, dynamic=False)(images)
found.sum().backward()
print(torch.allclose(found, network(images), atol=1e-5))
"""

_SEVERAL = """
import sys, torch, torch.distributed as distributed
distributed.init_process_group("gloo")
total = torch.ones(1)
distributed.all_reduce(total)

def look(path):
    try:
        open(path, "rb").read(1)
    except OSError as error:
        return type(error).__name__
    return "done"

if distributed.get_rank() == 0:
    print(int(total), look("/proc/self/maps"), look("/proc/1/environ"), look(sys.argv[1]), flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@confines
def test_image_loaders_work_in_confinement(work):
    assert python(_LOADER, work, "--sockets", "unix") == "64"


@pytest.mark.slow
@pytest.mark.timeout(400)
@confines
def test_a_network_is_compiled_in_confinement(work):
    assert python(_COMPILED, work) == "True"


@pytest.mark.slow
@pytest.mark.timeout(400)
@confines
def test_a_run_of_several_processes_works_in_confinement_and_each_sees_its_own_alone(work, tmp_path):
    (work / "several.py").write_text(_SEVERAL)
    (tmp_path / "secret").touch()
    wrapper = ["core.confinement", "--write", str(work)]
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", *wrapper, "--sockets", "loopback", "--launcher", sys.executable, "-m", *torchrun),
            *(*wrapper, "--narrow", sys.executable, str(work / "several.py"), str(tmp_path / "secret")),
        ],
        env={**os.environ, "TMPDIR": str(work), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["2", "done", "PermissionError", "PermissionError"], done.stderr
