"""Structured log lines: `event=... key=value` for people, or JSON objects for programs."""

import datetime
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TextIO

FORMAT_VARIABLE = "CORPUS_ASR_LOG_FORMAT"
LEVEL_VARIABLE = "CORPUS_ASR_LOG_LEVEL"
RUN_VARIABLE = "CORPUS_ASR_RUN_ID"

# Of a message, a value or a traceback: a library's exception may quote megabytes.
MAX_TEXT_CHARACTERS = 20_000
# Record attribute with the fields of `event`.
_FIELDS = "fields"

Redact = Callable[[str], str]


class LogFormat(StrEnum):
    """Format of log lines."""

    text = "text"
    json = "json"


class LogLevel(StrEnum):
    """Minimum level of displayed lines."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Log settings of a process; picklable, for workers."""

    format: LogFormat = LogFormat.text
    level: LogLevel = LogLevel.warning
    run_id: str | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """Return the settings from the environment; defaults for unknown values."""
        format, level = os.environ.get(FORMAT_VARIABLE), os.environ.get(LEVEL_VARIABLE)
        return cls(
            format=LogFormat(format) if format in set(LogFormat) else LogFormat.text,
            level=LogLevel(level) if level in set(LogLevel) else LogLevel.warning,
            run_id=os.environ.get(RUN_VARIABLE) or None,
        )

    def export(self) -> None:
        """Export the settings to the environment of child processes."""
        os.environ[FORMAT_VARIABLE] = self.format.value
        os.environ[LEVEL_VARIABLE] = self.level.value
        if self.run_id is not None:
            os.environ[RUN_VARIABLE] = self.run_id


def event(
    logger: logging.Logger,
    level: int,
    name: str,
    /,
    *,
    exc_info: BaseException | bool | None = None,
    **fields: object,
) -> None:
    """Log an event with its fields."""
    if not logger.isEnabledFor(level):
        return
    named = {"event": name, **fields}
    message = " ".join(f"{key}={_plain(value)}" for key, value in named.items())
    # Passed as an argument, since values may contain percent signs.
    logger.log(level, "%s", message, exc_info=exc_info, extra={_FIELDS: named}, stacklevel=2)


def configure(settings: LogSettings, *, redact: Redact) -> None:
    """Log to stderr, each line through `redact`, in this process and its children."""
    settings.export()
    root = logging.getLogger()
    root.handlers = [
        handler for handler in root.handlers if not isinstance(handler, _StderrHandler)
    ]
    handler = _StderrHandler()
    is_json = settings.format is LogFormat.json
    handler.setFormatter(_JsonFormatter(redact) if is_json else _TextFormatter(redact))
    root.addHandler(handler)
    # Only warnings of libraries are displayed.
    logging.getLogger("corpus_asr").setLevel(settings.level.upper())


def name_run(run_id: str) -> None:
    """Add a run ID to all later JSON lines of this process and its children."""
    os.environ[RUN_VARIABLE] = run_id


def speaks_json() -> bool:
    """Return whether stderr must contain only JSON."""
    return LogSettings.from_environment().format is LogFormat.json


def _plain(value: object) -> str:
    text = _cut(str(value))
    return text if text and text.isprintable() and not set(text) & set(" \"'=") else repr(text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else f"{text[:MAX_TEXT_CHARACTERS]}..."


def _shown(text: str, *, lines: bool) -> str:
    """Return a text without terminal control characters; a traceback keeps its lines."""
    kept = "\n\t" if lines else ""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else repr(character)[1:-1]
        for character in text
    )


# Resolves stderr for each line: a progress display or a test may replace it.
class _StderrHandler(logging.StreamHandler[TextIO]):
    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("this handler always writes to stderr")


class _TextFormatter(logging.Formatter):
    def __init__(self, redact: Redact) -> None:
        super().__init__("{asctime} {levelname} {name}: {message}", style="{")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # cached by another handler, and would be reused
        return self._redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = _shown(_cut(record.message), lines=False)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        # Long tracebacks keep their ends, which name the error.
        text = super().formatException(ei)
        if len(text) > 2 * MAX_TEXT_CHARACTERS:
            text = f"{text[:MAX_TEXT_CHARACTERS]}...\n...{text[-MAX_TEXT_CHARACTERS:]}"
        return _shown(text, lines=True)


class _JsonFormatter(_TextFormatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line |= getattr(record, _FIELDS, {"event": "log", "message": record.getMessage()})
        if run_id := os.environ.get(RUN_VARIABLE):
            line.setdefault("run_id", run_id)
        line["process"] = record.process
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: self._safe(value) for key, value in line.items()})

    def _safe(self, value: object) -> object:
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            # JSON has no infinity.
            return value if math.isfinite(value) else str(value)
        if isinstance(value, dict):
            return {str(key): self._safe(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._safe(item) for item in value]
        return self._redact(_cut(str(value)))
