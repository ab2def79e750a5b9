"""The Python client against a server that fails as told: what it sends again, takes up again, and gives up."""

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from app.schemas.checkpoints import Checkpoint
from client import (
    BadDownload,
    CannotWrite,
    NoCheckpoint,
    Refused,
    ServiceFailed,
    StillRunning,
    Temper,
    Unreachable,
    Unreadable,
)
from client.connection import Connection
from client.credentials import Credentials
from client.resources.checkpoints import download_file
from core.schema.spec import FineTuneSpec
from tests.support.scripted_service import Request, Script, job_json, scripted_server
from tests.support.servers import free_port

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def event(seq: int) -> str:
    stamped = {"seq": seq, "created_at": "2026-11-23T00:00:00Z", "type": "entered", "data": {"phase": "training"}}
    return f"event: entered\nid: {seq}\ndata: {json.dumps(stamped)}\n\n"


def problem(status: int, **fields: object) -> dict[str, object]:
    told = {"type": "/problems/x", "title": "X", "status": status, "code": "x", "detail": "no", "instance": "/jobs"}
    return {**told, "request_id": "req_1", "errors": [], **fields}


def page_json(job_id: str, *, has_more: bool) -> dict[str, object]:
    ends = {"first_id": job_id, "last_id": job_id}
    return {"object": "list", "data": [job_json(id=job_id)], "has_more": has_more, **ends}


def checkpoint(request: Request) -> None:
    request.answer(
        {
            "id": "ckpt_1",
            "object": "checkpoint",
            "job_id": "job_1",
            "attempt": 1,
            "created_at": "2026-11-23T00:00:00Z",
            "step": 1,
            "epoch": 1.0,
            "format": "safetensors",
            "size": len(CONTENT),
            "sha256": SHA256,
            "download": "/checkpoints/ckpt_1/download",
        }
    )


def test_one_submit_is_one_idempotency_key_however_often_it_is_sent(temper: Temper, script: Script) -> None:
    script.expect(
        lambda request: request.answer(problem(503), status=503),
        Request.hang_up,
        lambda request: request.answer(job_json(), status=201),
        lambda request: request.answer(job_json(), status=201),
    )
    temper.jobs.submit({"base_model": "digits-cnn-linf"})
    temper.jobs.submit(FineTuneSpec(base_model="digits-cnn-linf"))
    first, second, third, other = [request.headers["Idempotency-Key"] for request in script.requests]
    assert first == second == third != other
    assert json.loads(script.requests[3].body)["eps"]["linf"] == 0.15
    assert script.requests[0].headers["Authorization"] == "Bearer tmp_key"


def test_refusal_tells_each_field_and_its_remedy(temper: Temper, script: Script) -> None:
    errors = [
        {"pointer": "/eps/linf", "code": "x", "detail": "too large"},
        {"pointer": "", "code": "x", "detail": "odd"},
    ]
    script.expect(lambda request: request.answer(problem(422, errors=errors), status=422))
    with pytest.raises(Refused) as refusal:
        temper.jobs.submit({})
    assert str(refusal.value) == "eps.linf: too large\nbody: odd"
    assert refusal.value.exit_status == 2


def test_refusal_without_a_problem_document_is_told_all_the_same(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.send(b"<html>", status=403))
    with pytest.raises(Refused, match="answered 403 Forbidden"):
        temper.jobs.get("job_1")


def test_failure_of_the_service_names_the_request_to_look_for_in_its_log(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(problem(500, request_id="req_7"), status=500))
    with pytest.raises(ServiceFailed, match="req_7"):
        temper.jobs.get("job_1")


def test_an_unreachable_service_is_reported_with_the_remedy(script: Script) -> None:
    with (
        Temper("http://127.0.0.1:1", "tmp_key", patience=0.3) as temper,
        pytest.raises(Unreachable, match="temper serve"),
    ):
        temper.jobs.get("job_1")


def test_another_server_is_told_from_temper(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.send(b"<html>hello</html>"))
    with pytest.raises(Unreadable, match="TEMPER_URL"):
        temper.jobs.get("job_1")


def test_newer_service_is_understood_as_far_as_it_goes(temper: Temper, script: Script) -> None:
    counts = {"l1": {"seen": 2, "robust": 1, "new": 1}}
    progress = {
        "step": 1, "total_steps": 2, "epoch": 0.5, "loss": None, "learning_rate": 0.1, "norm": "l1", "counts": counts,
        "subject": None, "attack": None, "threat": None, "attacks_done": 0, "attacks_total": 0, "fraction": 0.5,
        "seconds_remaining": 1.0, "new": {},
    }  # fmt: skip
    script.expect(lambda request: request.answer(job_json(status="frozen", progress=progress, new=[1])))
    job = temper.jobs.get("job_1")
    assert job.status == "frozen"
    assert job.progress is not None
    assert job.progress.counts["l1"].robust == 1


