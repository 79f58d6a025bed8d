"""Logging of a running service: lines for people, or one JSON object a line for programs.

Images, embeddings and names are not logged: requests are named by their route, not by their path.
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
"""The attribute of a log record with its further fields: `extra={FIELDS: {...}}`."""

CHATTY = ("alembic.runtime.plugins", "httpcore", "httpx")
"""Loggers whose routine lines are of no use, or contain the addresses of webhooks."""


def set_up(wanted: LogFormat) -> None:
    """Sends the logs of the whole process to standard error."""
    if wanted is LogFormat.AUTO:
        wanted = LogFormat.TEXT if sys.stderr.isatty() else LogFormat.JSON
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if wanted is LogFormat.JSON else Text("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Decoders warn of each oddity of an image, up to thousands of lines for one; the answer reports what is wrong.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class Json(logging.Formatter):
    """Formats one object a line: `time`, `level`, `logger`, `message`, and further fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Text(logging.Formatter):
    """Formats one line, with further fields after the message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, {})
        shown = (f" {key}={_word(value)}" for key, value in fields.items() if value is not None)
        return super().format(record) + "".join(shown)


def _word(value: object) -> str:
    """Quotes a value that could be read as several: callers choose the ids of their requests."""
    text = str(value)
    return json.dumps(text) if set(text) & set(' "=') else text
