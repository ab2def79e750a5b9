"""Entity tags of files: what a client has already is not sent again (RFC 9110)."""

import hashlib
from collections.abc import Mapping
from typing import Annotated

from fastapi import Header, Response

from app import schemas

IfNoneMatch = Annotated[
    str | None, Header(description="ETags of what you have already: answered with 304 if it is still this.")
]
ETAG = schemas.headers({"ETag": "The SHA-256 of the content, in quotes."})


def tag_of(sha256: str) -> str:
    """Write the entity tag of a file with this hash."""
    return f'"{sha256}"'


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Tell whether a client has the content of this tag. if_none_match: its header, of one tag or more, or *."""
    known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in known or known == ["*"]


def not_modified(etag: str) -> Response:
    """Answer that the client has the content."""
    return Response(status_code=304, headers={"ETag": etag})


def answer_file(
    content: bytes, media_type: str, if_none_match: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a small file, or that the client has it."""
    etag = tag_of(hashlib.sha256(content).hexdigest())
    if is_known(etag, if_none_match):
        return not_modified(etag)
    return Response(content, headers={**(headers or {}), "ETag": etag}, media_type=media_type)
