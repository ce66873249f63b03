"""How commands and scripts begin and end: logging, one message on stderr, and an exit code."""

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
EXIT_LOCKED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXITS_BY_SIGNAL = tuple(128 + number for number in SIGNALS)  # as shells have it
ENDS_AT_ONCE = frozenset({EXIT_STOPPED_BY_FAILURE, *EXITS_BY_SIGNAL})
"""Exit codes of a process whose threads may be in the middle of the network: an orderly end would
wait for them. What Ray and others have registered is done all the same."""

_LOG = logging.getLogger(__name__)


@contextmanager
def readable_errors(*, on_interrupt: str = "") -> Iterator[None]:
    """Turn what went wrong into one message on stderr and an exit code."""
    # BrokenPipeError passes: Click ends a command whose reader has gone quietly, with code 1.
    try:
        yield
    except RunStoppedError as stop:
        _debug_traceback()
        say(str(stop))
        raise SystemExit(stop.exit_code) from None
    except KeyboardInterrupt:
        _debug_traceback()
        advice = f"; what was committed is kept: {on_interrupt}" if on_interrupt else ""
        say(f"interrupted{advice}")
        raise SystemExit(128 + signal.SIGINT) from None
    except CorpusAsrError as error:
        _debug_traceback()
        say(str(error))
        # A store that refuses, as one that is not there, does so the next time as well.
        refused = isinstance(error, FetchError) and not error.retryable
        unusable = refused or isinstance(error, ConfigError | CheckpointError)
        raise SystemExit(EXIT_UNUSABLE if unusable else EXIT_STOPPED_BY_FAILURE) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        # Not raised on purpose: its message was not written for users, so the type is named too.
        _debug_traceback()
        hint = "" if _debugging() else "; CORPUS_ASR_DEBUG=1 shows where"
        say(f"unexpected {type(error).__name__}: {error}{hint}")
        raise SystemExit(EXIT_STOPPED_BY_FAILURE) from None


@contextmanager
def as_process() -> Iterator[None]:
    """Set up what a process of this program needs; signals end it in order, whatever it does."""
    for stream in (sys.stdout, sys.stderr):
        # File names need not be UTF-8, nor need the terminal be: show the byte, never fail on it.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    spin_briefly()
    with ended_by_signals():
        yield


@contextmanager
def script(*, on_interrupt: str = "") -> Iterator[None]:
    """Let a script of `pipelines/` log, stop and fail as the command does, exit codes included."""
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
    """Set up logging as asked for, else as the environment says."""
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
    """Print on stderr what a user may want to know; where lines are JSON, as one of them."""
    if speaks_json():
        event(_LOG, logging.INFO, "note", message=message)
        return
    typer.echo(message, err=True)


def say(message: str) -> None:
    """Print on stderr what went wrong; where lines are JSON, as one of them."""
    from corpus_asr.config.document import hide_secrets

    if speaks_json():
        event(_LOG, logging.ERROR, "failed", message=message)
        return
    typer.echo(f"corpus-asr: {hide_secrets(message)}", err=True)
