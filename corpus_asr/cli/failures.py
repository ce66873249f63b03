"""What every command does with failures: one message on stderr, and an exit code."""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from corpus_asr.errors import CheckpointError, ConfigError, CorpusAsrError, FetchError
from corpus_asr.logs import event, speaks_json
from corpus_asr.runtime.shutdown import RunStoppedError

EXIT_SOME_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_STOPPED_BY_FAILURE = 3
EXIT_LOCKED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_TERMINATED = 143  # 128 + SIGTERM

_LOG = logging.getLogger(__name__)


@contextmanager
def readable_errors(*, on_interrupt: str = "") -> Iterator[None]:
    """Turn what went wrong into one message on stderr and an exit code."""
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
        raise SystemExit(EXIT_INTERRUPTED) from None
    except (ConfigError, CheckpointError) as error:
        _debug_traceback()
        say(str(error))
        raise SystemExit(EXIT_UNUSABLE) from None
    except CorpusAsrError as error:
        _debug_traceback()
        say(str(error))
        # A store that refuses, as one that is not there, does so the next time as well.
        refused = isinstance(error, FetchError) and not error.retryable
        raise SystemExit(EXIT_UNUSABLE if refused else EXIT_STOPPED_BY_FAILURE) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        # Not raised on purpose: nobody wrote words for it, so the type is told as well.
        _debug_traceback()
        hint = "" if _debugging() else "; CORPUS_ASR_DEBUG=1 shows where"
        say(f"unexpected {type(error).__name__}: {error}{hint}")
        raise SystemExit(EXIT_STOPPED_BY_FAILURE) from None


def _debugging() -> bool:
    return os.environ.get("CORPUS_ASR_DEBUG", "") not in ("", "0")


def _debug_traceback() -> None:
    if _debugging():
        traceback.print_exc()


def note(message: str) -> None:
    """Say on stderr what a user may want to know; where lines are JSON, as one of them."""
    if speaks_json():
        event(_LOG, logging.INFO, "note", message=message)
        return
    typer.echo(message, err=True)


def say(message: str) -> None:
    """Tell people, or whatever reads log lines, what went wrong."""
    from corpus_asr.config.document import hide_secrets

    if speaks_json():
        event(_LOG, logging.ERROR, "failed", message=message)
        return
    typer.echo(f"corpus-asr: {hide_secrets(message)}", err=True)
