"""Connections whose clients take too long are closed, and others are answered meanwhile."""

import contextlib
import socket
import time

import httpx2
import pytest

from app.http import connections
from tests.support.instance import add_key, calling, serving
from tests.support.native import instance

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture
def limits(monkeypatch):
    """Limits that a test can wait for."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(connections, name, value)

    change(HEAD_SECONDS=0.4, BODY_SECONDS=0.4, GRACE_SECONDS=0.05)
    return change


@pytest.fixture
def url(settings, database, limits):
    with serving(settings, database) as url:
        yield url


def connect(url):
    _, _, port = url.rpartition(":")
    return socket.create_connection(("127.0.0.1", int(port)), timeout=10)


def seconds_to_end(connection, *, sends=b"", every=0.05):
    """Send a byte now and then; give the seconds after which the server ends the connection, and what it has said."""
    began, said = time.monotonic(), b""
    connection.settimeout(every)
    while time.monotonic() - began < 10:
        with contextlib.suppress(TimeoutError):
            try:
                if sends:
                    connection.sendall(sends)
                received = connection.recv(65536)
            except ConnectionError:
                return time.monotonic() - began, said
            if not received:
                return time.monotonic() - began, said
            said += received
    raise AssertionError("the connection is still open")


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("start", [b"", b"GET /li", GET])
def test_a_head_that_does_not_end_is_not_waited_for_however_steadily_it_comes(url, start):
    with connect(url) as connection:
        connection.sendall(start)
        seconds, said = seconds_to_end(connection, sends=b"x" if start == GET else b"")
        assert 0.3 < seconds < 5
        assert said == b""


def test_the_head_of_a_later_request_has_the_same_time(url):
    with connect(url) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(GET)
        seconds, _ = seconds_to_end(connection, sends=b"x")
        assert 0.3 < seconds < 5


def test_a_head_that_ends_in_time_is_answered(url):
    with connect(url) as connection:
        for part in (GET, b"X-A: b\r\n", b"\r\n"):
            connection.sendall(part)
            time.sleep(0.1)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_comes_too_slowly_is_not_waited_for(url):
    with connect(url) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        seconds, said = seconds_to_end(connection, sends=b" ")
        assert 0.3 < seconds < 5
        assert said == b""


def test_a_body_at_a_steady_pace_may_take_longer(url, limits):
    limits(BODY_SECONDS=0.2, BODY_BYTES_PER_SECOND=1000)
    with connect(url) as connection:
        connection.sendall(POST + b"Content-Length: 3000\r\n\r\n")
        for _ in range(6):
            connection.sendall(b" " * 500)
            time.sleep(0.1)
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")


def test_beyond_a_number_of_unfinished_heads_the_oldest_make_room(url, limits):
    limits(HEAD_SECONDS=60, MOST_HEADS=20)
    with contextlib.ExitStack() as stack:
        heads = []
        for _ in range(100):
            heads.append(stack.enter_context(connect(url)))
            heads[-1].sendall(GET)
        time.sleep(0.2)
        # The next connections find the first ones old enough.
        for _ in range(3):
            assert httpx2.get(f"{url}/livez").status_code == 200
        still_open = [is_open(each) for each in heads]
        assert still_open == sorted(still_open)
        assert 15 <= sum(still_open) <= 20
        heads[-1].setblocking(True)
        heads[-1].sendall(b"\r\n")
        assert heads[-1].recv(65536).startswith(b"HTTP/1.1 200")


def test_connections_with_a_request_under_way_make_no_room(url, limits, settings, database, api):
    limits(HEAD_SECONDS=60, BODY_SECONDS=60, MOST_HEADS=5)
    with connect(url) as sending, contextlib.ExitStack() as stack:
        sending.sendall(POST + b"Content-Length: 10\r\n\r\n{")
        for _ in range(20):
            stack.enter_context(connect(url)).sendall(GET)
        time.sleep(0.2)
        httpx2.get(f"{url}/livez")
        sending.sendall(b"         ")
        assert sending.recv(65536).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("order", [0, 1])
def test_a_length_beside_chunks_is_refused_since_proxies_read_it_in_two_ways(url, order):
    lines = [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
    with connect(url) as connection:
        connection.sendall(POST + lines[order] + lines[1 - order] + b"\r\n0\r\n\r\n")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"connection: close" in answer.lower()


def test_an_answer_after_which_the_connection_closes_says_so(settings, database, project, monkeypatch):
    monkeypatch.setattr("app.http.rate_limits.Requests.count", lambda *_: 1 / 0)
    with serving(settings, database) as url, calling(url, add_key(database, project)) as api:
        answer = api.get("/jobs")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("trusted", "address"), [("", "127.0.0.1"), ("10.1.0.0/16, 127.0.0.1", "203.0.113.7")])
def test_an_address_is_believed_only_from_a_proxy_that_is_trusted(tmp_path, trusted, address):
    with instance(tmp_path, trusted_proxies=trusted) as temper:
        temper.start_api()
        with temper.client() as api:
            api.get("/jobs", headers={"X-Forwarded-For": "192.0.2.1, 203.0.113.7"})
        line = next(line for line in temper.log(0).splitlines() if '"GET /jobs' in line)
        assert f"{address}:" in line
        assert "192.0.2.1" not in line
