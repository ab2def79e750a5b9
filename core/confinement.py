"""Run a command in confinement: it opens the files that it needs and no other, and reaches no server.

    python -m core.confinement --read digits.zip --write runs/1 python -m core finetune spec.json --output runs/1

The command and all that it starts may read and run the system's programs and this Python's packages, read the paths
after --read, use the GPUs, and change the folders after --write and that of TMPDIR. Of `/proc` they see the command's
own process and what is about the machine. They reach no process outside. The kernel enforces the rules, which cannot be
lifted (`core.landlock`, `core.sandbox`). `--check` prints what this kernel cannot enforce, as a JSON list of sentences.

Needs no torch: the command is started in a few hundredths of a second.
"""

import argparse
import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from core.landlock import READ, RUN, SIGNALS, TCP, TRUNCATION, USE_DEVICE, WRITE, Access, restrict, version
from core.sandbox import deny_network, find_no_filter

Sockets = Literal["none", "unix", "loopback"]
"""Sockets that a command may open. none; unix: those of this machine's processes, which image loaders and CUDA use;
loopback: also TCP and UDP in a network that is the command's own, for a run of several processes."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store")
"""Programs and libraries."""
_SYSTEM_FILES = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/locale.alias"),
    *("/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    *("/etc/hosts", "/etc/host.conf", "/etc/gai.conf", "/etc/resolv.conf", "/etc/nccl.conf", "/etc/OpenCL", "/sys"),
)
"""Settings of libraries, and the machine's devices. The rest of /etc may hold secrets."""
_PROCESS_FILES = (
    *("self", "sys", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "devices", "modules"),
    *("driver", "interrupts"),
)
"""Files of /proc; those of other processes would show their environments and memory."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_GPUS = ("nvidia*", "nvidia-caps/*", "nvhost*", "nvmap", "dxg", "kfd", "dri")
"""Devices of NVIDIA's, AMD's and Intel's drivers. No wider pattern: /dev/nvme0 is a disk."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # tensors go through it from process to process
_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
"""CLONE_NEWNET and CLONE_NEWUSER, the flags of unshare(2) for a new network and a new user namespace."""
_DROP_CAPABILITY, _LAST_CAPABILITY = 24, 63
_KEPT_CAPABILITY = 1
"""CAP_DAC_OVERRIDE, without which root does not open inputs and folders that are another user's."""
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def confine(
    *, read: Sequence[Path] = (), write: Sequence[Path] = (), sockets: Sockets = "none", launcher: bool = False
) -> None:
    """Confine this process and all that it starts from now on, for ever. Call it before a second thread starts.

    launcher: leave all of /proc readable, for a program whose own processes then confine themselves with `narrow`.
    What the kernel cannot do is left out; on other systems than Linux that is everything. Raises OSError.
    """
    if sys.platform != "linux":
        return
    files = _files(read, write, processes=[""] if launcher else _PROCESS_FILES)
    own_network = sockets == "loopback" and enter_own_network()
    if sockets == "loopback":
        # Of several addresses, libraries would take another one.
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    _drop_capabilities()
    restrict(files, ports=None if own_network else _unregistered_ports() if sockets == "loopback" else ())
    internet = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
    families = {"none": (), "unix": (socket.AF_UNIX,), "loopback": internet}[sockets]
    # Landlock does not restrict chmod: a run could take the service's permissions on a file away.
    deny_network(but_for=families, streams_only=not own_network, keep_permissions=True)


def narrow(*, read: Sequence[Path] = (), write: Sequence[Path] = ()) -> None:
    """Take from a process that a confined launcher has started what is not its own in /proc. Raises OSError."""
    restrict(_files(read, write, processes=_PROCESS_FILES), ports=None, others=False)


def find_gaps() -> list[str]:
    """Say what this kernel cannot keep a confined command from; an empty list where it keeps it from all."""
    interface = version()
    gaps = []
    if interface == 0:
        gaps.append("a run can open all files of the service's user: the kernel has no Landlock")
    if 0 < interface < TRUNCATION:
        gaps.append("a run can empty files of the service's user: that needs the Landlock of Linux 6.2")
    if interface < SIGNALS:
        gaps.append("a run can send signals to processes of the service's user: that needs the Landlock of Linux 6.12")
    if reason := find_no_filter() or _in_a_fork(deny_network):
        gaps.append(f"a run can reach servers: {reason}")
    elif _in_a_fork(lambda: "" if enter_own_network() else "no"):
        ports = "" if interface < TCP else f" at ports {' to '.join(_PORTS.read_text().split())}"
        gaps.append(f"a run of several processes can reach servers{ports}: the system gives it no network of its own")
    return gaps


