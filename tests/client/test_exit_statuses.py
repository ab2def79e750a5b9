"""One table of exit statuses: what each command ends with, and that the documentation says the same."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from client import errors
from client import retries as retries_module
from client.__main__ import main
from client.cli.app import COMMANDS, GROUPS, app
from core.schema import errors as user_errors
from core.schema.exit_status import ExitStatus, table_lines
from tests.client.test_outages import Clock
from tests.client.test_temper import problem
from tests.support.scripted_service import Request, Script, job_json

ROOT = Path(__file__).parents[2]

# What each command that asks the service is given.
ASKING: dict[str, list[str]] = {
    "submit": ["SPEC"],
    "wait": ["job_1"],
    "pause": ["job_1"],
    "resume": ["job_1"],
    "stop": ["job_1"],
    "cancel": ["job_1"],
    "retry": ["job_1"],
    "clone": ["job_1"],
    "delete": ["job_1", "-y"],
    "list": [],
    "get": ["job_1"],
    "watch": ["job_1"],
    "events": ["job_1"],
    "logs": ["job_1"],
    "attempts": ["job_1"],
    "report": ["job_1"],
    "methods": [],
    "threats": [],
    "download": ["job_1"],
    "upload": ["SPEC", "--purpose", "dataset"],
    "usage": [],
    "quotas": [],
    "workers": [],
    "datasets list": [],
    "datasets add": ["SPEC"],
    "datasets show": ["digits"],
    "datasets remove": ["digits"],
    "models list": [],
    "models add": ["SPEC"],
    "models show": ["digits"],
    "models remove": ["digits"],
    "keys list": [],
    "keys create": ["ci"],
    "keys revoke": ["key_1"],
    "projects list": [],
    "projects create": ["x"],
    "projects rename": ["proj_1", "x"],
    "projects delete": ["proj_1", "-y"],
    "webhooks list": [],
    "webhooks add": ["https://example.com"],
    "webhooks remove": ["wh_1"],
    "webhooks enable": ["wh_1"],
    "webhooks disable": ["wh_1"],
    "webhooks test": ["wh_1"],
    "webhooks deliveries": ["wh_1"],
    "webhooks redeliver": ["wh_1", "del_1"],
    "webhooks rotate": ["wh_1"],
}
LOCAL = {"serve", "api", "worker", "migrate", "recount", "doctor", "version"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Pauses of the client take no time."""
    clock = Clock()
    monkeypatch.setattr(retries_module, "time", clock)
    return clock


