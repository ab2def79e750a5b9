"""The `temper` command against a real service: what it prints, and how it exits."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from client.__main__ import main
from tests.support.live_service import Service, run_temper
from tests.support.webhook_receiver import receiver

Command = Callable[..., subprocess.CompletedProcess[str]]

# The smallest real job: one step of training, one attack per norm on ten points.
SMALL = {
    "kind": "train",
    "architecture": "digits-cnn",
    "dataset": "digits",
    "method": "nat",
    "epochs": 1,
    "train_examples": 64,
    "eps": {"linf": 0.15, "l1": 1.5},
    "evaluation": {"protocol": "fast", "examples": 10},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("spec") / "small.json"
    file.write_text(json.dumps(SMALL))
    return str(file)


@pytest.fixture(scope="module")
def job_id(service: Service, spec: str) -> str:
    """A job that has succeeded."""
    posted = service.temper("submit", spec, "--wait", "--set", "name=small", "--output", "json")
    assert posted.returncode == 0, posted
    return str(json.loads(posted.stdout)["id"])


@pytest.fixture
def temper(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in this process, where it starts faster."""
    monkeypatch.setenv("TEMPER_DATA_DIR", str(service.folder))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["temper", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    return run


def test_job_goes_from_submit_to_a_downloaded_checkpoint(temper: Command, job_id: str, tmp_path: Path) -> None:
    job = json.loads(temper("get", job_id, "--output", "json").stdout)
    assert (job["status"], job["name"], job["spec"]["epochs"]) == ("succeeded", "small", 1)
    downloaded = temper("download", job_id, "-o", str(tmp_path), "--output", "json")
    file = Path(json.loads(downloaded.stdout)["path"])
    assert file == tmp_path / f"{job['checkpoint']}.safetensors"
    assert file.stat().st_size > 100_000


def test_report_is_a_table(temper: Command, job_id: str) -> None:
    table = temper("report", job_id).stdout
    assert "accuracy in % on 10 test points, protocol fast" in table
    assert [line.split()[0] for line in table.splitlines()[2:6]] == ["clean", "linf", "l1", "union"]


def test_events_are_lines_in_order_and_do_not_wait(temper: Command, job_id: str) -> None:
    lines = [json.loads(line) for line in temper("events", job_id, "--output", "json").stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["type"] == "job.succeeded"
    assert temper("events", job_id, "-f", "--output", "json").stdout.splitlines()[-1] == json.dumps(
        lines[-1], separators=(",", ":")
    )
    assert "evaluating result" in temper("events", job_id).stdout


def test_watch_in_a_file_ends_with_the_table(temper: Command, job_id: str) -> None:
    watched = temper("watch", job_id)
    assert watched.returncode == 0
    assert watched.stdout.splitlines()[-1].startswith("union")


def test_list_shows_what_the_filters_leave(temper: Command, job_id: str) -> None:
    assert job_id in temper("list", "--status", "succeeded").stdout
    assert json.loads(temper("list", "--status", "paused", "--output", "json").stdout) == []
    refused = temper("list", "--status", "runing")
    assert refused.returncode == 2
    assert refused.stderr.startswith("status: ")


@pytest.mark.parametrize("what", ["models", "models list", "datasets", "datasets list", "methods", "threats"])
def test_catalogue_is_listed(temper: Command, what: str) -> None:
    command = what.split()
    assert "digits" in temper(*command).stdout or what in ("methods", "threats")
    assert json.loads(temper(*command, "--output", "json").stdout)[0]["description"]


def test_wait_exits_with_1_when_a_job_has_not_succeeded(temper: Command, spec: str, job_id: str) -> None:
    posted = temper("submit", spec, "--set", "epochs=1000", "--set", "train_examples=null", "--output", "json")
    other = json.loads(posted.stdout)["id"]
    waited = temper("wait", other, "--timeout", "0")
    assert (waited.returncode, waited.stderr) == (4, f"{other} has not ended in time; it goes on\n")
    assert temper("watch", other, "--timeout", "0.2").returncode == 4
    assert temper("logs", "-f", other, "--timeout", "0.2").returncode == 4
    assert json.loads(temper("cancel", other, "--output", "json").stdout)["status"] in (
        "cancelling",
        "cancelled",
    )
    assert temper("wait", job_id, other).returncode == 1
    assert temper("wait", job_id).returncode == 0


def test_dry_run_shows_the_resolved_spec_and_stores_nothing(temper: Command, spec: str) -> None:
    before = temper("list", "--output", "json").stdout
    answer = json.loads(temper("submit", spec, "--dry-run", "--output", "json").stdout)
    assert answer["spec"]["schedule"] == "one-cycle"
    assert temper("list", "--output", "json").stdout == before
    assert "\nestimate: " in temper("submit", spec, "--dry-run").stdout


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("epoch=2", "epoch: there is no field 'epoch' here; did you mean 'epochs'?"),
        ("eps.linf=38", "eps.linf: "),
        ("eps=8/255", "eps: "),
    ],
)
def test_bad_field_is_named_and_exits_with_2(temper: Command, spec: str, change: str, line: str) -> None:
    refused = temper("submit", spec, "--set", change)
    assert refused.returncode == 2
    assert refused.stderr.startswith(line)
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        ("{", [], "is not JSON"),
        ('{"seed": NaN}', [], "seed: NaN is not a JSON value"),
        ('{"epochs": 1, "epochs": 7}', [], "epochs: give it once"),
        ("[]", [], "is not one JSON object"),
        ("{}", ["--set", "epochs"], "write KEY=VALUE"),
        ('{"dataset": "digits"}', ["--set", "dataset.steps=3"], "set dataset as a whole"),
    ],
)
def test_spec_that_cannot_be_read_is_told(
    temper: Command, tmp_path: Path, text: str, change: list[str], reason: str
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(text)
    refused = temper("submit", str(file), *change)
    assert refused.returncode == 2
    assert reason in " ".join(refused.stderr.replace("│", " ").split())


def test_unknown_job_exits_with_2(temper: Command) -> None:
    refused = temper("get", "job_nobody")
    assert (refused.returncode, refused.stderr) == (2, "there is no job 'job_nobody' in this project\n")


def test_unknown_job_is_told_before_it_is_watched(temper: Command) -> None:
    assert temper("watch", "nope").stdout == ""


def test_a_job_is_named_by_its_name_and_as_the_latest(temper: Command, spec: str, job_id: str) -> None:
    def id_of(handle: str) -> str:
        return str(json.loads(temper("get", handle, "--output", "json").stdout)["id"])

    assert id_of("small") == job_id
    one, other = (
        json.loads(temper("clone", "small", "--set", "name=twin", "--output", "json").stdout)["id"] for _ in range(2)
    )
    assert id_of("latest") == other
    refused = temper("get", "twin")
    assert refused.returncode == 2
    assert refused.stderr == f"several jobs are called 'twin'; name one by its id, such as {other}, the newest\n"
    unknown = temper("report", "triplet")
    assert unknown.returncode == 2
    assert "there is no job 'triplet' in this project: name a job by its id" in unknown.stderr
    for each in (one, other):
        temper("cancel", each)
        temper("wait", each)
        assert json.loads(temper("delete", each, "-y", "--output", "json").stdout) == {"deleted": each}
    assert id_of("latest") != other


def test_deletion_says_what_depends_on_the_job_and_asks(temper: Command, spec: str) -> None:
    first = json.loads(temper("submit", spec, "--set", "epochs=1000", "--output", "json").stdout)["id"]
    temper("cancel", first)
    temper("wait", first)
    again = json.loads(temper("retry", first, "--output", "json").stdout)["id"]
    temper("cancel", again)
    temper("wait", again)
    refused = temper("delete", first)
    assert refused.returncode == 2
    assert f"{first} is cancelled; its logs are deleted with it\n" in refused.stderr
    assert f"job {again} depends on it: it stays, and its origin is lost\n" in refused.stderr
    assert "add --yes" in refused.stderr
    assert temper("get", first).returncode == 0
    assert temper("delete", first, "--yes").stdout == f"{first} is deleted\n"
    assert temper("get", first).returncode == 2


def test_logs_as_json_are_a_string_a_line(temper: Command, job_id: str) -> None:
    lines = temper("logs", job_id).stdout.splitlines()
    assert lines
    assert [json.loads(line) for line in temper("logs", job_id, "--output", "json").stdout.splitlines()] == lines


def test_version_is_an_option_too(temper: Command) -> None:
    assert temper("--version").stdout.startswith("temper ")


def test_answer_that_cannot_be_written_is_told(service: Service) -> None:
    command = [sys.executable, "-m", "client", "models"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=service.environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "cannot write to standard output: No space left on device\n")


def test_wrong_key_is_told_where_keys_come_from(temper: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_API_KEY", "tmp_wrong")
    refused = temper("list")
    assert refused.returncode == 2
    assert "temper takes the key from TEMPER_API_KEY" in refused.stderr


def test_no_service_is_told_with_the_remedy() -> None:
    environment = os.environ | {"TEMPER_URL": "http://127.0.0.1:1", "TEMPER_API_KEY": "tmp_key"}
    refused = run_temper("list", environment=environment)
    assert refused.returncode == 3
    assert refused.stderr.startswith("no answer from http://127.0.0.1:1")
    assert "temper serve" in refused.stderr
    assert json.loads(run_temper("version", "--output", "json", environment=environment).stdout)["service"] is None


def test_a_key_is_made_used_and_revoked(temper: Command, monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    made = json.loads(temper("keys", "create", "ci", "--scope", "jobs:read", "--days", "2", "--output", "json").stdout)
    listed = temper("keys", "list").stdout
    assert made["prefix"] in listed
    assert made["secret"] not in listed
    monkeypatch.setenv("TEMPER_URL", service.url)
    with monkeypatch.context() as other:
        other.setenv("TEMPER_API_KEY", made["secret"])
        assert temper("list").returncode == 0
        refused = temper("projects", "list")
        assert (refused.returncode, "admin" in refused.stderr) == (2, True)
    assert temper("keys", "revoke", made["id"]).returncode == 0
    monkeypatch.setenv("TEMPER_API_KEY", made["secret"])
    assert "revoked" in temper("list").stderr


def test_a_project_is_made_and_a_key_to_it(temper: Command) -> None:
    project = json.loads(temper("projects", "create", "vision", "--output", "json").stdout)
    assert project["id"] in temper("projects", "list").stdout
    secret, told = temper("keys", "create", "alice", "--project", project["id"]).stdout.splitlines()
    assert secret.startswith("tmp_")
    assert "jobs:read jobs:write files:write" in told
    (key,) = json.loads(temper("keys", "list", "--project", project["id"], "--output", "json").stdout)
    assert key["project_id"] == project["id"]


def test_a_project_is_renamed_and_limited(temper: Command) -> None:
    project = json.loads(temper("projects", "create", "vision", "--output", "json").stdout)["id"]
    assert temper("projects", "rename", project, "sight").stdout == f"{project} is called sight\n"
    assert "sight" in temper("projects", "list").stdout
    table = temper("quotas", "--project", project, "--set", "running_jobs=2").stdout
    assert [line.split() for line in table.splitlines() if "running_jobs" in line] == [["running_jobs", "0", "2"]]
    states = json.loads(temper("quotas", "--project", project, "--set", "running_jobs=none", "--output", "json").stdout)
    assert {"quota": "running_jobs", "limit": None, "used": 0.0} in states
    assert json.loads(temper("quotas", "--output", "json").stdout)[0]["quota"] == "queued_jobs"
    for wrong, said in (("running_jobs", "write QUOTA=LIMIT"), ("walking_jobs=2", "quotas.walking_jobs")):
        refused = temper("quotas", "--project", project, "--set", wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True)
    assert temper("quotas", "--set", "running_jobs=2").returncode == 2


def test_usage_is_told_for_a_time_and_divided(temper: Command, job_id: str) -> None:
    used = json.loads(temper("usage", "--by", "kind", "--output", "json").stdout)
    (group,) = (each for each in used["groups"] if each["group"] == "train")
    assert 0 < group["worker_seconds"] <= used["worker_seconds"]
    assert used["jobs"]["succeeded"] >= 1
    assert job_id
    lines = temper("usage", "--by", "kind").stdout.splitlines()
    assert [line.split()[0] for line in lines if line and not line.startswith(" ")][:2] == ["time", "jobs"]
    assert any(line.startswith("train") for line in lines)
    nothing = temper("usage", "--from", "2026-01-01", "--to", "2026-01-02", "--output", "json")
    assert json.loads(nothing.stdout)["jobs"] == {}
    refused = temper("usage", "--from", "2020-01-01")
    assert (refused.returncode, "choose a time" in refused.stderr) == (2, True)


def test_a_project_is_deleted_after_it_was_said_what_it_has(temper: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    project = json.loads(temper("projects", "create", "gone", "--output", "json").stdout)["id"]
    temper("keys", "create", "x", "--project", project)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    asked = temper("projects", "delete", project)
    assert asked.returncode == 1
    assert f"{project}: the project has 1 valid keys" in asked.stderr
    assert project in temper("projects", "list").stdout
    assert temper("projects", "delete", project, "--yes").stdout == f"{project} is deleted\n"
    assert project not in temper("projects", "list").stdout


def test_a_webhook_is_added_tested_and_removed(temper: Command) -> None:
    with receiver(204, 500, 204) as server:
        url = server.url("localhost")
        secret, told = temper(
            "webhooks", "add", url, "--event", "job.failed", "--description", "CI"
        ).stdout.splitlines()
        hook = told.split()[3]
        assert f"{hook} receives job.failed" in told
        arrived = temper("webhooks", "test", hook)
        assert arrived.returncode == 0
        assert "is succeeded, answered 204" in arrived.stdout
        assert Webhook(secret).verify(server.got[0].body, server.got[0].headers)["type"] == "webhook.test"
        refused = temper("webhooks", "test", hook, "--output", "json")
        assert (refused.returncode, json.loads(refused.stdout)["error"]) == (1, "answered 500")
        listed = temper("webhooks", "list").stdout
        assert hook in listed
        assert secret not in listed
        (pending,) = json.loads(
            temper("webhooks", "deliveries", hook, "--status", "pending", "--output", "json").stdout
        )
        assert temper("webhooks", "redeliver", hook, pending["id"]).returncode == 0
        assert server.wait_for(3)[2].id == pending["id"]
    assert temper("webhooks", "deliveries", hook).stdout.count("webhook.test") == 2
    assert temper("webhooks", "rotate", hook).stdout.splitlines()[0] != secret
    assert temper("webhooks", "disable", hook).stdout == f"{hook} is disabled\n"
    assert "is disabled" in temper("webhooks", "test", hook).stderr
    assert temper("webhooks", "enable", hook).returncode == 0
    assert temper("webhooks", "remove", hook).stdout == f"{hook} is removed\n"
    assert temper("webhooks", "list").stdout == "no webhooks\n"
    refused = temper("webhooks", "add", "https://10.0.0.1/")
    assert (refused.returncode, "not on the public internet" in refused.stderr) == (2, True)


def test_a_job_that_names_a_webhook_shows_its_secret_once(temper: Command, spec: str) -> None:
    url = "https://93.184.216.34/hook"
    posted = temper("submit", spec, "--set", f"webhook.url={url}").stdout.splitlines()
    assert url in posted[1]
    assert posted[2].startswith("whsec_")
    job = posted[0].split()[0]
    temper("cancel", job)
    assert "whsec_" not in temper("get", job, "--output", "json").stdout
    clone = temper("clone", job, "--set", "priority=1").stdout
    assert "whsec_" not in clone
    temper("cancel", clone.split()[0])
    (hook,) = json.loads(temper("webhooks", "list", "--output", "json").stdout)
    assert temper("webhooks", "remove", hook["id"]).returncode == 0


def test_a_job_is_cloned_with_changes_and_shows_its_attempts_and_log(temper: Command, job_id: str) -> None:
    attempts = json.loads(temper("attempts", job_id, "--output", "json").stdout)
    assert [(attempt["number"], attempt["outcome"]) for attempt in attempts] == [(1, "succeeded")]
    assert "succeeded" in temper("attempts", job_id).stdout
    assert "attempt 1 begins" in temper("logs", job_id).stdout
    assert temper("logs", job_id, "--tail", "1", "-f").stdout.count("\n") == 1
    made = json.loads(temper("clone", job_id, "--set", "seed=3", "--set", "name=null", "--output", "json").stdout)
    assert (made["cloned_from"], made["spec"]["seed"], made["spec"]["name"]) == (job_id, 3, "")
    assert temper("cancel", made["id"]).returncode == 0
    temper("wait", made["id"])
    again = json.loads(temper("retry", made["id"], "--output", "json").stdout)
    assert again["retry_of"] == made["id"]
    assert json.loads(temper("retry", made["id"], "--output", "json").stdout)["id"] == again["id"]
    for action in ("pause", "resume", "stop"):
        refused = temper(action, job_id)
        assert refused.returncode == 2
        assert f"cannot be given the action {action}" in refused.stderr
    temper("cancel", again["id"])
    temper("wait", again["id"])
    assert temper("delete", made["id"], "-y").stdout == f"{made['id']} is deleted\n"
    assert temper("get", made["id"]).returncode == 2
