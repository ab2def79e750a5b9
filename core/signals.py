"""Requests to pause a run or to stop it early, by signal or by the caller. No torch.

On the command line, SIGTERM is a request to pause: the run finishes its step, saves its state and exits with status 75
(EX_TEMPFAIL); the same command continues from there. torchrun passes SIGTERM on to its processes and exits with status
1 itself. SIGUSR1 is a request to stop: the run evaluates and delivers the best weights so far.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(BaseException):
    """A request to pause arrived while no training step was running: all progress is on disk."""


@dataclass
class StopRequests:
    """The requests to a run, which it reads after each step."""

    pause: bool = False
    """Finish the step, save the state and end."""
    stop: bool = False
    """Finish the step, then evaluate and deliver the best weights."""
    stepping: bool = False
    """Set by the run while it takes training steps, where it reads `pause` itself."""


@contextmanager
def handle_signals(requests: StopRequests) -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 into requests inside the block.

    Outside training steps, while loading and evaluating, SIGTERM raises Interrupted instead.
    """

    def pause(number: int, frame: FrameType | None) -> None:
        del number, frame
        requests.pause = True
        if not requests.stepping:
            raise Interrupted

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        requests.stop = True

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGTERM, pause)
    signal.signal(signal.SIGUSR1, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
