"""The life of an upload: room is reserved, parts arrive in any order, the whole is verified, and only then it is there.

    pending -> verifying -> completed        pending | verifying -> aborted | expired

What has not been verified lies under `quarantine/` in the object store, what has under `uploads/`. An upload holds its
bytes of the project's room from its first moment until it has ended without success. Every step may be done twice, by
any process: what a crash leaves undone, `verify` or `sweep` does later.
"""

import hashlib
import logging
import math
import secrets
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from app.platform.database import Database, now, seconds_from_now
from app.platform.ids import new_id
from app.schemas import Purpose, UploadFailure, UploadStatus
from app.storage import MOST_PARTS, NotStored, ObjectStore, StorageUnavailable
from app.tables import Model, Upload

log = logging.getLogger(__name__)

HELD: frozenset[UploadStatus] = frozenset({"pending", "verifying", "completed"})
"""What takes up room."""
_SOURCES: dict[UploadStatus, frozenset[UploadStatus]] = {
    "verifying": frozenset({"pending"}),
    "completed": frozenset({"verifying"}),
    "aborted": frozenset({"pending", "verifying"}),
    "expired": frozenset({"pending", "verifying"}),
}
_LEASE_SECONDS = 300
"""How long a process that verifies may be silent; to copy a very large object takes minutes."""
_LATEST_SECONDS = 1200
"""When, after the end of an upload, nothing that was signed for it is good any more."""


class Ended(Exception):
    """The upload is no longer pending."""

    def __init__(self, status: UploadStatus) -> None:
        super().__init__(status)
        self.status = status


class Incomplete(Exception):
    """Parts of `count` are missing."""

    def __init__(self, missing: Sequence[int], count: int) -> None:
        super().__init__(missing, count)
        self.missing = missing
        self.count = count


def create(
    session: Session,
    project_id: str,
    *,
    filename: str,
    size: int,
    sha256: str,
    purpose: Purpose,
    part_size: int,
    seconds: float,
) -> Upload:
    """Announce a file of `size` bytes, which count as the project's from now on; it is given up after so many seconds
    without a sign of life. Whether there is room for it, `app.projects.quotas` says in the same transaction."""
    upload = Upload(
        id=new_id("upl"),
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        size=size,
        sha256=sha256,
        part_size=max(part_size, math.ceil(size / MOST_PARTS)),
        place=f"{project_id}/{secrets.token_hex(16)}",
        expires_at=seconds_from_now(seconds),
    )
    session.add(upload)
    session.flush()
    return upload


def room_taken(session: Session, project_id: str) -> int:
    """Add up the bytes that a project's uploads hold, and its models that came by none: copies of checkpoints."""
    held = Upload.project_id == project_id, Upload.status.in_(HELD)
    copied = Model.project_id == project_id, Model.upload_id.is_(None)
    sums = select(func.sum(Upload.size)).where(*held), select(func.sum(Model.size)).where(*copied)
    return sum(int(size or 0) for size in session.execute(select(*(each.scalar_subquery() for each in sums))).one())


def key(upload: Upload) -> str:
    """Name the object that a completed upload is."""
    return f"uploads/{upload.place}"


def quarantine(upload: Upload) -> str:
    """Name the object that it is until then."""
    return f"quarantine/{upload.place}"


def part_count(upload: Upload) -> int:
    """Say how many parts it has."""
    return math.ceil(upload.size / upload.part_size)


def bytes_of_part(upload: Upload, number: int) -> int:
    """Say how many bytes a part has."""
    return min(upload.part_size, upload.size - (number - 1) * upload.part_size)


def keep_alive(session: Session, upload_id: str, *, seconds: float) -> Upload:
    """Note a sign of life. Raises Ended."""
    changed = _update(session, Upload.id == upload_id, Upload.status == "pending", expires_at=seconds_from_now(seconds))
    if not changed:
        raise Ended(session.get_one(Upload, upload_id).status)
    return changed[0]


def gathering(upload: Upload, database: Database, store: ObjectStore) -> str:
    """Find where the parts are gathered, and begin that where they are not yet. Raises Ended."""
    if upload.gathering:
        return upload.gathering
    begun = store.begin(quarantine(upload))
    with database.writing() as session:
        is_first = Upload.id == upload.id, Upload.status == "pending", Upload.gathering.is_(None)
        if _update(session, *is_first, gathering=begun):
            return begun
    store.abandon(quarantine(upload), begun)
    with database.reading() as session:
        upload = session.get_one(Upload, upload.id)
    if upload.gathering is None or upload.status != "pending":
        raise Ended(upload.status)
    return upload.gathering


def received(upload: Upload, store: ObjectStore) -> list[int]:
    """List the parts that are there, with the bytes that they should have."""
    there = store.parts(quarantine(upload), upload.gathering) if upload.gathering else {}
    numbers = range(1, part_count(upload) + 1)
    complete = [number for number in numbers if there.get(number) == bytes_of_part(upload, number)]
    if complete or len(numbers) > 1:
        return complete
    # What has one part only may have come in one piece.
    try:
        return [1] if store.size(quarantine(upload)) == upload.size else []
    except NotStored:
        return []


def complete(upload: Upload, database: Database, store: ObjectStore, *, seconds: float) -> Upload:
    """Have an upload verified whose parts are all there. One that is already on the way is left to it. Raises Ended,
    Incomplete."""
    if upload.status in ("verifying", "completed"):
        return upload
    if upload.status != "pending":
        raise Ended(upload.status)
    there = set(received(upload, store))
    missing = [number for number in range(1, part_count(upload) + 1) if number not in there]
    if missing:
        raise Incomplete(missing, part_count(upload))
    with database.writing() as session:
        _move(session, "verifying", Upload.id == upload.id, expires_at=seconds_from_now(seconds))
    with database.reading() as session:
        return session.get_one(Upload, upload.id)


