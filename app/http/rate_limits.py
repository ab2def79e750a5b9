"""Rate limits: on the requests of a key, and on the failed authentications from an address.

A key's requests are counted in a moving window: in the broker, where there is one, so that all API processes count
together; else in this process. Where the broker does not answer, requests are not limited: a warning is logged, and for
some seconds the broker is not asked at all, so that no request waits for it twice. Failed authentications are always
counted in this process. The headers are those of draft-ietf-httpapi-ratelimit-headers of September 2025.
"""

import logging
import math
import time
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from limits import RateLimitItemPerSecond
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from app.platform.outages import Outage

log = logging.getLogger(__name__)

POLICY = "requests"
"""The name of the limit in the headers."""
RATE_LIMIT_SECONDS = 60
"""The time in which the requests of a key are counted."""
AUTH_FAILURES = 100
"""Wrong API keys in a minute from one address, after which further ones are limited."""
_PATIENCE_SECONDS = 0.25
"""Seconds that a request waits for the broker."""
_AWAY_SECONDS = 5.0
"""Seconds without a request to the broker after it has not answered."""
_MOST_KNOWN = 4096


@dataclass(frozen=True)
class Standing:
    """The rate limit of a key after a request."""

    granted: bool
    limit: int
    window: int
    """Seconds."""
    remaining: int
    reset: int
    """Seconds until the oldest counted request leaves the window."""

    @property
    def headers(self) -> dict[str, str]:
        """Format the rate limit as headers."""
        return {
            "RateLimit-Policy": f'"{POLICY}";q={self.limit};w={self.window}',
            "RateLimit": f'"{POLICY}";r={self.remaining};t={self.reset}',
        }


class Window(Protocol):
    """A counter of the requests of each key in a moving window."""

    def count(self, key_id: str) -> tuple[bool, int, float]:
        """Count a request. Return whether it is granted, how many more would be, and the seconds for which the oldest
        one still counts. Raises StorageError where the count cannot be read."""


class InProcess:
    """A window of this process's own. The store that `limits` has for it starts a thread for nearly every request."""

    def __init__(self, limit: int, seconds: int) -> None:
        self._limit = limit
        self._seconds = seconds
        self._lock = Lock()
        self._granted: defaultdict[str, deque[float]] = defaultdict(deque)

    def count(self, key_id: str) -> tuple[bool, int, float]:
        """Count a request."""
        with self._lock:
            now, granted = time.monotonic(), self._granted[key_id]
            while granted and granted[0] <= now - self._seconds:
                granted.popleft()
            is_granted = len(granted) < self._limit
            if is_granted:
                granted.append(now)
            return is_granted, self._limit - len(granted), granted[0] + self._seconds - now


class InBroker:
    """A window that all API processes share."""

    def __init__(self, broker_url: str, limit: int, seconds: int) -> None:
        # Only a service with a broker has the time to import its client.
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._item = RateLimitItemPerSecond(limit, seconds)
        store = RedisStorage(
            broker_url,
            key_prefix="temper:limits",
            wrap_exceptions=True,
            socket_timeout=_PATIENCE_SECONDS,
            socket_connect_timeout=_PATIENCE_SECONDS,
            retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # the client's options, `limits` types a few of them
        )
        self._window = MovingWindowRateLimiter(store)

    def count(self, key_id: str) -> tuple[bool, int, float]:
        """Count a request. Waits a moment at most."""
        is_granted = self._window.hit(self._item, key_id)
        reset, remaining = self._window.get_window_stats(self._item, key_id)
        return is_granted, remaining, reset - time.time()


class Requests:
    """The requests of each key in the last RATE_LIMIT_SECONDS."""

    def __init__(self, broker_url: str, *, limit: int) -> None:
        self._limit = limit
        self._seconds = seconds = RATE_LIMIT_SECONDS
        self._window: Window = InBroker(broker_url, limit, seconds) if broker_url else InProcess(limit, seconds)
        self._lock = Lock()
        self._is_away = False
        self._ask_from = 0.0
        failing = "requests are not limited now: the broker cannot be asked"
        self._outage = Outage(log, failing, "requests are limited again")

    def count(self, key_id: str) -> Standing | None:
        """Count a request; None where the broker cannot be asked. Waits a moment at most."""
        if not self._may_ask():
            return None
        try:
            is_granted, remaining, seconds = self._window.count(key_id)
        except StorageError as error:
            self._leave_alone(error)
            return None
        self._is_back()
        reset = min(max(1, math.ceil(seconds)), self._seconds)
        return Standing(is_granted, self._limit, self._seconds, max(0, remaining), reset)

    def _may_ask(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._ask_from:
                return False
            if self._is_away:
                # One request finds out whether it is back; the others do not wait with it.
                self._ask_from = now + _AWAY_SECONDS
            return True

    def _is_back(self) -> None:
        if self._is_away:
            with self._lock:
                self._is_away = False
                self._ask_from = 0.0
            self._outage.ends()

    def _leave_alone(self, error: StorageError) -> None:
        with self._lock:
            self._is_away = True
            self._ask_from = time.monotonic() + _AWAY_SECONDS
        self._outage.lasts(error.storage_error)


class Failures:
    """The failed authentications of each address in the last minute, and what is known of keys lately asked with.

    Other clients may share an address with one that guesses keys, so no key is refused unseen that may be right: beyond
    the limit, a key that was wrong before is refused without being looked up, and other ones are looked up a few at a
    time.
    """

    def __init__(self) -> None:
        self._item = RateLimitItemPerSecond(AUTH_FAILURES, 60)
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._right = _Recent()
        self._wrong = _Recent()

    def seconds_to_wait(self, address: str) -> int:
        """Return the seconds for which wrong keys from this address are limited; 0 where they are not."""
        if self._window.test(self._item, address):
            return 0
        reset, _ = self._window.get_window_stats(self._item, address)
        return max(1, math.ceil(reset - time.time()))

    def was_right(self, fingerprint: str) -> bool:
        """Check whether a key was valid when it was last looked up."""
        return fingerprint in self._right

    def was_wrong(self, fingerprint: str) -> bool:
        """Check whether a key was not valid when it was last looked up."""
        return fingerprint in self._wrong

    def trust(self, fingerprint: str) -> None:
        """Record that a key was valid."""
        self._wrong.remove(fingerprint)
        self._right.add(fingerprint)

    def note(self, address: str, fingerprint: str) -> None:
        """Record that a key was not valid."""
        self._right.remove(fingerprint)
        self._wrong.add(fingerprint)
        self._window.hit(self._item, address)


class _Recent:
    """The fingerprints added last, of which the oldest make room."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, fingerprint: str) -> bool:
        return fingerprint in self._known

    def add(self, fingerprint: str) -> None:
        with self._lock:
            self._known[fingerprint] = None
            self._known.move_to_end(fingerprint)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def remove(self, fingerprint: str) -> None:
        with self._lock:
            self._known.pop(fingerprint, None)
