"""Uploads: a file is announced, its parts arrive in any order, the whole is verified, and only then it can be used.

    pending -> verifying -> completed        pending | verifying -> aborted | expired

Until it is verified, an upload lies under `quarantine/` in the object store, and then under `uploads/`. Its bytes count
against the project's quota from its announcement until it ends without success. The verification is a task, which the
API's processes do. Any process may repeat any step: what a crash leaves undone, `verify` or `sweep` does later.
"""

import hashlib
import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Event
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from app import tasks
from app.platform import leases
from app.platform.database import Database, now, seconds_from_now
from app.platform.leases import LeaseLost
from app.platform.paging import Order, Part, Place, list_fitting, list_rows
from app.projects import audit, totals
from app.projects.ids import next_id
from app.schemas import Purpose, UploadFailure, UploadStatus
from app.storage import MOST_PARTS, NotStored, ObjectStore, StorageUnavailable
from app.tables import Project, Task, Upload
from app.tasks import TaskClaim

log = logging.getLogger(__name__)

_SOURCES: dict[UploadStatus, frozenset[UploadStatus]] = {
    "verifying": frozenset({"pending"}),
    "completed": frozenset({"verifying"}),
    "aborted": frozenset({"pending", "verifying"}),
    "expired": frozenset({"pending", "verifying"}),
}
_LEADING = ("sha256", "status", "purpose")
_LEASE_SECONDS = 300
"""The lease of a verification. The copy of a very large object, during which nothing renews it, takes minutes."""
SWEEP_SECONDS = 45.0
"""The longest round in which objects of ended uploads are removed."""
_EXPIRED_AT_ONCE = 500
_SWEPT_AT_ONCE = 20
"""Uploads of one project before the next project has its turn."""
_LATEST_SECONDS = 1200
"""Seconds after an upload's end by which all its signed requests have expired."""


class Ended(Exception):
    """The upload is no longer pending."""

    def __init__(self, status: UploadStatus) -> None:
        super().__init__(status)
        self.status = status


class Incomplete(Exception):
    """Parts are missing; `missing` are their numbers, `count` is the number of all parts."""

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
    """Announce a file of `size` bytes, which count against the project's quota from now on. The upload expires after
    `seconds` in which nothing is sent. The caller checks the quota in the same transaction."""
    upload = Upload(
        id=next_id(session, project_id, "upl"),
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        size=size,
        sha256=sha256,
        part_size=max(part_size, math.ceil(size / MOST_PARTS)),
        key_suffix=f"{project_id}/{secrets.token_hex(16)}",
        expires_at=seconds_from_now(seconds),
        created_by=audit.actor(),
    )
    session.add(upload)
    session.flush()
    totals.count_bytes(session, project_id, size, uploaded=True)
    audit.record(session, project_id, "upload.create", upload.id, filename=filename, bytes=size)
    return upload


def find_upload(session: Session, project_id: str, upload_id: str) -> Upload | None:
    """Find an upload of this project."""
    return session.scalars(select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)).one_or_none()


def list_uploads(
    session: Session,
    project_id: str,
    *,
    matching: Mapping[str, str | None],
    after: str | None,
    limit: int,
    order: Order,
) -> Part[Upload]:
    """List a project's uploads by age; `matching` compares columns."""
    wanted = {column: value for column, value in matching.items() if value is not None}
    # The filter that leaves the fewest uploads leads.
    leading = sorted(wanted, key=_LEADING.index)[:1]
    columns = [Upload.project_id, *(getattr(Upload, column) for column in leading)]
    place = Place(columns, [project_id, *(wanted[column] for column in leading)])
    fits = [getattr(Upload, column) == value for column, value in wanted.items() if column not in leading]
    page: dict[str, Any] = {"after": after, "limit": limit, "order": order}
    if fits:
        return list_fitting(session, Upload, Upload.id, Upload.id, place, fits, **page)
    return list_rows(session, Upload, Upload.id, place, **page)


def key(upload: Upload) -> str:
    """Name the object of a completed upload."""
    return f"uploads/{upload.key_suffix}"


def quarantine(upload: Upload) -> str:
    """Name its object before it is completed."""
    return f"quarantine/{upload.key_suffix}"


def part_count(upload: Upload) -> int:
    """Count its parts."""
    return math.ceil(upload.size / upload.part_size)


def bytes_of_part(upload: Upload, number: int) -> int:
    """Count the bytes of a part."""
    return min(upload.part_size, upload.size - (number - 1) * upload.part_size)


def keep_alive(session: Session, upload_id: str, *, seconds: float) -> Upload:
    """Put the expiry off to `seconds` from now. Raises Ended."""
    pending = Upload.id == upload_id, Upload.status == "pending"
    changed = _update(session, *pending, expires_at=seconds_from_now(seconds))
    if not changed:
        raise Ended(session.get_one(Upload, upload_id).status)
    return changed[0]


