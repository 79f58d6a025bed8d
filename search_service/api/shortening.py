"""Shortens what an error repeats of a request, which may be as long as the request itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

LONGEST_NAME = 50
"""Characters of an unknown name that an error quotes."""

LONGEST_VALUE = 100
"""Characters of a wrong value that an error message quotes."""

LONGEST_TEXT, LONGEST_DETAIL = 700, 200
"""Characters of an error's message, and of a text in its details."""

MAX_ERROR_BYTES = 3_600
"""Of message and details as JSON, so that every error answer has less than 4 kB."""

SHORTENED = Repr()
"""Formats only the beginning of a value, as a body may hold millions."""
SHORTENED.maxlist = SHORTENED.maxdict = SHORTENED.maxlevel = LONGEST_VALUE
SHORTENED.maxstring = SHORTENED.maxlong = SHORTENED.maxother = 2 * LONGEST_VALUE


def short(value: object) -> str:
    """Formats a wrong value for an error message."""
    text = SHORTENED.repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def short_name(name: str) -> str:
    """Returns the beginning of a name of the caller, as an error message quotes it."""
    return _encodable(name[:LONGEST_NAME])


def short_text(text: str, most: int) -> str:
    """Returns a text of at most `most` characters: its beginning and its end, where what was expected often stands."""
    if len(text) > most:
        end = most // 3
        text = f"{text[: most - end - 5]} ... {text[-end:]}"
    return _encodable(text)


def short_error(message: str, details: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns message and details of an error with at most MAX_ERROR_BYTES: shortened texts, and fewer items in lists
    or, at last, no details."""
    message, shown = short_text(message, LONGEST_TEXT), dict(_short_detail(details))
    if _json_bytes(message) > 2 * LONGEST_TEXT:  # control characters are six bytes each, emojis four
        message = short_text(message, LONGEST_TEXT // 3)
    for most in (20, 10, 5, 2):
        if _json_bytes([message, shown]) <= MAX_ERROR_BYTES:
            return message, shown
        shown = {name: value[:most] if isinstance(value, list) else value for name, value in shown.items()}
    return message, {} if _json_bytes([message, shown]) > MAX_ERROR_BYTES else shown


def _short_detail(value: Any) -> Any:
    if isinstance(value, str):
        return short_text(value, LONGEST_DETAIL)
    if isinstance(value, Mapping):
        return {short_text(str(name), LONGEST_NAME): _short_detail(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short_detail(one) for one in value]
    return value


def _json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode())


def _encodable(text: str) -> str:
    """Returns the text without half surrogate pairs, which JSON may contain and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()
