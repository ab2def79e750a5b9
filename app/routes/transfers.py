"""Files on their way to clients, piece by piece out of the object store."""

from collections.abc import AsyncIterator, Generator
from contextlib import ExitStack

from app.http.dependencies import Service, pieces, stored


async def send(
    content: Generator[bytes], service: Service, project_id: str, until_sent: ExitStack
) -> AsyncIterator[bytes]:
    """Give the content of a response, which holds a place until it has been sent. The first piece is read at once, so
    that a store that fails is told before the answer has begun. Raises StorageUnavailable, NoPlace."""
    until_sent.callback(content.close)
    until_sent.enter_context(service.places.transfers.at_once(project_id))
    first = await stored(service, project_id, next, content, b"")
    return _all(first, pieces(service, project_id, content))


async def _all(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
