"""Log records as lines: for people, or as JSON with their time."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from facepipe.core.plain_text import visible_line

_EVENT, _FIELDS = "event", "fields"


def json_line(event: str, **fields: object) -> str:
    """Return a line of --log-json: `time` (now, ISO 8601, UTC), `event`, and what belongs to it."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **fields})


def log_event(logger: logging.Logger, event: str, fields: Mapping[str, object]) -> None:
    """Log an event: a JSON line of its own kind with --log-json, else `event key=value ...`."""
    words = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    logger.info("%s %s", event, words, extra={_EVENT: event, _FIELDS: dict(fields)})


class LineFormatter(logging.Formatter):
    """Log records as lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `facepipe: ...` on one line of plain text, whatever it holds, and indented a traceback."""
        line = visible_line(f"facepipe: {record.getMessage()}")
        return "\n".join(
            [line, *(f"    {visible_line(own)}" for own in _traceback(record).split("\n") if own)]
        )


class JsonFormatter(logging.Formatter):
    """Log records as lines of --log-json."""

    def format(self, record: logging.LogRecord) -> str:
        """See `json_line`; events of `log_event` keep their kind and fields."""
        event = getattr(record, _EVENT, None)
        if event is not None:
            return json_line(event, **getattr(record, _FIELDS))
        message = "\n".join(filter(None, (record.getMessage(), _traceback(record))))
        return json_line("log", level=record.levelname, message=message)


def _traceback(record: logging.LogRecord) -> str:
    """Return lines; empty where a record has no exception."""
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