@pytest.fixture
def run(script: Script, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    monkeypatch.setenv("TEMPER_URL", script.url)
    monkeypatch.setenv("TEMPER_API_KEY", "tmp_key")

    def run(*arguments: str) -> int:
        given = [str(spec) if each == "SPEC" else each for each in arguments]
        monkeypatch.setattr(sys, "argv", ["temper", *given])
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return end.value.code

    yield run
    script.answers.clear()


def test_every_command_is_in_the_table_of_this_test() -> None:
    names = {name for panel in COMMANDS.values() for name in panel}
    for groups in GROUPS.values():
        for group, commands in groups.items():
            names |= {f"{group} {command.name}" for command in commands.registered_commands}
    assert names == ASKING.keys() | LOCAL


def test_every_command_takes_output_json() -> None:
    def check(command: Any, name: str) -> None:
        inner = getattr(command, "commands", {})
        for word, each in inner.items():
            check(each, f"{name} {word}")
        if not inner:
            assert any("--output" in option.opts for option in command.params), name

    check(get_command(app), "temper")


@pytest.mark.parametrize("command", ASKING)
def test_a_command_that_reaches_no_service_ends_with_3(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("TEMPER_URL", "http://127.0.0.1:1")
    assert run(*command.split(), *ASKING[command]) == 3


@pytest.mark.parametrize("command", ASKING)
def test_a_command_that_is_refused_ends_with_2(run: Callable[..., int], script: Script, command: str) -> None:
    script.expect(lambda request: request.answer(problem(409), status=409))
    assert run(*command.split(), *ASKING[command]) == 2


@pytest.mark.parametrize("command", ASKING)
def test_a_service_that_fails_ends_a_command_with_3(run: Callable[..., int], script: Script, command: str) -> None:
    script.expect(*[lambda request: request.answer(problem(500), status=500)] * 40)
    assert run(*command.split(), *ASKING[command]) == 3


@pytest.mark.parametrize("command", [*ASKING, *sorted(LOCAL)])
def test_a_command_line_that_is_wrong_ends_with_2(run: Callable[..., int], command: str) -> None:
    assert run(*command.split(), "--no-such-option") == 2


@pytest.mark.parametrize(
    ("status", "expected"), [("succeeded", 0), ("failed", 1), ("cancelled", 1), ("running", 4), ("paused", 75)]
)
def test_waiting_ends_by_the_status_of_the_job(
    run: Callable[..., int], script: Script, status: str, expected: int
) -> None:
    job = job_json(status=status, is_terminal=status not in ("running", "paused"), spec={"kind": "x", "dataset": "y"})
    script.expect(lambda request: request.answer(job))
    assert run("wait", "job_1", "--timeout", "0", "--output", "json") == expected


@pytest.mark.parametrize(("status", "expected"), [("succeeded", 0), ("failed", 1), ("running", 4), ("paused", 75)])
def test_watching_ends_by_the_status_of_the_job(
    run: Callable[..., int], script: Script, monkeypatch: pytest.MonkeyPatch, status: str, expected: int
) -> None:
    monkeypatch.setattr(retries_module, "time", time)
    is_over = status in ("succeeded", "failed")
    end = "event: end\ndata: {}\n\n" if is_over else ": ping\n\n"

    def tell_at_last(request: Request) -> None:
        time.sleep(0 if is_over else 0.15)
        request.answer(job_json(status=status, is_terminal=is_over))

    script.expect(lambda request: request.stream(end), *[tell_at_last] * 2)
    assert run("watch", "job_1", "--timeout", "0.1", "--output", "json") == expected


def test_every_error_of_the_client_has_a_status_of_the_table() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.TemperError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert getattr(kind, "exit_status", None) in set(ExitStatus)


def test_a_run_that_cannot_be_told_from_its_input_is_a_failed_one() -> None:
    """What only the run itself shows is no fault of the request."""
    failed = {
        each.code
        for each in vars(user_errors).values()
        if isinstance(each, type) and issubclass(each, user_errors.UserError) and each.exit_status == ExitStatus.FAILED
    }
    assert failed == {"diverged", "out_of_memory", "over_limit", "disk_full"}


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs" / "how-to" / "exit-statuses.md").read_text()
    rows = dict(
        line.strip("|").split("|", 1) for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()
    )
    told = {int(number): meaning.strip() for number, meaning in rows.items()}
    assert told == {int(status): f"{status.meaning[0].upper()}{status.meaning[1:]}." for status in ExitStatus}


@pytest.mark.parametrize("command", [["client", "--help"], ["core", "--help"]])
def test_help_has_the_table(command: list[str]) -> None:
    environment = os.environ | {"COLUMNS": "200"}
    shown = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert shown.returncode == 0
    text = " ".join(shown.stdout.split())
    for line in table_lines():
        assert " ".join(line.split()) in text


@pytest.mark.parametrize("output", ["text", "json"])
def test_output_that_nothing_reads_ends_quietly(script: Script, output: str) -> None:
    page = {"object": "list", "data": [job_json()] * 200, "has_more": False, "first_id": "job_1", "last_id": "job_1"}
    script.expect(lambda request: request.answer(page))
    environment = os.environ | {"TEMPER_URL": script.url, "TEMPER_API_KEY": "tmp_key"}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "client", "list", "--limit", "200", "--output", output]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_run_of_the_library_ends_by_the_table(tmp_path: Path) -> None:
    from core.__main__ import main as run_core

    assert run_core(["finetune", "--base-model", "no-such", "--output", str(tmp_path / "x"), "--json"]) == 2