def _files(read: Sequence[Path], write: Sequence[Path], *, processes: Sequence[str]) -> dict[Path, Access]:
    files = dict.fromkeys(map(Path, _SYSTEM), RUN) | dict.fromkeys(map(Path, _SYSTEM_FILES), READ)
    files |= {Path("/proc", name): READ for name in processes}
    files |= {Path("/dev", name): USE_DEVICE for name in _DEVICES}
    files |= {path: USE_DEVICE for pattern in _GPUS for path in Path("/dev").glob(pattern)}
    files |= dict(_python())
    for path in (Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry):
        files[path] = RUN
    for path in read:
        files[path] = READ
        # An operator's data set may be spread over disks by links in its folder.
        files |= dict.fromkeys(_links(path), READ)
    temporary = [Path(os.environ["TMPDIR"])] if "TMPDIR" in os.environ else []
    return files | dict.fromkeys((*write, *temporary, _SHARED_MEMORY), WRITE)


def _links(path: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (each for each in path.iterdir() if each.is_symlink())


def _python() -> Iterator[tuple[Path, Access]]:
    """Name the folders of this Python and its packages. In a checkout, of all that lies there only `core` is read."""
    root = Path(__file__).resolve().parents[1]
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)} - {Path("/")}
    yield from ((prefix, RUN) for prefix in prefixes)
    # The first entry of a module's path is the current folder, which may be any.
    for entry in sys.path if sys.flags.safe_path else sys.path[1:]:
        folder = Path(entry).resolve()
        if not (root.is_relative_to(folder) or any(folder.is_relative_to(prefix) for prefix in prefixes)):
            yield folder, READ
    if not any(root.is_relative_to(prefix) for prefix in prefixes):
        yield root, Access.READ_DIR
        yield root / "core", READ


def enter_own_network() -> bool:
    """Give this process a network of its own that has a loopback and nothing else; whether that is possible here."""
    return _in_a_fork(_enter_own_network) == "" and _enter_own_network() == ""


def _enter_own_network() -> str:
    user, group = os.geteuid(), os.getegid()
    kernel = ctypes.CDLL(None, use_errno=True)
    try:
        # Root may do it at once; others as the owner of a namespace of users, where the system lets them.
        if kernel.unshare(_NEW_NETWORK) != 0:
            if kernel.unshare(_NEW_NETWORK | _NEW_USER) != 0:
                return os.strerror(ctypes.get_errno())
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh22x", b"lo", 0)
            (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, _GET_FLAGS, request), 16)
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", b"lo", flags | _UP))
    except OSError as error:
        return str(error)
    return ""


def _in_a_fork(attempt: Callable[[], str]) -> str:
    """Return what an attempt that cannot be undone answers, from a process that ends with it."""
    answers, answer = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        with suppress(OSError):
            os.write(answer, attempt().encode())
            status = 0
        os._exit(status)
    os.close(answer)
    with os.fdopen(answers, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(process, 0)
    return text or ("" if status == 0 else f"the attempt ended with status {status}")


def _unregistered_ports() -> Sequence[int]:
    """Ports that the system gives out, at which servers do not listen; 0 asks for one."""
    first, last = map(int, _PORTS.read_text().split())
    return [0, *range(first, last + 1)]


def _drop_capabilities() -> None:
    """Take from root what would lead past the rules; a command of another user has nothing to lose."""
    kernel = ctypes.CDLL(None, use_errno=True)
    for capability in range(_LAST_CAPABILITY + 1):
        if capability != _KEPT_CAPABILITY:
            kernel.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


def main() -> None:
    """Confine this process and become the command, or say what the kernel cannot do."""
    parser = argparse.ArgumentParser(prog="python -m core.confinement", description="Run a command in confinement.")
    parser.add_argument("--check", action="store_true", help="print what this kernel cannot do, as a JSON list")
    parser.add_argument("--read", type=Path, action="append", default=[], help="a file or folder to read")
    parser.add_argument("--write", type=Path, action="append", default=[], help="a folder to read and change")
    parser.add_argument("--sockets", choices=get_args(Sockets), default="none", help="the sockets it may open")
    parser.add_argument(
        "--launcher", action="store_true", help="leave /proc to its processes, which come with --narrow"
    )
    parser.add_argument("--narrow", action="store_true", help="this is a process of a confined launcher")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    options = parser.parse_args()
    if options.check:
        sys.stdout.write(json.dumps(find_gaps()) + "\n")
        return
    if not options.command:
        parser.error("name a command")
    if options.narrow:
        narrow(read=options.read, write=options.write)
    else:
        confine(read=options.read, write=options.write, sockets=options.sockets, launcher=options.launcher)
    os.execvp(options.command[0], options.command)  # noqa: S606  # no shell is what we want


if __name__ == "__main__":
    main()
