"""Live events of a job, resumed where the stream broke."""

from collections.abc import Iterator

from app.schemas.jobs import Progress, Waiting
from client.connection import Connection
from client.errors import Unreachable
from client.reading import read
from client.retries import Deadline
from core.schema.events import Stamped

SILENCE = 45.0
"""Seconds without a byte after which a stream counts as broken: the service sends a comment every 15 seconds."""
RECONNECT = 0.5
"""Seconds before a closed stream is opened again."""


def follow_events(
    connection: Connection, job: str, *, after: int, deadline: Deadline
) -> Iterator[Stamped | Progress | Waiting]:
    """Iterate over the events of the job at this path after number `after`, over its progress, and over the reasons
    why no worker can take it, until the job has ended. Raises Unreachable, Unreadable, Refused, ServiceFailed,
    StillRunning."""
    retries = connection.retries(connection.patience_of_follower, deadline=deadline)
    while True:
        with (
            retries.pause_on_failure(at_least=RECONNECT),
            connection.errors(),
            connection.listen(f"{job}/events", last_event_id=after, silence=SILENCE, deadline=deadline) as source,
            retries.counted_from_the_end(connection.patience_of_follower),
        ):
            for sent in source:
                match sent.event:
                    case "end":
                        return
                    case "progress":
                        yield read(Progress, sent.data)
                    case "waiting":
                        yield read(Waiting, sent.data)
                    case _ if sent.data:
                        event = read(Stamped, sent.data)
                        after = event.seq
                        yield event
            raise Unreachable(f"{connection.url} closed the event stream of {job}")
