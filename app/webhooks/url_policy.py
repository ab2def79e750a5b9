"""Policy for URLs that users give: only the public internet and the operator's exceptions, no internal addresses.

A host name is resolved once, and the connection goes to the address that was checked: DNS rebinding, a name that
resolves to another address a moment later, has no effect.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Thread
from typing import TYPE_CHECKING

from app.platform.settings import Settings

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

PORTS = (443, 8443)
"""Ports that a webhook on the public internet may have."""
LOOKUP_SECONDS = 5.0
MOST_CHARACTERS, MOST_PORTS = 2048, 65_535
_DEFAULT_PORTS = {"https": 443, "http": 80}
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""Addresses that a gateway turns into the IPv4 address in their last bits."""


class Refused(Exception):
    """The service does not connect to this address; the message says why, and what would be right."""


@dataclass(frozen=True)
class Place:
    """Where a URL leads: the host as it is written in the URL, and the address to connect to."""

    url: "httpx2.URL"
    address: Address


async def check(url: "httpx2.URL", answer: "Future[Sequence[Address]]", settings: Settings) -> None:
    """Check the address of a URL whose host is being looked up. Raises Refused."""
    try:
        found = await asyncio.wait_for(asyncio.wrap_future(answer), LOOKUP_SECONDS)
    except TimeoutError:
        raise Refused(f"the host {url.host} could not be resolved in time; try again") from None
    judge(url, found, settings)


def parse(url: str, settings: Settings) -> "httpx2.URL":
    """Read a URL that the service may call. Raises Refused for its form alone."""
    import httpx2  # at first use: most instances have no webhook, and it delays their start

    if len(url) > MOST_CHARACTERS:
        raise Refused(f"a URL has at most {MOST_CHARACTERS} characters")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise Refused(f"this is no URL: {error}; write one such as https://example.com/hook") from None
    if parsed.scheme not in ("https", "http") or not parsed.host:
        raise Refused("write a whole URL such as https://example.com/hook")
    if parsed.scheme == "http" and not settings.webhook_http:
        raise Refused("only https is called here; the operator can allow http with TEMPER_WEBHOOK_HTTP")
    if not 0 < port_of(parsed) <= MOST_PORTS:
        raise Refused(f"{port_of(parsed)} is not a valid port: use 1 to {MOST_PORTS}")
    if parsed.userinfo or parsed.fragment:
        raise Refused("leave user name, password and fragment out of the URL; the signature says who calls")
    return parsed


def look_up(url: "httpx2.URL") -> "Future[Sequence[Address]]":
    """Look a host up. It takes as long as the resolver likes, in a thread that no end of the program waits for.

    The answer may raise Refused."""
    answer: Future[Sequence[Address]] = Future()
    answer.set_running_or_notify_cancel()

    def find() -> None:
        try:
            answer.set_result(resolve(url.raw_host.decode("ascii"), port_of(url)))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no host name"
            answer.set_exception(Refused(f"the name {url.host} cannot be looked up: {reason}"))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=find, daemon=True).start()
    return answer


def resolve(host: str, port: int) -> Sequence[Address]:
    """Ask the system's resolver for the addresses of a host. Raises OSError and UnicodeError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return [ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


def judge(url: "httpx2.URL", found: Sequence[Address], settings: Settings) -> Place:
    """Choose the address to connect to, or refuse the host if only one of its addresses is out of bounds."""
    if not found:
        raise Refused(f"the name {url.host} has no address")
    ranges = [ip_network(entry) for entry in settings.webhook_allow if is_range(entry)]
    in_range = all(any(address in network for network in ranges) for address in found)
    if url.host in settings.webhook_allow or in_range:
        return Place(url, found[0])
    for address in found:
        if not is_public(address):
            # Only the operator may learn which internal address a host has, not the user who names it.
            log.info("the webhook address %s is refused: it is at %s", url.host, address)
            raise Refused(
                f"{url.host} leads to an address that is not on the public internet; the operator can allow it with "
                "TEMPER_WEBHOOK_ALLOW"
            )
    if port_of(url) not in PORTS:
        known = ", ".join(map(str, PORTS))
        raise Refused(
            f"port {port_of(url)} is not called, only {known}; the operator can allow the host with "
            "TEMPER_WEBHOOK_ALLOW, then at any port"
        )
    return Place(url, found[0])


def is_public(address: Address) -> bool:
    """Whether an address is globally unique, and does not embed or translate to another address."""
    if isinstance(address, IPv6Address):
        if any(address in network for network in _NAT64) or address.is_site_local:
            return False
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inside:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def port_of(url: "httpx2.URL") -> int:
    """Return the port of a URL, which may be the default of its scheme."""
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def is_range(entry: str) -> bool:
    """Whether an entry of the operator's list is a range of addresses; else it is a host name."""
    try:
        ip_network(entry)
    except ValueError:
        return False
    return True
