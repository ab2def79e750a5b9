"""What is logged can be read by programs, says what it is about, and has no secrets in it."""

import json
import logging
import re
import time

import pytest

from app.platform import logs
from app.platform.ids import new_id
from app.platform.redaction import redact
from app.platform.settings import Settings
from tests.support.instance import DIGITS
from tests.support.native import FAKE_WORKER, finish, instance
from tests.support.webhook_receiver import receiver

KEY = "tmp_AbCdEfGh_" + "0123456789abcdefABCDEFghijklmnop"
FIRST_KEY = "tmp_zYxWvUtS_" + "9876543210abcdefABCDEFghijklmnop"
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNATURE = "K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="
QUERY = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261125&X-Amz-Signature=5d672d79c15b13162d92"


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, s3_access_key_id="the-access-key", s3_secret_access_key="the-secret-of-the-key")


def written(settings, message, *args, name="app.test", error=None):
    record = logging.LogRecord(name, logging.INFO, __file__, 1, message, args, error and (type(error), error, None))
    return logs.formatter(settings).format(record)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"the key {KEY} is wrong", "the key tmp_AbCdEfGh_[redacted] is wrong"),
        (f"secret={WEBHOOK_SECRET}, kept", "secret=whsec_[redacted], kept"),
        (f"webhook-signature: v1,{SIGNATURE} v1,{SIGNATURE}", "webhook-signature: v1,[redacted] v1,[redacted]"),
        (f'GET "https://s3.example/b/k?{QUERY}" 200', 'GET "https://s3.example/b/k?[redacted]" 200'),
        (f"the query {QUERY.partition('&')[2]} alone", None),
        ("Authorization: Bearer whatever-it-is", "Authorization: Bearer [redacted]"),
        ("postgresql+psycopg://temper:pa55word@db/temper", "postgresql+psycopg://temper:[redacted]@db/temper"),
        ("signed with the-secret-of-the-key", "signed with [redacted]"),
        ("GET /jobs?after=job_1&limit=2 200", "GET /jobs?after=job_1&limit=2 200"),
        (
            "key_01M886EFXZZN3VM1EE71F514SH, http://127.0.0.1:8765",
            "key_01M886EFXZZN3VM1EE71F514SH, http://127.0.0.1:8765",
        ),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_taken_out_and_nothing_else(settings, log_format, text, left):
    line = written(settings.model_copy(update={"log_format": log_format}), "%s", text)
    assert not [secret for secret in (KEY, WEBHOOK_SECRET, SIGNATURE, "AKIDEXAMPLE", "5d672d79") if secret in line]
    if left:
        assert left in (json.loads(line)["event"] if log_format == "json" else line)


@pytest.mark.parametrize("beginning", ["?", "?a=1", "X-Amz-", "://a:", "Bearer+", "tmp_", "v1,"])
def test_a_long_line_of_what_secrets_begin_with_is_read_in_a_moment(beginning):
    began = time.monotonic()
    redact(beginning * 20_000)
    assert time.monotonic() - began < 5


def test_a_traceback_has_no_secrets_either(settings):
    for log_format in ("json", "console"):
        chosen = settings.model_copy(update={"log_format": log_format})
        line = written(chosen, "it failed", error=ValueError(f"{KEY} and {WEBHOOK_SECRET}"))
        assert "ValueError: tmp_AbCdEfGh_[redacted] and whsec_[redacted]" in line


def test_a_line_says_when_who_and_what_it_is_about(settings):
    with logs.about(request_id="req_1", job_id="job_1", attempt=2):
        line = json.loads(written(settings.model_copy(update={"log_format": "json"}), "step %d", 3))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "step 3",
        "level": "info",
        "logger": "app.test",
        "request_id": "req_1",
        "job_id": "job_1",
        "attempt": 2,
    }
    assert "request_id" not in json.loads(written(settings.model_copy(update={"log_format": "json"}), "x"))


