"""A bad network: a TCP proxy on a free port that can be slow, cut, deaf or rude while connections are open."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

_CHUNK = 65536


@dataclass(eq=False)
class _Connection:
    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    is_doomed: bool = False
    """It ends when the server next answers."""

    def end(self, *, rude: bool) -> None:
        for writer in (self.to_client, self.to_server):
            if rude and not writer.is_closing():
                # What is closed without lingering is answered by a reset.
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            writer.close()


class Proxy:
    """Between clients and a server on this machine. Each fault holds until `heal`."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.latency = 0.0
        """Seconds that each piece of data takes, each way."""
        self._target_port = target_port
        self._is_refusing = False
        self._is_silent = False
        self._dooms: Callable[[bytes], bool] | None = None
        self._loses: Callable[[bytes], bool] | None = None
        self._connections: set[_Connection] = set()
        self._started, self._stopping = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def cut(self) -> None:
        """End all connections in good order, and refuse new ones."""
        self._is_refusing = True
        self._loop.call_soon_threadsafe(self._end_all, False)

    def reset(self) -> None:
        """End all connections by a reset, and accept new ones."""
        self._loop.call_soon_threadsafe(self._end_all, True)

    def half_open(self) -> None:
        """Leave all connections open, accept new ones, and let nothing through, as when packets are dropped."""
        self._is_silent = True

    def lose_the_answer_to(self, what: Callable[[bytes], bool]) -> None:
        """Reset a connection, once, when the server has answered the first piece of data of which this is true."""
        self._dooms = what

    def lose(self, what: Callable[[bytes], bool]) -> None:
        """Reset a connection, once, in place of passing on the first piece of data of which this is true."""
        self._loses = what

    def heal(self) -> None:
        """Be a good network again. Connections that have lost something end by a reset."""
        if self._is_silent:
            self.reset()
        self._dooms = self._loses = None
        self._is_refusing = self._is_silent = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        assert self._started.wait(5)

    def stop(self) -> None:
        """End, with all connections."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        self._end_all(True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.close()
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        connection = _Connection(writer, to_server)
        self._connections.add(connection)
        # Cancelled where the proxy ends with connections open.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._ask(connection, reader), self._answer(connection, from_server))
        connection.end(rude=False)
        self._connections.discard(connection)

    async def _ask(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async for data in self._pieces(reader):
            if self._loses and self._loses(data):
                self._loses = None
                connection.end(rude=True)
                return
            if self._dooms and self._dooms(data):
                self._dooms, connection.is_doomed = None, True
            connection.to_server.write(data)
        connection.to_server.close()

    async def _answer(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        async for data in self._pieces(reader):
            if connection.is_doomed:
                connection.end(rude=True)
                return
            connection.to_client.write(data)
        connection.to_client.close()

    async def _pieces(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._is_silent:
                    continue
                if self.latency:
                    await asyncio.sleep(self.latency)
                yield data

    def _end_all(self, rude: bool) -> None:
        for connection in tuple(self._connections):
            connection.end(rude=rude)


@contextlib.contextmanager
def proxy(target_port: int) -> Iterator[Proxy]:
    """A running proxy in front of a port of this machine."""
    made = Proxy(target_port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
