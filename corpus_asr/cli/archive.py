"""The command `remove`: deletes recordings that are gone from the source, or erases recordings.

No slow imports at the top, for a fast `--help`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corpus_asr.cli.failures import readable_errors
from corpus_asr.cli.options import (
    OutputUri,
    StealLock,
    store_options,
)
from corpus_asr.errors import ConfigError

if TYPE_CHECKING:
    import datetime

    from corpus_asr.storage.run_state.prune import GoneRecordings
    from corpus_asr.storage.run_state.tables import OutputStore

_MOST_SHOWN = 20
_MOST_PLACES = 5
_AGE = re.compile(r"(\d+)\s*([hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 168}

Yes = Annotated[bool, typer.Option("--yes", help="Make the changes; without, only show them.")]


def remove(
    context: typer.Context,
    output_uri: OutputUri,
    gone: Annotated[
        bool,
        typer.Option(
            "--gone",
            help="Remove results of recordings that the last run did not find at the source.",
        ),
    ] = False,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="With --gone: only recordings that no run listed for this long: 12h, 30d or 8w.",
        ),
    ] = None,
    more_than_half: Annotated[
        bool,
        typer.Option(
            "--more-than-half", help="With --gone: allow more than half of the recordings."
        ),
    ] = False,
    with_corrections: Annotated[
        bool,
        typer.Option("--with-corrections", help="With --gone: also recordings with corrections."),
    ] = False,
    uri: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help=(
                "Erase all data of recordings in the folder, and exclude them from later runs: a "
                "URI, or a glob of whole URIs: '*/talk.mp3'; repeatable."
            ),
        ),
    ] = None,
    allow_again: Annotated[
        bool,
        typer.Option(
            "--allow-again",
            help="With --uri: let later runs process these URIs again; removes nothing.",
        ),
    ] = False,
    speaker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Erase name and voice of a speaker, given by either; their text remains.",
        ),
    ] = None,
    yes: Yes = False,
    steal_lock: StealLock = False,
) -> None:
    """Remove recordings that are gone from the source, or erase recordings or a voice for good."""
    if sum(map(bool, (gone, uri, speaker))) != 1:
        raise typer.BadParameter("expected one of --gone, --uri or --speaker")
    if not gone and (older_than or more_than_half or with_corrections):
        raise typer.BadParameter(
            "--older-than, --more-than-half and --with-corrections need --gone"
        )
    if allow_again and not uri:
        raise typer.BadParameter("--allow-again needs --uri")
    with readable_errors(on_interrupt="run the same command again"):
        from corpus_asr.storage.run_state.run_files import open_run

        store = open_run(output_uri, options=store_options(output_uri, context))
        if gone:
            _remove_gone(
                store, _age(older_than or "0d"), yes=yes, more_than_half=more_than_half,
                with_corrections=with_corrections, steal=steal_lock,
            )  # fmt: skip
        elif speaker:
            _erase_speakers(store, speaker, yes=yes, steal=steal_lock)
        else:
            _erase_recordings(store, uri or [], yes=yes, allow_again=allow_again, steal=steal_lock)


def _remove_gone(
    store: "OutputStore",
    older_than: "datetime.timedelta",
    *,
    yes: bool,
    more_than_half: bool,
    with_corrections: bool,
    steal: bool,
) -> None:
    from corpus_asr.storage.run_state.prune import find_gone, prune
    from corpus_asr.units import counted

    _continue_killed(store, yes=yes, steal=steal)
    archive = find_gone(store, older_than=older_than)
    for line in first_lines([*map(_gone_words, archive.gone)]):
        typer.echo(line)
    if not archive.gone:
        typer.echo(f"{store.uri}: nothing to remove: no recording is gone for that long")
        return
    removable = [recording for recording in archive.gone
                 if with_corrections or not recording.corrections]  # fmt: skip
    number = counted(len(archive.gone), "recording")
    of = f"of {archive.recordings:,} {'is' if len(archive.gone) == 1 else 'are'} gone"
    if kept := len(archive.gone) - len(removable):
        of += f", {kept:,} with corrections, which only --with-corrections removes"
    if not yes or not removable:
        advice = ": --yes removes the results" if removable else ""
        typer.echo(f"{store.uri}: {number} {of}; nothing was changed{advice}")
        return
    if (most := archive.most_gone()) and not more_than_half:
        raise ConfigError(
            f"removing from {store.uri}: {most}, expected at most half; check that the last run "
            "saw the whole source, then add --more-than-half"
        )
    with _held(store, steal=steal) as held:
        # Only the recordings shown, minus those that reappeared in a concurrent run.
        shown = {recording.recording_id for recording in removable}
        still_gone = find_gone(held, older_than=older_than).gone
        gone = {recording.recording_id for recording in still_gone
                if with_corrections or not recording.corrections} & shown  # fmt: skip
        prune(held, gone, at_the_end=_write_page)
    typer.echo(f"{store.uri}: removed {counted(len(gone), 'recording')}")


def _gone_words(gone: "GoneRecordings") -> str:
    from corpus_asr.units import counted

    corrections = f", {counted(gone.corrections, 'correction')}" if gone.corrections else ""
    since = "ever" if gone.gone_since is None else f"since {gone.gone_since:%Y-%m-%d}"
    return f"{gone.uri}: {counted(gone.segments, 'segment')}{corrections}, not listed {since}"


def _erase_recordings(
    store: "OutputStore", patterns: Sequence[str], *, yes: bool, allow_again: bool, steal: bool
) -> None:
    from corpus_asr.storage.run_state import forget as forgetting
    from corpus_asr.storage.run_state.run_files import KEPT_RUN_FOLDER
    from corpus_asr.storage.stores.uri import redact_uri
    from corpus_asr.units import counted

    if allow_again:
        with _held(store, steal=steal) as held:
            forgetting.allow_again(held, list(dict.fromkeys(patterns)))
        number = counted(len({*patterns}), "recording")
        typer.echo(f"{store.uri}: the next run does {number} again")
        return
    begun = _continue_killed(store, yes=yes, steal=steal).get("recordings", {})
    matches = forgetting.find_recordings(store, patterns, begun=begun.values())
    if not matches.recordings:
        return
    for line in first_lines(sorted(matches.recordings.values())):
        typer.echo(line)
    number = counted(len(matches.recordings), "recording")
    description = f"{number}, {counted(matches.segments, 'segment')}"
    if matches.corrections:
        description += f", {counted(matches.corrections, 'correction')}"
    foreign: list[str] = []
    if not yes:
        typer.echo(f"{store.uri}: {description}; nothing was changed: --yes erases them")
    else:
        with _held(store, steal=steal) as held:
            # A concurrent run may have found one of them under another URI.
            shown = matches.recordings
            held_now = forgetting.find_recordings(held, patterns, begun=shown.values())
            foreign = forgetting.forget(
                held, {**shown, **held_now.recordings}, at_the_end=_write_page
            )
        typer.echo(f"{store.uri}: erased {description}; later runs exclude them")
    for line in _to_be_made_again(matches.datasets):
        typer.echo(line)
    if store.uri.endswith(KEPT_RUN_FOLDER):
        typer.echo(
            "not erased: the files that transcribe wrote next to it and its records in "
            ".corpus-asr/; remove these, since transcribe excludes no recordings"
        )
    typer.echo(
        "not erased: the recordings, manifests, earlier object versions, and copies in backups, "
        "exports, pages, datasets and trained models"
    )
    if foreign:
        places = ", ".join(map(redact_uri, foreign[:_MOST_PLACES]))
        more = len(foreign) - _MOST_PLACES
        places += f" and {more:,} more" if more > 0 else ""
        typer.echo(f"not erased, and may name them: {places}")


def _erase_speakers(store: "OutputStore", names: Sequence[str], *, yes: bool, steal: bool) -> None:
    from corpus_asr.export.speakers import find_speakers
    from corpus_asr.storage.run_state.forget import datasets_of, forget_voices
    from corpus_asr.units import counted

    if {*names} <= {*_continue_killed(store, yes=yes, steal=steal).get("names", ())}:
        return
    pairs = find_speakers(store, names)
    description = (
        f"{', '.join(names)}, in {counted(len({recording for recording, _ in pairs}), 'recording')}"
    )
    if not yes:
        typer.echo(f"{store.uri}: {description}; nothing was changed: --yes erases name and voice")
    else:
        with _held(store, steal=steal) as held:
            # Reread, as a concurrent run may have renumbered the speakers of a recording.
            forget_voices(held, find_speakers(held, names), names)
        typer.echo(f"{store.uri}: erased name and voice of {description}")
    for line in _to_be_made_again(datasets_of(store)):
        typer.echo(line)
    typer.echo(
        "not erased: their text (--uri erases recordings), the voice in future recordings, "
        "earlier object versions, and copies"
    )


def _continue_killed(store: "OutputStore", *, yes: bool, steal: bool) -> dict[str, Any]:
    """Continue what a killed command had begun, or report it; return its arguments."""
    from corpus_asr.storage.run_state.lock import read_change

    noted = read_change(store)
    if noted is None:
        return {}
    if not yes:
        typer.echo(f"{store.uri}: {noted.command} was killed: --yes continues it first")
    else:
        with _held(store, steal=steal):
            pass  # continues on entry
        typer.echo(f"{store.uri}: continued the killed {noted.command}")
    return noted.arguments


def _to_be_made_again(datasets: Sequence[str]) -> Iterator[str]:
    from corpus_asr.storage.stores.uri import redact_uri

    for uri in map(redact_uri, datasets):
        yield (
            f"dataset of this folder: {uri}; remove it and write it again: corpus-asr label "
            f"CONFIG --set dataset.uri={uri}"
        )


def first_lines(lines: Sequence[str]) -> Iterator[str]:
    """Yield the first URIs in displayable form, and the number of others."""
    from corpus_asr.storage.stores.uri import redact_uri

    yield from map(redact_uri, lines[:_MOST_SHOWN])
    if len(lines) > _MOST_SHOWN:
        yield f"... and {len(lines) - _MOST_SHOWN:,} more"


@contextmanager
def _held(store: "OutputStore", *, steal: bool) -> "Iterator[OutputStore]":
    """Lock an output folder whose objects can be removed."""
    from corpus_asr.cli.options import progress_lines
    from corpus_asr.runtime.terminal import line_writer
    from corpus_asr.storage.run_state.forget import finish_killed
    from corpus_asr.storage.run_state.lock import Lock
    from corpus_asr.storage.run_state.prune import check_removable
    from corpus_asr.storage.run_state.run_files import new_run_id

    check_removable(store)  # before a lock exists that could not be removed
    say = line_writer(progress_lines())
    with Lock(store, new_run_id(), steal=steal, say=say) as lock:
        finish_killed(lock.store, at_the_end=_write_page)  # as a run does
        yield lock.store


def _write_page(store: "OutputStore") -> None:
    """Write the report of what remains."""
    from corpus_asr.report.page import write_page_at_the_end
    from corpus_asr.storage.run_state.table_names import RUN_NAME

    run = store.read_json(RUN_NAME)
    if run is not None:
        write_page_at_the_end(store, run["counts"]["recordings"])


def _age(text: str) -> "datetime.timedelta":
    import datetime

    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"reading --older-than: found {text!r}, expected a number of hours, days or weeks, "
            "such as 12h, 30d or 8w"
        )
    return datetime.timedelta(hours=int(match[1]) * _HOURS[match[2]])
