"""A run whose code is an intruder's: it tries to reach all that is not its own, and tells in the log what it reached.

`plant` makes a folder that, in the PYTHONPATH of a worker, makes every run and every inspection one. The code then runs
where a network or a decoder that a file has taken over would: in the process that `python -m core ...` has become.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

MARK = "the intruder's answers: "


def plant(folder, **targets):
    """Make the folder. targets: `files` to open, `folders` to change, `ports` of servers on this machine, `pids`."""
    folder.mkdir()
    shutil.copy(__file__, folder / "intruder.py")
    (folder / "sitecustomize.py").write_text("import intruder\nintruder.main()\n")
    (folder / "targets.json").write_text(json.dumps(targets))
    return folder


def answers_in(log):
    """What it told, by what it tried: `done`, or why not."""
    (line,) = [line for line in log.splitlines() if line.startswith(MARK)]
    return json.loads(line.removeprefix(MARK))


def reached(answers):
    """All that it reached."""
    return sorted(name for name, answer in answers.items() if answer == "done")


def main():
    module, *words = sys.orig_argv[2:3], *sys.orig_argv[3:4]
    if module != ["core"] or words[0] == "download":
        return
    targets = json.loads(Path(__file__).with_name("targets.json").read_text())
    print(MARK + json.dumps(dict(intrude(**targets))), file=sys.stderr, flush=True)


def intrude(*, files=(), folders=(), ports=(), pids=()):
    for file in map(Path, files):
        yield f"read {file}", attempt(read, file)
        yield f"write {file}", attempt(write, file)
        yield f"truncate {file}", attempt(truncate, file)
        yield f"chmod {file}", attempt(os.chmod, file, file.stat().st_mode)
        yield f"chown {file}", attempt(os.chown, file, -1, -1)
        yield f"setxattr {file}", attempt(os.setxattr, file, "user.intruder", b"here")
    for folder in map(Path, folders):
        yield f"list {folder}", attempt(list_folder, folder)
        yield f"make {folder}", attempt(Path.touch, folder / f"planted {os.getpid()}")
        yield f"chmod {folder}", attempt(os.chmod, folder, folder.stat().st_mode)
    for port in ports:
        yield f"TCP {port}", attempt(socket.create_connection, ("127.0.0.1", port), 5)
        yield f"UDP {port}", attempt(send, port)
    # Who may not list /proc can count.
    for pid in {1, os.getppid(), *pids}:
        for name in ("environ", "mem", "maps", "cmdline", "status", "root"):
            yield f"read /proc/{pid}/{name}", attempt(read, Path(f"/proc/{pid}/{name}"))
        yield f"list /proc/{pid}/fd", attempt(list_folder, Path(f"/proc/{pid}/fd"))
        yield f"ask for {pid}", attempt(os.kill, pid, 0)
        yield f"signal {pid}", attempt(os.kill, pid, signal.SIGURG)
    child = subprocess.run(
        [sys.executable, "-S", "-c", "open('/etc/shadow')"], capture_output=True, text=True, check=False
    )
    yield "read /etc/shadow in a child", "done" if child.returncode == 0 else child.stderr.splitlines()[-1]
    yield "list /", attempt(list_folder, Path("/"))
    yield "list /proc", attempt(list_folder, Path("/proc"))
    secret = [name for name in os.environ if any(part in name for part in ("TEMPER", "SECRET", "PASSWORD", "AWS"))]
    yield "secrets in the environment", "done" if secret else "none"


def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error}"
    return "done"


def read(file):
    with file.open("rb") as opened:
        opened.read(1)


def write(file):
    file.open("r+b").close()


def truncate(file):
    os.truncate(file, file.stat().st_size)


def list_folder(folder):
    list(folder.iterdir())


def send(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", port))
