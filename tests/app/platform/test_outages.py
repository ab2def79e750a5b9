"""An outage is told once, then once a minute, and once when it is over."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.platform import outages
from app.platform.outages import Outage


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(outages, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def outage(caplog):
    caplog.set_level(logging.INFO)
    return Outage(logging.getLogger("app.test"), "the database is out of reach", "the database is back")


def test_an_outage_is_told_once_then_each_minute_then_its_end(outage, clock, caplog):
    for _second in range(150):
        outage.lasts("refused")
        clock[0] += 1
    outage.ends()
    outage.ends()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the database is out of reach: refused"),
        ("WARNING", "the database is out of reach, for 60 s already: refused"),
        ("WARNING", "the database is out of reach, for 120 s already: refused"),
        ("INFO", "the database is back, after 150 s"),
    ]


def test_the_next_outage_is_told_again(outage, clock, caplog):
    for _time in range(2):
        outage.lasts("refused")
        clock[0] += 2
        outage.ends()
    assert len(caplog.records) == 4


def test_what_works_leaves_no_line(outage, caplog):
    outage.ends()
    assert not caplog.records


def test_threads_that_share_it_tell_it_once(outage, caplog):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(outage.lasts, ["refused"] * 200))
        list(pool.map(lambda _: outage.ends(), range(200)))
    assert len(caplog.records) == 2
