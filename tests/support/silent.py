"""A server that has hung: the system takes connections for it, and nothing reads or answers."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_server() -> Iterator[str]:
    """Give its address. At the end of the block all connections to it are reset."""
    # Never accepted: the connections wait in the system's queue.
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
