"""Commands that follow a job outlast an outage of the service, say that they wait, and end at their deadline."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from client import StillRunning, Temper, Unreachable
from client import retries as retries_module
from tests.client.test_temper import event, problem
from tests.support.scripted_service import Request, Script, job_json

Follow = Callable[[Temper], object]

FOLLOWERS: dict[str, Follow] = {
    "wait": lambda temper: temper.jobs.wait("job_1").status,
    "watch": lambda temper: [item.seq for item in temper.jobs.stream("job_1")],
    "logs": lambda temper: "".join(temper.jobs.logs("job_1", follow=True)),
}


def _running(request: Request) -> None:
    request.answer(job_json(status="running"))


def _ended(request: Request) -> None:
    request.answer(job_json(status="succeeded", is_terminal=True))


BEFORE: dict[str, Callable[[Request], None]] = {
    "wait": _running,
    "watch": lambda request: request.stream(event(1)),
    "logs": lambda request: request.send(b"a", announced=99, X_Log_Place="1:0"),
}
AFTER: dict[str, list[Callable[[Request], None]]] = {
    "wait": [_ended],
    "watch": [lambda request: request.stream(event(2) + "event: end\ndata: {}\n\n")],
    "logs": [
        lambda request: request.send(b"b", X_Log_Place="1:1"),
        _ended,
        lambda request: request.send(b"", X_Log_Place="1:2"),
    ],
}
WHOLE = {"wait": "succeeded", "watch": [1, 2], "logs": "ab"}


class Clock:
    """A clock for the retries, on which pauses take no time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retries_module, "time", clock)
    return clock


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def temper(script: Script, said: list[str]) -> Iterator[Temper]:
    with Temper(script.url, "tmp_key", tell=said.append) as temper:
        yield temper


def _away_until(script: Script, clock: Clock, back_at: float) -> None:
    """Let the service answer 503 until a moment of the clock, and then as scripted."""

    def away(request: Request) -> None:
        if clock.now < back_at:
            script.answers.insert(0, away)
            request.answer(problem(503), status=503)
        else:
            script.answers.pop(0)(request)

    script.answers.append(away)


@pytest.mark.parametrize("way", FOLLOWERS)
def test_a_follower_outlasts_an_outage_of_ten_minutes_and_says_so(
    temper: Temper, script: Script, clock: Clock, said: list[str], way: str
) -> None:
    script.expect(BEFORE[way])
    _away_until(script, clock, clock.now + 600)
    script.expect(*AFTER[way])
    assert FOLLOWERS[way](temper) == WHOLE[way]
    waiting, back = said
    assert waiting == "the service does not answer; waiting for it, 15 minutes at the longest"
    assert back == "the service is back after 10 minutes"


@pytest.mark.parametrize("way", FOLLOWERS)
def test_a_follower_gives_up_after_a_quarter_of_an_hour(temper: Temper, script: Script, clock: Clock, way: str) -> None:
    script.expect(BEFORE[way])
    began = clock.now
    _away_until(script, clock, began + 3600)
    with pytest.raises(Exception, match="no") as failure:
        FOLLOWERS[way](temper)
    assert failure.value.exit_status == 3  # type: ignore[attr-defined]  # each is a TemperError
    assert 880 < clock.now - began <= 900


@pytest.mark.parametrize("way", ["watch", "logs"])
def test_patience_begins_when_a_stream_breaks_and_not_when_it_opened(
    temper: Temper, script: Script, clock: Clock, way: str
) -> None:
    def open_for_hours(request: Request) -> None:
        BEFORE[way](request)
        clock.now += 10_000

    script.expect(open_for_hours)
    _away_until(script, clock, clock.now + 10_300)
    script.expect(*AFTER[way])
    assert FOLLOWERS[way](temper) == WHOLE[way]


def test_a_service_that_never_answered_is_given_up_within_a_minute(clock: Clock) -> None:
    began = clock.now
    with Temper("http://127.0.0.1:1", "tmp_key") as temper, pytest.raises(Unreachable):
        temper.jobs.wait("job_1")
    assert clock.now - began <= 60


def test_a_short_outage_is_not_worth_a_message(temper: Temper, script: Script, clock: Clock, said: list[str]) -> None:
    script.expect(BEFORE["watch"])
    _away_until(script, clock, clock.now + 1)
    script.expect(*AFTER["watch"])
    assert FOLLOWERS["watch"](temper) == [1, 2]
    assert said == []


@pytest.mark.parametrize("way", ["watch", "logs"])
def test_a_quiet_stream_ends_at_the_deadline(temper: Temper, script: Script, way: str) -> None:
    done = threading.Event()

    def ping(request: Request) -> None:
        request.send(b": ping\n\n", announced=10_000, Content_Type="text/event-stream", X_Log_Place="1:0")
        while not done.wait(0.05):
            try:
                request.wfile.write(b": ping\n\n")
            except OSError:
                return

    script.expect(ping)
    followers = {
        "watch": lambda: list(temper.jobs.stream("job_1", timeout=0.4)),
        "logs": lambda: list(temper.jobs.logs("job_1", follow=True, timeout=0.4)),
    }
    began = time.monotonic()
    try:
        with pytest.raises(StillRunning, match="job_1 has not ended in time; it goes on"):
            followers[way]()
    finally:
        done.set()
    assert 0.3 < time.monotonic() - began < 3


def test_the_deadline_holds_while_the_service_is_away(temper: Temper, script: Script, clock: Clock) -> None:
    script.expect(_running)
    _away_until(script, clock, clock.now + 600)
    with pytest.raises(StillRunning) as ended:
        temper.jobs.wait("job_1", timeout=100)
    assert ended.value.exit_status == 4


def test_a_paused_job_is_told_from_a_running_one(temper: Temper, script: Script) -> None:
    script.expect(lambda request: request.answer(job_json(status="paused")))
    with pytest.raises(StillRunning, match="it is paused: temper resume job_1") as ended:
        temper.jobs.wait("job_1", timeout=0)
    assert ended.value.exit_status == 75
