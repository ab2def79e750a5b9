"""What the processes of the service log: lines for people or JSON, who or what they are about, and no secrets.

Everything goes through `logging`: our own lines, uvicorn's, Celery's and those of libraries. What is bound by `about`
stands in all lines of a request or an attempt, whoever writes them.
"""

import logging
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus

import structlog
from pydantic import SecretStr
from sqlalchemy import make_url
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from app.settings import LogFormat, Settings

_REDACTED = "[redacted]"
_SHORTEST_SECRET = 6
"""A shorter one would be found in the middle of words."""
_SECRETS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(tmp_[0-9A-Za-z]{8}_)[0-9A-Za-z_]+"), rf"\1{_REDACTED}"),
    (re.compile(r"(whsec_|whsec%5F)[0-9A-Za-z+/=_%-]+"), rf"\1{_REDACTED}"),
    (re.compile(r"\b(v1a?,)[0-9A-Za-z+/=]{20,}"), rf"\1{_REDACTED}"),
    (re.compile(r"(Bearer(?: |%20|\+))[^\s\"',\\]+", re.IGNORECASE), rf"\1{_REDACTED}"),
    (re.compile(r"\?[^\s\"'<>\\]*(?:X-Amz-|AWSAccessKeyId=|Signature=)[^\s\"'<>\\]*", re.IGNORECASE), f"?{_REDACTED}"),
    (re.compile(r"((?:X-Amz-\w+(?:-\w+)*|AWSAccessKeyId|Signature)=)[^\s&\"'<>\\]+", re.IGNORECASE), rf"\1{_REDACTED}"),
    (re.compile(r"(://[^\s/:@\"']*:)[^\s/@\"']+@"), rf"\1{_REDACTED}@"),
)
"""How secrets look: API keys (but for the prefix that names one), webhook secrets and signatures, bearer tokens, the
queries of presigned addresses, passwords in addresses."""


def redact(text: str) -> str:
    """Take out of a text all that looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def set_up(settings: Settings) -> None:
    """Send all that is logged to the standard error, as TEMPER_LOG_FORMAT says. Once more takes the place of before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    # Each request to a server of ours is in this log already, and these would tell it of every call to another one.
    for name in ("httpx2", "botocore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    """Leave out probes that went well: they come every few seconds, for ever, and nobody looks for them."""
    match record.args:
        case (_, "GET", "/livez" | "/readyz", _, HTTPStatus.OK):
            return False
    return True


def formatter(settings: Settings) -> logging.Formatter:
    """Make what turns a log record into a line without secrets: those that look like one, and those of the settings."""
    known = _of(settings)

    def without_secrets(_: WrappedLogger, __: str, line: str | EventDict) -> str:
        text = redact(str(line))
        for secret in known:
            text = text.replace(secret, _REDACTED)
        return text

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_renderers(settings.log_format),
            without_secrets,
        ],
    )


def about(**what: object) -> AbstractContextManager[None]:
    """Say in all lines that the block logs what they are about: request_id, job_id, attempt."""
    return bound_contextvars(**what)


def _renderers(log_format: LogFormat) -> Sequence[Processor]:
    if log_format == "json":
        return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
    # The locals of a traceback may be anything, so the plain one.
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return (plain,)


def _of(settings: Settings) -> Sequence[str]:
    """The secrets that this instance was given."""
    given = [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]
    given += [make_url(url).password or "" for url in (settings.database_url, settings.broker_url) if url]
    return [secret for secret in given if len(secret) >= _SHORTEST_SECRET]
