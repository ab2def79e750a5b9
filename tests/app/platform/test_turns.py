"""Turns come in the order in which threads ask, and none is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.platform.turns import NoTurn, Turns
from tests.support.processes import wait_until


def test_threads_go_on_in_the_order_in_which_they_asked():
    turns, order = Turns(), []

    def go(number):
        turns.take(seconds=10)
        order.append(number)
        turns.end()

    turns.take(seconds=0)
    with ThreadPoolExecutor(5) as pool:
        for number in range(5):
            pool.submit(go, number)
            wait_until(lambda waiting=number + 1: len(turns._waiting) == waiting)
        turns.end()
    assert order == list(range(5))


def test_a_wait_that_ends_without_the_turn_leaves_it_to_the_next():
    turns = Turns()
    turns.take(seconds=0)
    with pytest.raises(NoTurn, match=r"for 0\.01 s"):
        turns.take(seconds=0.01)
    turns.end()
    turns.take(seconds=0)


def test_a_turn_that_comes_as_the_wait_ends_is_passed_on(monkeypatch):
    turns = Turns()
    turns.take(seconds=0)

    def too_late(*_):
        turns.end()
        return False

    monkeypatch.setattr(threading.Event, "wait", too_late)
    with pytest.raises(NoTurn):
        turns.take(seconds=1)
    turns.take(seconds=0)
