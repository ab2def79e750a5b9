"""What can be asked of a run while it goes on: to pause or to stop early. No torch.

On the command line SIGTERM asks for a pause: the step is finished, the state saved, the exit status 75 (EX_TEMPFAIL).
The same command goes on from there. torchrun hands SIGTERM to its processes, which do so, and ends with 1 itself.
SIGUSR1 asks to stop: the best weights so far are kept, evaluated, delivered.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(BaseException):
    """A pause was asked for at a moment when everything worth keeping is on disk."""


@dataclass
class StopRequests:
    """Set by anybody, heeded by the run at its next step."""

    pause: bool = False
    """Finish the step, save the state, end."""
    stop: bool = False
    """Finish the step, keep the best weights, evaluate and deliver them."""
    stepping: bool = False
    """The run's own word: it is between training steps and heeds a pause there."""


@contextmanager
def handle_signals(requests: StopRequests) -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 into requests for as long as the block runs.

    Where no training step would see the pause, in loading and evaluating, SIGTERM raises Interrupted instead.
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
