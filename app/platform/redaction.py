"""Redaction of logs, of the service and of runs: the secrets of this process, and all that looks like a secret."""

import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from pydantic import SecretStr
from sqlalchemy import make_url

from app.platform.settings import Settings

REDACTED = "[redacted]"
_SHORTEST_SECRET = 6
"""A shorter one would be found in the middle of words."""
_SECRET_NAME = re.compile(r".*(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY).*")
_SECRETS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(tmp_[0-9A-Za-z]{8}_)[0-9A-Za-z_]+"), rf"\1{REDACTED}"),
    (re.compile(r"(whsec_|whsec%5F)[0-9A-Za-z+/=_%-]+"), rf"\1{REDACTED}"),
    (re.compile(r"\b(v1a?,)[0-9A-Za-z+/=]{20,}"), rf"\1{REDACTED}"),
    (re.compile(r"(Bearer(?: |%20|\+))[^\s\"',\\]+", re.IGNORECASE), rf"\1{REDACTED}"),
    # Bounded, so that a long line of nothing but question marks or names costs no more than another.
    (re.compile(r"\?[^\s\"'<>\\?]*(?:X-Amz-|AWSAccessKeyId=|Signature=)[^\s\"'<>\\]*", re.IGNORECASE), f"?{REDACTED}"),
    (re.compile(r"((?:X-Amz-[\w-]{1,40}|AWSAccessKeyId|Signature)=)[^\s&\"'<>\\]+", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"(://[^\s/:@\"']*:)[^\s/@\"']+@"), rf"\1{REDACTED}@"),
)
"""Patterns of secrets: API keys (but for the prefix that names one), webhook secrets and signatures, bearer tokens, the
queries of presigned addresses, passwords in addresses."""


def redact(text: str, known: Sequence[str] = ()) -> str:
    """Remove these secrets from a text, and then all that looks like a secret."""
    for secret in known:
        text = text.replace(secret, REDACTED)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def known_secrets(settings: Settings) -> Sequence[str]:
    """List the secrets that this process was given, in its settings and its environment, the longest first: one may
    begin like another."""
    given = [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]
    for url in filter(None, (settings.database_url, settings.broker_url)):
        # As it is, and as it is written there.
        given += [make_url(url).password or "", urlsplit(url).password or ""]
    given += [value for name, value in os.environ.items() if is_named_like_a_secret(name)]
    return sorted({secret for secret in given if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)


def is_named_like_a_secret(variable: str) -> bool:
    """Whether the name of an environment variable is that of a secret."""
    return _SECRET_NAME.fullmatch(variable.upper()) is not None
