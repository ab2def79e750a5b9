"""Causes of a lost attempt, as a code and as a sentence; and the failure of a job that has crashed too often.

Code and SQL compare the codes. The sentences are for people and may change.
"""

from collections.abc import Mapping
from typing import Literal

from app.schemas import Failure

CrashCode = Literal["worker_lost", "host_out_of_memory", "killed", "stalled"]
"""worker_lost: no heartbeat came in time. host_out_of_memory: the kernel killed the training process because memory ran
out. killed: something else killed it. stalled: the worker killed it because it made no progress."""

_SENTENCES: Mapping[CrashCode, str] = {
    "worker_lost": "the worker stopped sending heartbeats",
    "host_out_of_memory": "the kernel killed the training process because the worker's machine or container was out of "
    "memory",
    "killed": "the training process was killed",
    "stalled": "the training process made no progress and was killed",
}
_MEMORY_HINT = "Lower batch_size and evaluation.batch_size, or give the worker more memory, then post the job again."


def describe(code: CrashCode, detail: str = "") -> str:
    """Write the sentence of a crash. detail: what is known beyond the code, such as `by SIGKILL`."""
    return f"{_SENTENCES[code]} {detail}".strip()


def after_crashes(code: CrashCode, cause: str, *, crashes: int) -> Failure:
    """The failure of a job with as many crashes as a job may have. cause: the sentence of the last one."""
    story = f"The job crashed {crashes} times"
    if code != "worker_lost":
        return _repeated_crash(story, cause)
    return Failure(
        code="worker_lost",
        message=f"{story}; the last time {cause}.",
        hint="Check whether the worker's machine runs out of memory or is being restarted, then retry the job: it "
        "resumes from its last state.",
        field=None,
        retryable=True,
    )


def without_progress(cause: str, *, crashes: int) -> Failure:
    """The failure of a job that has crashed several times in a row before it saved anything new."""
    return _repeated_crash(f"The job crashed {crashes} times without getting any further", cause)


def out_of_memory() -> Failure:
    """The failure of a job that the kernel has killed twice because memory ran out."""
    return Failure(
        code="host_out_of_memory",
        message=f"The job crashed twice because {describe('host_out_of_memory')}.",
        hint=_MEMORY_HINT,
        field=None,
        retryable=False,
    )


def _repeated_crash(story: str, cause: str) -> Failure:
    return Failure(
        code="repeated_crash",
        message=f"{story}; the last time {cause}. Most likely the machine runs out of memory.",
        hint=_MEMORY_HINT,
        field=None,
        retryable=False,
    )
