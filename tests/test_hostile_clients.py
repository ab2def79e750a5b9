"""Clients that mean harm get a clean refusal or a closed connection, and the API's memory stays as it was."""

import json
import re
import socket
import time
from pathlib import Path

import pytest

from app.http.connections import allow_many_files
from app.main import MAX_BODY_BYTES
from tests.support.native import instance

MEGABYTE = 2**20
GROWTH = 48 * MEGABYTE
"""What an API process may grow by; 1 GB is sent of the 10 that are announced."""


@pytest.fixture(scope="module")
def temper(tmp_path_factory):
    with instance(tmp_path_factory.mktemp("temper")) as temper:
        temper.start_api()
        temper.key = json.loads(temper.credentials.read_text())["api_key"]
        yield temper


@pytest.fixture(autouse=True)
def unharmed(temper):
    """After each attack the API answers, and is not larger than before."""
    with temper.client() as api:
        assert api.get("/jobs").status_code == 200
        before = memory(temper)
        yield
        assert api.get("/jobs").status_code == 200
    assert memory(temper) - before < GROWTH


def memory(temper):
    status = Path(f"/proc/{temper.processes[0].pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def connect(temper):
    port = int(temper.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def head(temper, *lines, path="/jobs"):
    start = f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {temper.key}", "Content-Type: application/json"
    return "\r\n".join([*start, *lines, "", ""]).encode()


def status_of(connection):
    """The status of the answer; None where the connection was closed without one."""
    try:
        answer = connection.recv(65536)
    except ConnectionError:
        return None
    return int(answer.split()[1]) if answer else None


def pour(connection, chunk, *, most):
    """Send a chunk again and again until nobody takes it; give how many bytes were taken."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass
    return sent


@pytest.mark.parametrize("declared", [True, False])
def test_ten_gigabytes_are_cut_off_at_the_limit(temper, declared):
    length = f"Content-Length: {10 * 2**30}" if declared else "Transfer-Encoding: chunked"
    content = b" " * MEGABYTE
    chunk = content if declared else b"%x\r\n" % len(content) + content + b"\r\n"
    with connect(temper) as connection:
        connection.sendall(head(temper, length))
        connection.sendall(chunk + chunk)
        assert status_of(connection) == 413
        # What the client goes on to send is thrown away.
        pour(connection, chunk, most=2**30)


def test_json_that_is_deeper_than_anything_is_refused(temper):
    for depth in (1_000, 10_000, 60_000):
        for opening in (b"[", b'{"a":'):
            body = (opening * depth)[: MAX_BODY_BYTES - 1]
            with connect(temper) as connection:
                connection.sendall(head(temper, f"Content-Length: {len(body)}") + body)
                assert status_of(connection) in (400, 422)


def test_a_million_headers_are_refused(temper):
    with connect(temper) as connection:
        sent = pour(connection, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000, most=8 * MEGABYTE)
        assert status_of(connection) in (None, 400, 431)
        assert sent < 8 * MEGABYTE


def seconds_to_answer(api):
    began = time.monotonic()
    assert api.get("/jobs").status_code == 200
    return time.monotonic() - began


def test_clients_that_never_finish_do_not_hold_up_others(temper):
    slow = [connect(temper) for _ in range(200)]
    try:
        for connection in slow[:100]:
            connection.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\n")
        for connection in slow[100:]:
            connection.sendall(head(temper, "Content-Length: 1000") + b"{")
        with temper.client() as api:
            for _ in range(5):
                for connection in slow[:100]:
                    connection.sendall(b"X-A: b\r\n")
                for connection in slow[100:]:
                    connection.sendall(b" ")
                assert seconds_to_answer(api) < 10
    finally:
        for connection in slow:
            connection.close()


def test_a_thousand_unfinished_heads_do_not_end_the_api(temper):
    allow_many_files()
    slow = []
    try:
        for _ in range(1_100):
            slow.append(connect(temper))
            slow[-1].sendall(b"GET /jobs HTTP/1.1\r\nHost: x\r\n")
        with temper.client() as api:
            for _ in range(5):
                assert seconds_to_answer(api) < 5
    finally:
        for connection in slow:
            connection.close()


def test_control_characters_of_forwarded_headers_reach_no_log(temper):
    with connect(temper) as connection:
        lines = (
            "GET /me HTTP/1.1",
            "Host: x",
            "X-Forwarded-For: 203.0.113.7\x1b[2Jfake\x01",
            "Connection: close",
            "",
            "",
        )
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        assert status_of(connection) in (400, 401)
    log = temper.log(0)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", log)