def ensure_multipart(upload: Upload, database: Database, store: ObjectStore) -> str:
    """Return the object store's id for the parts, and create it where there is none. Raises Ended."""
    if upload.multipart_id:
        return upload.multipart_id
    created = store.multipart.create(quarantine(upload))
    with database.writing() as session:
        is_first = Upload.id == upload.id, Upload.status == "pending", Upload.multipart_id.is_(None)
        if _update(session, *is_first, multipart_id=created):
            return created
    store.multipart.abort(quarantine(upload), created)
    with database.reading() as session:
        upload = session.get_one(Upload, upload.id)
    if upload.multipart_id is None or upload.status != "pending":
        raise Ended(upload.status)
    return upload.multipart_id


def received(upload: Upload, store: ObjectStore) -> list[int]:
    """List the numbers of the parts that have arrived in full."""
    sizes = store.multipart.list_parts(quarantine(upload), upload.multipart_id) if upload.multipart_id else {}
    numbers = range(1, part_count(upload) + 1)
    complete = [number for number in numbers if sizes.get(number) == bytes_of_part(upload, number)]
    if complete or len(numbers) > 1:
        return complete
    # An upload of one part may have come in one piece.
    try:
        return [1] if store.size(quarantine(upload)) == upload.size else []
    except NotStored:
        return []


def complete(upload: Upload, database: Database, store: ObjectStore, *, seconds: float) -> Upload:
    """Queue the verification of an upload whose parts have all arrived. Where that was done before, nothing changes.
    Raises Ended, Incomplete."""
    if upload.status in ("verifying", "completed"):
        return upload
    if upload.status != "pending":
        raise Ended(upload.status)
    there = set(received(upload, store))
    missing = [number for number in range(1, part_count(upload) + 1) if number not in there]
    if missing:
        raise Incomplete(missing, part_count(upload))
    with database.writing() as session:
        if _move(session, "verifying", Upload.id == upload.id, expires_at=seconds_from_now(seconds)):
            tasks.add(session, "verify_upload", project_id=upload.project_id, subject_id=upload.id)
            audit.record(session, upload.project_id, "upload.complete", upload.id)
    with database.reading() as session:
        return session.get_one(Upload, upload.id)


def abort(session: Session, upload_id: str) -> Upload:
    """Abort an upload and free its room. Aborting twice is not an error. Raises Ended where it has completed or
    expired."""
    tasks.cancel(session, [upload_id])
    for aborted in _move(session, "aborted", Upload.id == upload_id):
        audit.record(session, aborted.project_id, "upload.abort", upload_id)
    upload = session.get_one(Upload, upload_id, populate_existing=True)
    if upload.status != "aborted":
        raise Ended(upload.status)
    return upload


def discard(session: Session, upload_id: str) -> None:
    """Free the room of a completed upload that no file needs; a later `sweep` removes its object."""
    completed = Upload.id == upload_id, Upload.status == "completed"
    for discarded in _update(session, *completed, status="aborted", ended_at=now(), swept_at=None):
        totals.count_bytes(session, discarded.project_id, -discarded.size, uploaded=True)


def verify(upload_id: str, database: Database, store: ObjectStore) -> None:
    """Assemble the parts, hash the whole, and complete or abort the upload. Where another process verifies it, nothing
    is done. Raises StorageUnavailable; a later call may succeed."""
    with database.writing() as session:
        owner = f"{socket.gethostname()}:{os.getpid()}"
        claim = tasks.claim(session, KINDS, owner=owner, lease_seconds=_LEASE_SECONDS, subject_id=upload_id)
        if claim is None:
            return
        upload = session.get_one(Upload, upload_id)
    try:
        failure = _check(upload, claim, database, store)
        if failure is None:
            store.copy(quarantine(upload), key(upload))
    except StorageUnavailable:
        with suppress(LeaseLost), database.writing() as session:
            tasks.hand_back(session, claim)
        raise
    except LeaseLost:
        log.warning("upload %s: its verification was taken over, or the upload has ended", upload_id)
    else:
        with suppress(LeaseLost), database.writing() as session:
            if failure:
                tasks.fail(session, claim, failure.model_dump())
            else:
                tasks.succeed(session, claim)
    with database.reading() as session:
        upload = session.get_one(Upload, upload_id)
    if upload.ended_at is None:
        return
    try:
        clear(upload, store)
    except StorageUnavailable as error:
        log.warning("upload %s: what it has left in quarantine is removed later: %s", upload_id, error)


def waiting(session: Session) -> Sequence[str]:
    """List the uploads that wait for their verification, those of crashed processes included, oldest first."""
    return tasks.waiting(session, "verify_upload")


