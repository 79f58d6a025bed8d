"""What a running service logs: lines for people, or one JSON object a line for programs.

Neither an image, nor an embedding, nor a name is logged: requests are told by their route, not by their path.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from typing import Any

from indexer.settings import LogFormat

FIELDS = "fields"
"""The attribute of a log record that holds what is known of it beside the message: `extra={FIELDS: {...}}`."""

CHATTY = ("alembic.runtime.plugins", "httpcore", "httpx")
"""Loggers whose everyday lines tell nobody anything, or the addresses that webhooks go to."""


def set_up(wanted: LogFormat) -> None:
    """Sends the logs of the whole process to standard error."""
    if wanted is LogFormat.AUTO:
        wanted = LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if wanted is LogFormat.JSON else Text("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Decoders warn of each oddity of an image, up to thousands of lines for one; what is wrong with it is answered.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class Json(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class Text(logging.Formatter):
    """One line, with what else is known after the message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, {})
        told = (f" {key}={_word(value)}" for key, value in fields.items() if value is not None)
        return super().format(record) + "".join(told)


def _word(value: object) -> str:
    """In quotes where it could be taken for more than one: callers choose the ids of their requests."""
    text = str(value)
    return json.dumps(text) if set(text) & set(' "=') else text