def test_list_goes_through_all_pages(temper: Temper, script: Script) -> None:
    script.expect(
        lambda request: request.answer(page_json("job_2", has_more=True)),
        lambda request: request.answer(page_json("job_1", has_more=False)),
    )
    assert [job.id for job in temper.jobs.list(status="queued")] == ["job_2", "job_1"]
    assert [request.path for request in script.requests] == ["/jobs?status=queued", "/jobs?status=queued&after=job_2"]


def test_strange_id_stays_one_part_of_the_path(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(job_json()))
    temper.jobs.get("../models?x")
    assert script.requests[0].path == "/jobs/..%2Fmodels%3Fx"


def test_wait_asks_until_the_job_has_ended(temper: Temper, script: Script) -> None:
    script.expect(
        lambda request: request.answer(job_json(status="running")),
        lambda request: request.answer(job_json(status="exploded", is_terminal=True)),
    )
    assert temper.jobs.wait("job_1").status == "exploded"


def test_wait_gives_up_when_its_time_is_over(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(job_json(status="running")))
    with pytest.raises(StillRunning, match="goes on"):
        temper.jobs.wait("job_1", timeout=0)


def test_broken_stream_goes_on_where_it_broke_and_each_event_comes_once(temper: Temper, script: Script) -> None:
    script.expect(
        lambda request: request.stream("retry: 3000\n\n" + event(1) + event(2) + event(3)[:40]),
        Request.hang_up,
        lambda request: request.answer(problem(503), status=503),
        lambda request: request.stream(": ping\n\n" + event(3)),
        lambda request: request.stream(event(4) + "event: end\ndata: {}\n\n"),
    )
    assert [item.seq for item in temper.jobs.stream("job_1")] == [1, 2, 3, 4]
    assert [request.headers["Last-Event-ID"] for request in script.requests] == ["0", "2", "2", "2", "3"]


def test_refused_stream_is_not_tried_again(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(problem(404), status=404))
    with pytest.raises(Refused):
        list(temper.jobs.stream("job_1"))


