"""Send deliveries to webhooks by Standard Webhooks (standardwebhooks.com): signed, and repeated until they arrive.

Each API process sends. A delivery is claimed under a lease, and its outcome is written under the number of the claim,
so no two processes make the same try. A try that is cut off is repeated once its lease has expired, with the same
webhook-id, by which the receiver recognises it.
"""

import asyncio
import logging
import os
import socket
import ssl
from datetime import UTC, datetime
from threading import Event
from time import monotonic

import httpx2
from standardwebhooks import Webhook

from app.platform.database import AWAY, Database, why
from app.platform.settings import Settings
from app.webhooks import deliveries, url_policy
from app.webhooks.deliveries import ClaimedDelivery, Outcome
from app.webhooks.url_policy import Place, Refused

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 15.0
"""Time that a receiver may take for its answer."""
UNDER_WAY = 100
"""Attempts that one process makes at once."""
UNDER_WAY_PER_WEBHOOK = 4
UNDER_WAY_PER_PROJECT = 20
"""So that the slow receivers of one project leave most of the attempts to the others."""
_LOOK_SECONDS = 0.25
_MOST_BYTES = 65_536
"""Bytes that are read of an answer at most; only its status matters."""


def send_all(settings: Settings, database: Database, stopping: Event) -> None:
    """Send what is due, and what becomes due meanwhile, until nothing is left or it is time to stop."""
    asyncio.run(_Relay(settings, database, stopping).run())


class _Relay:
    def __init__(self, settings: Settings, database: Database, stopping: Event) -> None:
        self._settings = settings
        self._database = database
        self._stopping = stopping
        self._context = httpx2.create_ssl_context()

    async def run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        try:
            while not self._stopping.is_set():
                room = UNDER_WAY - len(under_way)
                claimed = await asyncio.to_thread(self._claim, room) if room else []
                under_way |= {asyncio.create_task(self._attempt(sending)) for sending in claimed}
                if not under_way:
                    return
                done, under_way = await asyncio.wait(
                    under_way, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
        finally:
            for task in under_way:
                task.cancel()

    async def _attempt(self, sending: ClaimedDelivery) -> None:
        began = monotonic()
        status, error = await self._send(sending)
        outcome = Outcome(status, error, monotonic() - began)
        try:
            await asyncio.to_thread(self._settle, sending, outcome)
        except AWAY as failure:
            # The lease runs out, and the receiver gets it twice.
            log.warning("delivery %s: its outcome cannot be written: %s", sending.id, why(failure))
        else:
            log.info("delivery %s: try %d: %s", sending.id, sending.tries, error or f"answered {status}")

    async def _send(self, sending: ClaimedDelivery) -> tuple[int | None, str | None]:
        """Make one attempt; give the status of the answer, and what is wrong with it."""
        seconds = TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                status = await self._post(sending)
        except TimeoutError:
            return None, f"no answer within {seconds:g} s"
        except Refused as refusal:
            return None, f"not called: {refusal}"
        except (httpx2.TransportError, ssl.SSLError) as error:
            return None, f"no connection: {error or type(error).__name__}"
        return status, _complaint(status)

    async def _post(self, sending: ClaimedDelivery) -> int:
        url = url_policy.parse(sending.url, self._settings)
        found = await asyncio.wrap_future(url_policy.look_up(url))
        place = url_policy.judge(url, found, self._settings)
        # No client around the transport: it would follow, keep and log what is better not. The caller's timeout is for
        # all of it, where a transport's would be for each part.
        async with httpx2.AsyncHTTPTransport(verify=self._context, trust_env=False) as transport:
            answer = await transport.handle_async_request(_request(sending, place))
            received = 0
            async for chunk in answer.aiter_raw():
                received += len(chunk)
                if received > _MOST_BYTES:
                    break
            await answer.aclose()
            return answer.status_code

    def _claim(self, room: int) -> list[ClaimedDelivery]:
        with self._database.reading() as session:
            if not deliveries.is_any_due(session):
                return []
        lease = 2 * TIMEOUT_SECONDS + 10
        with self._database.writing() as session:
            return deliveries.claim(
                session,
                owner=f"{socket.gethostname()}:{os.getpid()}",
                limit=room,
                per_webhook=UNDER_WAY_PER_WEBHOOK,
                per_project=UNDER_WAY_PER_PROJECT,
                lease_seconds=lease,
            )

    def _settle(self, sending: ClaimedDelivery, outcome: Outcome) -> None:
        with self._database.writing() as session:
            deliveries.record_outcome(session, sending, outcome)


def _request(sending: ClaimedDelivery, place: Place) -> httpx2.Request:
    """Build a request to the checked address, even if DNS has changed. Host header and certificate check still use the
    name."""
    request = httpx2.Request("POST", place.url, headers=sign(sending), content=sending.payload)
    request.extensions = {"sni_hostname": place.url.raw_host.decode("ascii")}
    request.url = place.url.copy_with(host=str(place.address))
    return request


def sign(sending: ClaimedDelivery) -> dict[str, str]:
    """Write the headers of an attempt that is made now; each secret in force has its signature."""
    at = datetime.now(UTC)
    signatures = [Webhook(secret).sign(sending.id, at, sending.payload) for secret in sending.secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "Temper",
        "webhook-id": sending.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _complaint(status: int) -> str | None:
    match status // 100:
        case 2:
            return None
        case 3:
            return f"answered {status}: redirects are not followed; give the webhook its final address"
        case _ if status == 410:
            return "answered 410: the receiver wants nothing more, so the webhook is disabled"
        case _:
            return f"answered {status}"