def expire(session: Session) -> None:
    """Expire the uploads without a request for too long, unless a process verifies them."""
    under_way = exists().where(Task.subject_id == Upload.id, Task.status == "running", ~leases.has_expired(Task))
    expired = session.scalars(
        select(Upload.id)
        .where(Upload.status.in_(_SOURCES["expired"]), Upload.expires_at < now(), ~under_way)
        .limit(_EXPIRED_AT_ONCE)
    ).all()
    # Lock order: task row first, then its subject.
    tasks.cancel(session, expired)
    _move(session, "expired", Upload.id.in_(expired), Upload.expires_at < now())


def sweep(database: Database, store: ObjectStore, stopping: Event | None = None) -> None:
    """Remove the objects that ended uploads have left, once no more can arrive. Each project has its turn, so the
    backlog of one delays no other. Raises StorageUnavailable after it has tried all projects."""
    until, failed = monotonic() + SWEEP_SECONDS, None
    over = Upload.ended_at < seconds_from_now(-_LATEST_SECONDS), Upload.swept_at.is_(None)
    with database.reading() as session:
        has_left = exists().where(Upload.project_id == Project.id, *over)
        waiting = list(session.scalars(select(Project.id).where(has_left).order_by(func.random())))
    while waiting and monotonic() < until and not (stopping and stopping.is_set()):
        project_id = waiting.pop(0)
        with database.reading() as session:
            mine = select(Upload).where(Upload.project_id == project_id, *over)
            left = session.scalars(mine.order_by(Upload.ended_at).limit(_SWEPT_AT_ONCE)).all()
        try:
            for upload in left:
                clear(upload, store)
                with database.writing() as session:
                    session.execute(update(Upload).where(Upload.id == upload.id).values(swept_at=now()))
        except StorageUnavailable as error:
            failed = error
            continue
        if len(left) == _SWEPT_AT_ONCE:
            waiting.append(project_id)
    if failed:
        raise failed


def clear(upload: Upload, store: ObjectStore) -> None:
    """Remove the objects of an ended upload, except the object of a completed one. Raises StorageUnavailable."""
    store.delete(quarantine(upload))
    if upload.status != "completed":
        if upload.multipart_id:
            store.multipart.abort(quarantine(upload), upload.multipart_id)
        store.delete(key(upload))


def _check(upload: Upload, claim: TaskClaim, database: Database, store: ObjectStore) -> UploadFailure | None:
    """Assemble the parts and compare size and hash. Raises StorageUnavailable, LeaseLost."""
    if upload.multipart_id:
        try:
            store.multipart.complete(quarantine(upload), upload.multipart_id)
        except FileExistsError:
            # It has come in one piece as well. Its hash decides.
            store.multipart.abort(quarantine(upload), upload.multipart_id)
    arrived, size = hashlib.sha256(), 0
    for chunk in _renewing(store.read(quarantine(upload)), claim, database):
        arrived.update(chunk)
        size += len(chunk)
    if (size, arrived.hexdigest()) == (upload.size, upload.sha256):
        return None
    return UploadFailure(
        code="upload_damaged",
        message=f"The file that arrived has {size} bytes and the sha256 {arrived.hexdigest()}; {upload.size} bytes and "
        f"{upload.sha256} were announced.",
        hint="Check that the file does not change while it is sent, then upload it again.",
    )


def _renewing(chunks: Iterator[bytes], claim: TaskClaim, database: Database) -> Iterator[bytes]:
    """Yield the chunks and renew the lease meanwhile. Raises LeaseLost."""
    renewed_at = monotonic()
    for chunk in chunks:
        yield chunk
        if monotonic() - renewed_at > _LEASE_SECONDS / 10:
            renewed_at = monotonic()
            with database.writing() as session:
                tasks.renew(session, claim, lease_seconds=_LEASE_SECONDS)


def _follow(session: Session, task: Task) -> None:
    """Bring the upload in line with the task of its verification."""
    if task.status == "succeeded":
        _move(session, "completed", Upload.id == task.subject_id)
    elif task.status == "failed":
        _move(session, "aborted", Upload.id == task.subject_id, failure=task.failure)


KINDS: Sequence[tasks.Kind] = (tasks.Kind("verify_upload", _follow),)


def _move(session: Session, to: UploadStatus, *where: ColumnElement[bool], **values: Any) -> Sequence[Upload]:
    """Change the status of the uploads that may make this move."""
    if to != "verifying":
        values["ended_at"] = now()
    moved = _update(session, *where, Upload.status.in_(_SOURCES[to]), status=to, **values)
    for upload in moved:
        if to not in totals.STORED:
            totals.count_bytes(session, upload.project_id, -upload.size, uploaded=True)
    return moved


def _update(session: Session, *where: ColumnElement[bool], **values: Any) -> Sequence[Upload]:
    statement = update(Upload).where(*where).values(updated_at=now(), **values).returning(Upload)
    unsynchronised = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement, execution_options=unsynchronised).all()
