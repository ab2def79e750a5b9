"""Logging of all processes of the service: text or JSON, with the request or job of each line, without secrets.

Everything goes through `logging`: our own lines, and those of uvicorn, Celery and other libraries. The values that
`about` binds appear in all lines of a request or an attempt.
"""

import logging
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from app.platform.redaction import known_secrets, redact
from app.platform.settings import LogFormat, Settings

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
    """Leave out successful probes, which arrive every few seconds."""
    match record.args:
        case (_, "GET", "/livez" | "/readyz", _, HTTPStatus.OK):
            return False
    return True


def formatter(settings: Settings) -> logging.Formatter:
    """Return the formatter of log records, which removes the secrets of the settings and all that looks like one."""
    known = known_secrets(settings)

    def without_secrets(_: WrappedLogger, __: str, line: str | EventDict) -> str:
        return redact(str(line), known)

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _on_one_line,
            *_renderers(settings.log_format),
            without_secrets,
        ],
    )


def about(**what: object) -> AbstractContextManager[None]:
    """Add values such as request_id, job_id and attempt to all lines that are logged in the block."""
    return bound_contextvars(**what)


def _on_one_line(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Escape control characters: what clients send could otherwise write lines of their own, or steer a terminal."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in line.items()}


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text.rstrip("\n"))


def _renderers(log_format: LogFormat) -> Sequence[Processor]:
    if log_format == "json":
        return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
    # The locals of a traceback may be anything, so the plain one.
    plain = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return (plain,)
