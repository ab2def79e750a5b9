"""Patterns of parameters, each with its rule in words, which users read in place of the pattern."""

from collections.abc import Mapping

from core.schema.spec import PATTERN_RULES

SHA256 = r"^[0-9a-f]{64}$"
LOG_PLACE = r"^[0-9]{1,10}:[0-9]{1,18}$"
RULES: Mapping[str, str] = {
    **PATTERN_RULES,
    SHA256: "give the SHA-256 in hexadecimal: 64 digits or small letters from a to f",
    LOG_PLACE: "give a place as X-Log-Place does: the number of an attempt, a colon and a number of bytes",
}
