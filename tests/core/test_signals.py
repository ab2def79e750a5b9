"""What signals ask of a run."""

import os
import signal

import pytest

from core.signals import Interrupted, Wishes, heed_signals


def test_sigusr1_asks_to_stop_and_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    wishes = Wishes()
    with heed_signals(wishes):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (wishes.stop, wishes.pause) == (True, False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_sigterm_waits_for_the_step_to_end() -> None:
    wishes = Wishes(stepping=True)
    with heed_signals(wishes):
        os.kill(os.getpid(), signal.SIGTERM)
    assert wishes.pause


def test_sigterm_ends_at_once_what_is_no_step() -> None:
    with pytest.raises(Interrupted), heed_signals(Wishes()):
        os.kill(os.getpid(), signal.SIGTERM)
