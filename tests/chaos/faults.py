"""What can break, how often it is drawn, and how it is mended."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis

from app.platform.broker import KEY_PREFIX, Line

SHORT, LONG = (0.5, 3.0), (9.0, 14.0)
"""Seconds: within what a worker bears, and more than its lease of 8."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks one target of a kind."""

    name: str
    kind: str
    weight: int
    lasts: tuple[float, float]
    begin: Callable[[Any, Any], None]
    """Does it, to a target in the town."""
    mend: Callable[[Any, Any], bool | None] = lambda town, target: None
    """Undoes it; False: not yet."""


def stopped_and_started(town, member):
    if not member.has_stopped():
        return False
    member.start()
    return True


def kill_a_trainer(number):
    def begin(town, trainer):
        with suppress(ProcessLookupError):
            os.kill(trainer, number)

    return begin


def multiply_rings(town, _):
    """Five times what waits in the queue, and five rings for nothing."""
    key = f"{KEY_PREFIX}cpu"
    with suppress(redis.RedisError), redis.Redis.from_url(town.valkey.url, socket_timeout=1) as client:
        waiting = client.lrange(key, 0, 20)
        if waiting:
            client.rpush(key, *(4 * waiting))
    line = Line(town.valkey.url)
    with suppress(Exception):
        for _number in range(5):
            line.ring("cpu")
    line.hang_up()


def flush(town, _):
    with suppress(redis.RedisError), redis.Redis.from_url(town.valkey.url, socket_timeout=1) as client:
        client.flushall()


def set_store(**values):
    def do(town, _):
        for name, value in values.items():
            setattr(town.store_way, name, value)

    return do


def to_way(place, what):
    """Do it to a worker's way to the database (0) or the broker (1)."""
    return lambda town, worker: getattr(worker.ways[place], what)()


def send(number):
    return lambda town, target: target.signal(number)


FAULTS = (
    Fault("a worker is killed", "worker", 6, SHORT, lambda town, it: it.kill(), lambda town, it: it.start()),
    Fault("a worker is killed for long", "worker", 2, LONG, lambda town, it: it.kill(), lambda town, it: it.start()),
    Fault("a worker is frozen for a moment", "worker", 3, SHORT, send(signal.SIGSTOP), send(signal.SIGCONT)),
    Fault("a worker is frozen past its lease", "worker", 4, LONG, send(signal.SIGSTOP), send(signal.SIGCONT)),
    Fault(
        "a worker is replaced (SIGTERM)", "worker", 4, (0, 0), lambda town, it: it.tell_to_stop(), stopped_and_started
    ),
    Fault("a training process is killed", "trainer", 5, (0, 0), kill_a_trainer(signal.SIGKILL)),
    Fault("a training process is frozen", "trainer", 2, (0, 0), kill_a_trainer(signal.SIGSTOP)),
    Fault("an API process is killed", "api", 4, SHORT, lambda town, it: it.kill(), lambda town, it: it.start()),
    Fault("an API process is replaced (SIGTERM)", "api", 3, (0, 0), lambda town, it: it.tell_to_stop(),
          stopped_and_started),
    Fault("Postgres restarts (immediate)", "postgres", 4, (0.2, 2.0), lambda town, it: it.stop("immediate"),
          lambda town, it: it.start(durable=True)),
    Fault("Postgres is away past every lease", "postgres", 1, LONG, lambda town, it: it.stop("immediate"),
          lambda town, it: it.start(durable=True)),
    Fault("Postgres is frozen", "postgres", 3, (0.5, 5.0), send(signal.SIGSTOP), send(signal.SIGCONT)),
    Fault("a worker is cut off from Postgres", "worker", 3, LONG, to_way(0, "half_open"), to_way(0, "heal")),
    Fault("a worker's connections to Postgres are reset", "worker", 4, (0, 0), to_way(0, "reset")),
    Fault("a worker is cut off from the broker", "worker", 3, LONG, to_way(1, "half_open"), to_way(1, "heal")),
    Fault("the broker is killed and comes back empty", "valkey", 3, SHORT, lambda town, it: it.kill(),
          lambda town, it: it.start()),
    Fault("the broker is frozen", "valkey", 2, (1.0, 6.0), send(signal.SIGSTOP), send(signal.SIGCONT)),
    Fault("the broker loses everything (FLUSHALL)", "valkey", 2, (0, 0), flush),
    Fault("rings come five times", "valkey", 2, (0, 0), multiply_rings),
    Fault("a third of what the object store is asked fails", "store", 4, (4.0, 10.0), set_store(share=0.3),
          set_store(share=0.0)),
    Fault("the object store is away", "store", 3, (1.0, 8.0), set_store(is_away=True), set_store(is_away=False)),
    Fault("the object store is frozen", "s3", 2, (1.0, 7.0), send(signal.SIGSTOP), send(signal.SIGCONT)),
)  # fmt: skip


def targets(town, kind):
    """What a fault of this kind can hit now."""
    match kind:
        case "worker" | "api":
            return town.members[kind]
        case "trainer":
            return town.trainers()
        case "store":
            return [town.store_way] if town.store_way else []
        case "s3":
            return [town.s3] if town.s3 else []
        case _:
            return [getattr(town, kind)]


class Misfortune:
    """Draws faults, one after the other and several at a time, and mends each in its time."""

    def __init__(self, town, chance):
        self.drawn = []
        """The moment, the fault, and whom it hit."""
        self.violations = []
        self._town, self._chance = town, chance
        self._hurt = {}

    def draw(self, now):
        """Let one more thing break that is whole."""
        (fault,) = self._chance.choices(FAULTS, [each.weight for each in FAULTS])
        whole = [each for each in targets(self._town, fault.kind) if each not in self._hurt]
        seconds = self._chance.uniform(*fault.lasts)
        choice = self._chance.random()
        if not whole:
            return None
        target = whole[int(choice * len(whole))]
        name = getattr(target, "name", "")
        self.drawn.append((now, fault, name))
        fault.begin(self._town, target)
        if fault.kind != "trainer":
            self._hurt[target] = (now + seconds, fault)
        return f"{fault.name}{f': {name}' if name else ''}, {seconds:.1f} s"

    def mend(self, now):
        """Mend what is due; say whether all is whole."""
        for target, (due, fault) in list(self._hurt.items()):
            if now < due:
                continue
            try:
                done = fault.mend(self._town, target)
            except AssertionError as error:
                self.violations.append(str(error))
                target.start()
                done = True
            if done is not False:
                del self._hurt[target]
        return not self._hurt
