"""Log lines as JSON, one object per line, for systems that collect them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

EVENT = re.compile(r"event=(\w+)")


class JsonFormatter(logging.Formatter):
    """Keys: time (ISO 8601, UTC), level, logger, message; ``event`` if the message begins with one, ``exception`` (the
    traceback) if there is one, and whatever ``fields`` says of the moment."""

    def __init__(self, fields: Callable[[], Mapping[str, str]] = dict) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        message = record.getMessage()
        event = EVENT.match(message)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **({"event": event[1]} if event else {}),
            "message": message,
            **self._fields(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
