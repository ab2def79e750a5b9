"""What signals ask of a run."""

import os
import signal

import pytest

from core.signals import Interrupted, StopRequests, handle_signals


def test_sigusr1_asks_to_stop_and_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    requests = StopRequests()
    with handle_signals(requests):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (requests.stop, requests.pause) == (True, False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_sigterm_waits_for_the_step_to_end() -> None:
    requests = StopRequests(stepping=True)
    with handle_signals(requests):
        os.kill(os.getpid(), signal.SIGTERM)
    assert requests.pause


def test_sigterm_ends_at_once_what_is_no_step() -> None:
    with pytest.raises(Interrupted), handle_signals(StopRequests()):
        os.kill(os.getpid(), signal.SIGTERM)