def test_broken_log_goes_on_where_it_broke_and_each_byte_comes_once(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.resources.log.SILENCE", 0.3)

    def fall_silent(request: Request) -> None:
        request.send("bé".encode()[:2], announced=99, X_Log_Place="2:101")
        time.sleep(1)

    script.expect(
        lambda request: request.send(b"a", announced=99, X_Log_Place="2:100"),
        Request.hang_up,
        lambda request: request.answer(problem(503), status=503),
        fall_silent,
        lambda request: request.send("é".encode()[1:], X_Log_Place="2:103"),
        lambda request: request.answer(job_json(status="running")),
        lambda request: request.send(b"c\n", X_Log_Place="2:104"),
        lambda request: request.answer(job_json(status="failed", is_terminal=True)),
        lambda request: request.send(b"d\n", X_Log_Place="2:106"),
    )
    with Temper(script.url, "tmp_key", timeout=20) as temper:
        assert "".join(temper.jobs.logs("job_1", tail=3, follow=True)) == "abéc\nd\n"
    asked = [parse_qs(urlsplit(request.path).query) for request in script.requests if "/logs" in request.path]
    assert asked[0] == {"tail": ["3"], "follow": ["true"]}
    places = [query["after"] for query in asked[1:] if query.keys() == {"after", "follow"}]
    assert places == [["2:101"], ["2:101"], ["2:101"], ["2:103"], ["2:104"], ["2:106"]]


def test_log_of_a_service_that_does_not_say_where_it_begins_is_not_guessed_at(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.send(b"a\n"))
    with pytest.raises(Unreadable, match="older than this client"):
        list(temper.jobs.logs("job_1", follow=True))


def test_broken_download_goes_on_where_it_broke(temper: Temper, script: Script, tmp_path: Path) -> None:
    half = len(CONTENT) // 2

    def rest(request: Request) -> None:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        request.send(CONTENT[start:], status=206)

    script.expect(
        lambda request: request.answer(job_json(checkpoint="ckpt_1")),
        checkpoint,
        lambda request: request.send(CONTENT[:half], announced=len(CONTENT)),
        rest,
    )
    assert temper.checkpoints.download("job_1", tmp_path) == tmp_path / "ckpt_1.safetensors"
    assert (tmp_path / "ckpt_1.safetensors").read_bytes() == CONTENT
    assert script.requests[3].headers["If-Range"] == f'"{SHA256}"'
    assert script.requests[3].headers["Range"] == f"bytes={half}-"


def test_a_file_that_is_there_is_not_sent_again(temper: Temper, script: Script, tmp_path: Path) -> None:
    (tmp_path / "robust").write_bytes(CONTENT)
    script.expect(checkpoint, lambda request: request.send(b"", status=304))
    assert temper.checkpoints.download("ckpt_1", tmp_path / "robust").read_bytes() == CONTENT
    assert script.requests[1].headers["If-None-Match"] == f'"{SHA256}"'
    assert [path.name for path in tmp_path.iterdir()] == ["robust"]


def test_another_file_under_that_name_is_replaced(temper: Temper, script: Script, tmp_path: Path) -> None:
    (tmp_path / "robust").write_bytes(b"other")
    script.expect(checkpoint, lambda request: request.send(CONTENT))
    assert temper.checkpoints.download("ckpt_1", tmp_path / "robust").read_bytes() == CONTENT


def test_a_download_starts_over_when_the_service_sends_the_whole_file(
    temper: Temper, script: Script, tmp_path: Path
) -> None:
    script.expect(
        checkpoint,
        lambda request: request.send(CONTENT[:1000], announced=len(CONTENT)),
        lambda request: request.send(CONTENT),
    )
    assert temper.checkpoints.download("ckpt_1", tmp_path / "robust").read_bytes() == CONTENT


def test_a_download_from_the_store_resumes_there_without_the_api_key(
    temper: Temper, script: Script, tmp_path: Path
) -> None:
    half = len(CONTENT) // 2
    with scripted_server() as store:
        there = {"Location": f"{store.url}/bucket/key?X-Amz-Signature=secret", "X_Checksum_Sha256": SHA256}
        send_there = [lambda request: request.send(b"", status=307, **there)] * 3
        script.expect(checkpoint, *send_there)
        store.expect(
            lambda request: request.send(CONTENT[:half], announced=len(CONTENT)),
            Request.hang_up,
            lambda request: request.send(CONTENT[half:], status=206),
        )
        assert temper.checkpoints.download("ckpt_1", tmp_path / "robust").read_bytes() == CONTENT
        assert [request.headers.get("Range") for request in store.requests] == [None, *[f"bytes={half}-"] * 2]
        for request in store.requests:
            assert "tmp_key" not in str(request)
            assert "If-Range" not in request.headers


def test_object_store_that_refuses_is_named_without_the_signature(
    temper: Temper, script: Script, tmp_path: Path
) -> None:
    with scripted_server() as store:
        there = {"Location": f"{store.url}/bucket/key?X-Amz-Signature=secret", "X_Checksum_Sha256": SHA256}
        script.expect(checkpoint, lambda request: request.send(b"", status=307, **there))
        store.expect(lambda request: request.send(b"<Error/>", status=403))
        with pytest.raises(Refused, match=f"{store.url}/bucket/key answered 403") as refusal:
            temper.checkpoints.download("ckpt_1", tmp_path / "robust")
    assert "secret" not in str(refusal.value)


def test_object_store_that_is_out_of_reach_is_told_from_the_service(script: Script, tmp_path: Path) -> None:
    there = {"Location": f"http://127.0.0.1:{free_port()}/x?X-Amz-Signature=secret", "X_Checksum_Sha256": SHA256}
    script.expect(*[lambda request: request.send(b"", status=307, **there)] * 9)
    connection = Connection(Credentials(url=script.url, api_key="tmp_key"), timeout=5)
    file = Checkpoint(
        id="ckpt_1",
        object="checkpoint",
        job_id="job_1",
        attempt=1,
        created_at=datetime(2026, 11, 23, tzinfo=UTC),
        step=1,
        epoch=1.0,
        format="safetensors",
        size=1,
        sha256=SHA256,
        download="/checkpoints/ckpt_1/download",
    )
    with pytest.raises(Unreachable, match=r"object store at http://127.*TEMPER_STORAGE_PROXY") as failure:
        download_file(connection, file, tmp_path / "robust", patience=0.3)
    connection.close()
    assert "secret" not in str(failure.value)


def test_damaged_download_leaves_nothing_behind(temper: Temper, script: Script, tmp_path: Path) -> None:
    script.expect(checkpoint, lambda request: request.send(CONTENT[::-1]))
    with pytest.raises(BadDownload, match="download it again"):
        temper.checkpoints.download("ckpt_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_to_no_folder_is_told(temper: Temper, script: Script, tmp_path: Path) -> None:
    script.expect(checkpoint)
    with pytest.raises(CannotWrite, match="no/robust: No such file"):
        temper.checkpoints.download("ckpt_1", tmp_path / "no" / "robust")


def test_job_without_a_checkpoint_says_so(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(job_json(status="running")))
    with pytest.raises(NoCheckpoint, match="job_1 has no checkpoint yet: it is running"):
        temper.checkpoints.download("job_1", "x")
