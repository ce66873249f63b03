"""Process setup and exit of commands and scripts: logging, one error message, and an exit code."""

import atexit
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from corpus_asr.errors import CheckpointError, ConfigError, CorpusAsrError, FetchError
from corpus_asr.logs import LogFormat, LogLevel, LogSettings, configure, event, speaks_json
from corpus_asr.runtime.shutdown import SIGNALS, RunStoppedError, ended_by_signals
from corpus_asr.threads import spin_briefly

EXIT_SOME_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_STOPPED_BY_FAILURE = 3
EXIT_LOCKED = 75  # EX_TEMPFAIL of sysexits.h: retry later
EXITS_BY_SIGNAL = tuple(128 + number for number in SIGNALS)  # shell convention
ENDS_AT_ONCE = frozenset({EXIT_STOPPED_BY_FAILURE, *EXITS_BY_SIGNAL})
"""Exit codes after which threads may be blocked in network calls, for which a regular exit would
wait. Exit handlers of Ray and others run nevertheless."""

_LOG = logging.getLogger(__name__)


@contextmanager
def readable_errors(*, on_interrupt: str = "") -> Iterator[None]:
    """Convert an exception to one message on stderr and an exit code."""
    # BrokenPipeError passes: Click ends a command whose reader has closed the pipe, with code 1.
    try:
        yield
    except RunStoppedError as stop:
        _debug_traceback()
        say(str(stop))
        raise SystemExit(stop.exit_code) from None
    except KeyboardInterrupt:
        _debug_traceback()
        advice = f"; committed results are kept: {on_interrupt}" if on_interrupt else ""
        say(f"interrupted{advice}")
        raise SystemExit(128 + signal.SIGINT) from None
    except CorpusAsrError as error:
        _debug_traceback()
        say(str(error))
        # A store that rejects requests, or does not exist, will do so again.
        refused = isinstance(error, FetchError) and not error.retryable
        unusable = refused or isinstance(error, ConfigError | CheckpointError)
        raise SystemExit(EXIT_UNUSABLE if unusable else EXIT_STOPPED_BY_FAILURE) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        # Unexpected errors have no message for users, so the type is included.
        _debug_traceback()
        hint = "" if _debugging() else "; CORPUS_ASR_DEBUG=1 shows where"
        say(f"unexpected {type(error).__name__}: {error}{hint}")
        raise SystemExit(EXIT_STOPPED_BY_FAILURE) from None


@contextmanager
def as_process() -> Iterator[None]:
    """Set up a process of this program; signals shut it down gracefully."""
    for stream in (sys.stdout, sys.stderr):
        # File names and terminals need not be UTF-8: escape invalid bytes.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    spin_briefly()
    with ended_by_signals():
        yield


@contextmanager
def script(*, on_interrupt: str = "") -> Iterator[None]:
    """Give a script of `pipelines/` the command's logging, signal handling and exit codes."""
    try:
        with as_process(), readable_errors(on_interrupt=on_interrupt):
            configure_logging()
            yield
    except SystemExit as end:
        if end.code not in ENDS_AT_ONCE or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(end.code)


def configure_logging(
    log_format: LogFormat | None = None, log_level: LogLevel | None = None
) -> None:
    """Set up logging by the arguments, else by the environment."""
    from corpus_asr.storage.stores.uri import without_secrets

    usual = LogSettings.from_environment()
    settings = LogSettings(format=log_format or usual.format, level=log_level or usual.level)
    configure(settings, redact=without_secrets)


def _debugging() -> bool:
    return os.environ.get("CORPUS_ASR_DEBUG", "") not in ("", "0")


def _debug_traceback() -> None:
    if _debugging():
        traceback.print_exc()


def note(message: str) -> None:
    """Print a note on stderr, as a JSON line if logs are JSON."""
    if speaks_json():
        event(_LOG, logging.INFO, "note", message=message)
        return
    typer.echo(message, err=True)


def say(message: str) -> None:
    """Print an error on stderr, as a JSON line if logs are JSON."""
    from corpus_asr.config.document import hide_secrets

    if speaks_json():
        event(_LOG, logging.ERROR, "failed", message=message)
        return
    typer.echo(f"corpus-asr: {hide_secrets(message)}", err=True)