def test_setting_up_twice_writes_every_line_once(settings, monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        logs.set_up(settings)
        logs.set_up(settings)
        logging.getLogger("app.test").info("once")
    finally:
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    assert capsys.readouterr().err.count("once") == 1


def test_probes_that_went_well_leave_no_line(settings, monkeypatch, capsys):
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    monkeypatch.setattr(root, "handlers", [])
    # A server in this process may have given these handlers of their own.
    for logger in (access.parent, access):
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "disabled", False)
        monkeypatch.setattr(logger, "level", logging.NOTSET)
    level = root.level
    try:
        logs.set_up(settings)
        for path, status in (("/readyz", 200), ("/livez", 200), ("/readyz", 503), ("/jobs", 200)):
            access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", path, "1.1", status)
    finally:
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    told = [re.findall(r"GET (\S+) HTTP/1.1\" (\d+)", line) for line in capsys.readouterr().err.splitlines()]
    assert told == [[("/readyz", "503")], [("/jobs", "200")]]


def test_the_logs_of_all_processes_have_no_secret_that_was_used(tmp_path, valkey_server):
    with (
        receiver() as hook,
        instance(
            tmp_path,
            *FAKE_WORKER,
            first_api_key=FIRST_KEY,
            log_format="json",
            broker_url=valkey_server.url,
            webhook_http=True,
            webhook_allow="127.0.0.1",
        ) as temper,
    ):
        temper.start_api()
        with temper.worker(), temper.client() as api:
            made = api.post("/webhooks", json={"url": hook.url()}).json()
            rotated = api.post(f"/webhooks/{made['id']}/rotate_secret").json()
            other_key = api.post("/api_keys", json={"name": "other"}).json()["secret"]
            job_id = api.post("/jobs", json=DIGITS, headers={"X-Request-Id": "mine"}).json()["id"]
            assert finish(api, job_id)["status"] == "succeeded"
            assert hook.wait_for(1, seconds=30)
            # Where a caller puts a secret in the address, the access log would have it.
            api.get(f"/jobs/{job_id}", params={"key": other_key, "secret": rotated["secret"]})
            api.get(f"/checkpoints/{new_id('ckpt')}/download?{QUERY}")
            api.get("/jobs", headers={"Authorization": f"Bearer {KEY}"})
        signatures = [part.partition(",")[2] for got in hook.got for part in got.headers["webhook-signature"].split()]
    # From the start to the end of each process: both have been told to stop by now.
    texts = [temper.log(number) for number in range(len(temper.processes))]
    secrets = [FIRST_KEY, KEY, other_key, made["secret"], rotated["secret"], "AKIDEXAMPLE", "5d672d79", *signatures]
    secrets += [part for secret in secrets[:3] for part in secret.split("_")[2:]]
    for text in texts:
        assert not [secret for secret in secrets if secret in text]
    of_api, of_worker = ([json.loads(line) for line in text.splitlines()] for text in texts)
    posted = [line for line in of_api if line.get("request_id") == "mine"]
    assert [line["logger"] for line in posted] == ["uvicorn.access"]
    assert '"POST /jobs HTTP/1.1" 201' in posted[0]["event"]
    assert "?[redacted]" in "".join(line["event"] for line in of_api)
    assert any(line.get("job_id") == job_id and line["logger"] == "uvicorn.access" for line in of_api)
    assert any(line["logger"].startswith("celery") for line in of_worker)
    attempt = [line for line in of_worker if line.get("job_id") == job_id]
    assert {line["attempt"] for line in attempt} == {1}
    assert any(line["event"].endswith("attempt 1 begins") for line in attempt)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("text", ["a\nERROR forged", "\x1b[2J", "\x9b31m", "a\rb", "a\u2028b", "\x00"])
def test_what_a_client_sends_writes_no_line_of_its_own(settings, log_format, text):
    line = written(settings.model_copy(update={"log_format": log_format}), "from %s", text)
    shown = json.loads(line)["event"] if log_format == "json" else line
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown.rstrip("\n"))
    assert line.rstrip("\n").count("\n") == 0