def abort(session: Session, upload_id: str) -> Upload:
    """Give an upload up and its room back. Twice is no error. Raises Ended where it has completed or expired."""
    _move(session, "aborted", Upload.id == upload_id)
    upload = session.get_one(Upload, upload_id, populate_existing=True)
    if upload.status != "aborted":
        raise Ended(upload.status)
    return upload


def discard(session: Session, upload_id: str) -> None:
    """Give the room of a completed upload back, which nobody needs any more; its object goes with the next sweeps."""
    _update(session, Upload.id == upload_id, Upload.status == "completed", status="aborted", swept_at=None)


def verify(upload_id: str, database: Database, store: ObjectStore) -> None:
    """Put the parts together, hash the whole, and let it out of quarantine or abort it. Nothing is done where another
    process is at it. Raises StorageUnavailable; then another try may succeed."""
    with database.writing() as session:
        free = or_(Upload.lease_until.is_(None), Upload.lease_until < now())
        where = Upload.id == upload_id, Upload.status == "verifying", free
        claimed = _update(session, *where, lease_until=seconds_from_now(_LEASE_SECONDS))
    if not claimed:
        return
    upload = claimed[0]
    try:
        failure = _inspect(upload, database, store)
        if failure is None:
            store.copy(quarantine(upload), key(upload))
    except StorageUnavailable:
        with database.writing() as session:
            _update(session, Upload.id == upload_id, Upload.status == "verifying", lease_until=None)
        raise
    with database.writing() as session:
        content = failure.model_dump() if failure else None
        moved = _move(session, "aborted" if failure else "completed", Upload.id == upload_id, failure=content)
    try:
        clear(moved[0] if moved else _again(upload_id, database), store)
    except StorageUnavailable as error:
        log.warning("upload %s: what it has left in quarantine is removed later: %s", upload_id, error)


def waiting(session: Session) -> Sequence[str]:
    """List the uploads that nobody is verifying, oldest first."""
    free = or_(Upload.lease_until.is_(None), Upload.lease_until < now())
    return session.scalars(select(Upload.id).where(Upload.status == "verifying", free).order_by(Upload.id)).all()


def expire(session: Session) -> None:
    """Give up what has shown no sign of life for too long."""
    _move(session, "expired", Upload.expires_at < now(), or_(Upload.lease_until.is_(None), Upload.lease_until < now()))


def sweep(database: Database, store: ObjectStore) -> None:
    """Remove, for good, what ended uploads have left, once nothing more can come. Raises StorageUnavailable."""
    with database.reading() as session:
        over = Upload.ended_at < seconds_from_now(-_LATEST_SECONDS), Upload.swept_at.is_(None)
        left = session.scalars(select(Upload).where(*over).order_by(Upload.id).limit(100)).all()
    for upload in left:
        clear(upload, store)
        with database.writing() as session:
            session.execute(update(Upload).where(Upload.id == upload.id).values(swept_at=now()))


def clear(upload: Upload, store: ObjectStore) -> None:
    """Remove what an ended upload has left: all but the object of a completed one. Raises StorageUnavailable."""
    store.delete(quarantine(upload))
    if upload.status != "completed":
        if upload.gathering:
            store.abandon(quarantine(upload), upload.gathering)
        store.delete(key(upload))


def _inspect(upload: Upload, database: Database, store: ObjectStore) -> UploadFailure | None:
    if upload.gathering:
        try:
            store.assemble(quarantine(upload), upload.gathering)
        except FileExistsError:
            # It has come in one piece as well; its hash decides.
            store.abandon(quarantine(upload), upload.gathering)
    arrived, size = hashlib.sha256(), 0
    for chunk in _leased(store.read(quarantine(upload)), upload, database):
        arrived.update(chunk)
        size += len(chunk)
    if (size, arrived.hexdigest()) == (upload.size, upload.sha256):
        return None
    return UploadFailure(
        code="upload_damaged",
        message=f"What arrived has {size} bytes and the sha256 {arrived.hexdigest()}; announced were {upload.size} "
        f"bytes and {upload.sha256}.",
        hint="See that the file does not change while it is sent, then upload it again.",
    )


def _leased(chunks: Iterator[bytes], upload: Upload, database: Database) -> Iterator[bytes]:
    """Go through chunks and keep the lease meanwhile."""
    renewed_at = monotonic()
    for chunk in chunks:
        yield chunk
        if monotonic() - renewed_at > _LEASE_SECONDS / 10:
            renewed_at = monotonic()
            with database.writing() as session:
                verifying = Upload.id == upload.id, Upload.status == "verifying"
                _update(session, *verifying, lease_until=seconds_from_now(_LEASE_SECONDS))


def _again(upload_id: str, database: Database) -> Upload:
    with database.reading() as session:
        return session.get_one(Upload, upload_id)


def _move(session: Session, to: UploadStatus, *where: ColumnElement[bool], **values: Any) -> Sequence[Upload]:
    """Change the status of the uploads that may make this move."""
    if to != "verifying":
        values |= {"ended_at": now(), "lease_until": None}
    return _update(session, *where, Upload.status.in_(_SOURCES[to]), status=to, **values)


def _update(session: Session, *where: ColumnElement[bool], **values: Any) -> Sequence[Upload]:
    statement = update(Upload).where(*where).values(updated_at=now(), **values).returning(Upload)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement, execution_options=options).all()
