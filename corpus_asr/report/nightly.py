"""A nightly run: what it came to, whether that is unusual, its summary, and the webhook's message.

What comes from recordings (names, messages) is escaped for Markdown, Slack and terminals.
"""

import datetime
import html
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import chain, count, islice, pairwise
from statistics import median
from typing import Any

from corpus_asr.errors import FetchError
from corpus_asr.logs import event
from corpus_asr.report.numbers import OF_RUN, FailureExample, FailureGroup, RunNumbers
from corpus_asr.report.run import NightNumbers, last_runs
from corpus_asr.report.text import aligned, duration, printable, text_template
from corpus_asr.storage.run_state.current_rows import read_confidences
from corpus_asr.storage.run_state.run_files import read_snapshot
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.table_names import SEGMENT_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted, shortened

logger = logging.getLogger(__name__)

# A summary, not a table: of languages it has the first.
MOST_LANGUAGES = 10
MIN_PAST = 3  # runs it takes to say what is usual
# Fewer failures, or transcripts of low confidence, warn of nothing in any number of files.
_FEW = 3
_PAST_NIGHTS = 14
_TIMES = 3.0
# Three times a share of almost nothing is nothing: it has to be higher by so much, too.
_FAILED_POINTS, _UNSURE_POINTS = 0.05, 0.1
# RTFx differs from night to night; half of the usual is more than that.
_SLOWER = 0.5
# Some recordings are always deleted; a tenth of an archive between two nights is not.
_SHRUNK = 0.9
_MOST_CHARACTERS = 300  # of a message
_SHORT_FAILURES = 5


class NightState(StrEnum):
    """Final state of a night."""

    done = "done"
    time_limit = "time_limit"
    stopped = "stopped"  # by a signal
    aborted = "aborted"


_STATES = {
    NightState.done: "done",
    NightState.time_limit: "time limit reached; the next run continues",
    NightState.stopped: "stopped; the next run continues",
    NightState.aborted: "aborted; committed results are kept",
}


_OF_NIGHT = ("date", "state", "listed", "new", "remaining", "audio_s", "wall_s", "rtfx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Counts of all runs on the output folder."""

    done: int
    failed: int
    audio_s: float
    earlier: int = 0
    """Failed or remaining recordings whose text is kept: that of an earlier version."""
    gone: int = 0
    """Recordings that are not listed any more; their audio is counted, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A night; times in seconds, moments as ISO 8601 with their offset."""

    date: str
    """Date of its start in local time."""
    output: str
    run_id: str
    state: NightState
    error: str | None
    """Reason why it was aborted or stopped."""
    started_at: str
    ended_at: str
    wall_s: float
    listed: int
    new: int
    """Planned recordings never seen before."""
    changed: int
    """Planned ones with new content."""
    retried: int
    """Planned ones that had failed before."""
    redone: int = 0
    """Planned recordings that were requested by `redo` and are done."""
    continued: int
    """Planned ones of which some parts were done before."""
    moved: int = 0
    """Recordings whose results followed them to another address; none of the planned ones."""
    erased: int = 0
    """Erased recordings that are in the source again, and skipped."""
    hooks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Counts of recordings passed to hooks, as in `run.json`, by name of the hook."""
    remaining: int
    """Neither done nor failed."""
    audio_s: float
    """Committed audio."""
    rtfx: float
    findings: RunNumbers
    """Numbers of its recordings."""
    archive: Archive | None
    """None if the night was stopped or aborted."""
    skipped: int
    """Recordings that failed too often to be retried."""
    no_longer_retried: tuple[str, ...]
    """The first few of them that failed for the last time in this night."""
    over_limit: str | None = None
    warnings: tuple[str, ...] = ()
    past: tuple[NightNumbers, ...] = ()
    """Earlier nights, the last one first."""
    webhook_error: str | None = None

    @property
    def planned(self) -> int:
        """Number of recordings to process."""
        return self.new + self.changed + self.retried + self.redone + self.continued

    @property
    def processed(self) -> int:
        """Number of recordings that were completed or failed."""
        return self.findings.done + self.findings.failed

    @property
    def numbers(self) -> NightNumbers:
        """Return the numbers of this run."""
        findings = self.findings
        return NightNumbers(
            **{name: getattr(self, name) for name in _OF_NIGHT},
            **{name: getattr(findings, name) for name in ("done", "failed", "low_confidence")},
        )


def as_data(night: Night) -> dict[str, Any]:
    """Return a night as JSON has it."""
    data = {**asdict(night), "planned": night.planned, "numbers": asdict(night.numbers)}
    findings = data["findings"]
    data["findings"] = {
        "done": night.findings.done,
        **{name: findings[name] for name in ("no_speech", "failed", "failures")},
        "languages": [{"language": share.pop("name"), **share} for share in findings["languages"]][
            :MOST_LANGUAGES
        ],
        "confidence": findings["mean_confidence"],
        "low_confidence": findings["low_confidence"],
    }
    return data


def findings_of(store: OutputStore, run_id: str) -> RunNumbers:
    """Return what recordings of a finished run came to."""
    with RunTables(store, opened="false") as tables:
        of_run = "select recording_id from recorded where run_id = $run"
        tables.open(tables.table(of_run, run=run_id)["recording_id"])
        # Objects without parts of the run or its recordings need not be opened.
        counting = f"counts and (run_id = $run or {OF_RUN})"
        read_confidences(store, tables, SEGMENT_ROWS, which=counting, run=run_id)
        return RunNumbers.of(tables, run=run_id)


def findings_so_far(store: OutputStore, run_id: str) -> RunNumbers:
    """Return the counts of a stopped or aborted run, with its committed audio."""
    snapshot = read_snapshot(store)
    if snapshot is None or snapshot.run_id != run_id:
        return RunNumbers()
    failed = min(snapshot.failed, snapshot.files)
    groups = tuple(
        FailureGroup(
            stage=failure.stage,
            kind=failure.kind,
            recordings=failure.count,
            retryable=failure.retryable,
            examples=tuple(
                FailureExample(uri=uri, message="" if at else failure.message)
                for at, uri in enumerate(failure.examples)
            ),
        )
        for failure in snapshot.failures
    )
    return RunNumbers(
        ok=snapshot.files - failed, failed=failed, failures=groups, audio_s=snapshot.audio_s
    )


def over_limit(night: Night, limit: float) -> str | None:
    """Return a message if failures exceed `output.max_failed_fraction`; else None.

    The limit applies to each hook separately as well.
    """
    counts = [("recordings failed", night.findings.failed, night.processed)]
    for name, hook in night.hooks.items():
        words = f"recordings failed in the hook {name}"
        counts.append((words, hook["failed"], hook["recordings"] + hook["failed"]))
    return next(filter(None, (_over_limit(*count, limit) for count in counts)), None)


def _over_limit(words: str, failed: int, ended: int, limit: float) -> str | None:
    # One bad file in a run of five is no reason for an alarm.
    allowed = max(1, int(limit * ended)) if limit > 0 else 0
    if failed <= allowed:
        return None
    share = f"{failed:,} of {ended:,} {words} ({failed / ended:.1%})"
    return f"{share}, more than output.max_failed_fraction allows ({limit:.1%})"


def warnings_of(night: Night, past: Sequence[NightNumbers]) -> tuple[str, ...]:
    """Return warnings about unusual numbers, compared with past runs, latest first."""
    # Stopped or aborted runs are excluded: their numbers cover only part of their work.
    at_their_end = (NightState.done, NightState.time_limit)
    comparable = [past_night for past_night in past if past_night.state in at_their_end]
    return tuple(_unusual(night, comparable)) if night.state in at_their_end else ()


def _unusual(night: Night, past: Sequence[NightNumbers]) -> Iterator[str]:
    findings, enough = night.findings, len(past) >= MIN_PAST
    if enough and not night.new and all(past_night.new for past_night in past):
        usual = median(past_night.new for past_night in past)
        yield (
            f"no new recordings, for the first time in {len(past) + 1} nightly runs (usually "
            f"{usual:,.0f}); does whatever delivers them still run?"
        )
    if past and night.listed < _SHRUNK * past[0].listed:
        yield (
            f"{night.listed:,} recordings are listed, and {past[0].listed:,} in the previous "
            "run; were they moved, or can they no longer be seen?"
        )
    failed, done, ended, unsure = (
        sum(getattr(past_night, name) for past_night in past)
        for name in ("failed", "done", "processed", "low_confidence")
    )
    if enough and _is_higher(findings.failed, night.processed, failed, ended, _FAILED_POINTS):
        share, usual = findings.failed / night.processed, failed / ended
        yield f"{share:.1%} of the recordings failed, usually {usual:.1%}"
    if enough and _is_higher(findings.low_confidence, findings.done, unsure, done, _UNSURE_POINTS):
        share, usual = findings.low_confidence / findings.done, unsure / done
        yield f"{share:.1%} of the transcripts have low confidence, usually {usual:.1%}"
    # Loading the model dominates short runs.
    busy = [past_night for past_night in past if past_night.audio_s > 0]
    if len(busy) >= MIN_PAST and night.audio_s >= _SLOWER * median(
        past_night.audio_s for past_night in busy
    ):
        usual = median(past_night.rtfx for past_night in busy)
        if night.rtfx < _SLOWER * usual:
            yield f"RTFx {night.rtfx:,.1f}, usually {usual:,.1f}"
    backlog = [night.remaining, *(past_night.remaining for past_night in past[: MIN_PAST - 1])]
    if len(backlog) == MIN_PAST and all(
        later > earlier > 0 for later, earlier in pairwise(backlog)
    ):
        yield (
            f"the backlog grows with every run, now {night.remaining:,} recordings: the archive "
            "grows faster than it is transcribed; raise nightly.stop_after_h, or add nodes"
        )


def _is_higher(count: int, of: int, past_count: int, past_of: int, points: float) -> bool:
    if count < _FEW or not past_of:
        return False
    usual = past_count / past_of
    return count / of > max(_TIMES * usual, usual + points)


def headline(night: Night) -> str:
    """Return the run as one sentence."""
    work = (
        f"{counted(night.findings.done, 'recording')} done, {night.findings.failed:,} failed, "
        f"{night.remaining:,} remaining; "
        f"{duration(night.audio_s)} of audio in {duration(night.wall_s)}"
    )
    return f"Nightly run of {night.date}, {_STATES[night.state]}: {work}"


def alarms(night: Night) -> list[str]:
    """Return messages that need attention, worst first."""
    hooks = [
        f"hook {name}: {counted(hook_counts['failed'], 'recording')} failed; see the log"
        for name, hook_counts in night.hooks.items() if hook_counts["failed"]
    ]  # fmt: skip
    messages = [night.error, night.over_limit, *night.warnings, *hooks, night.webhook_error]
    return [message for message in messages if message is not None]


def chat(night: Night, summary: str) -> str:
    """Return a message in Slack's markup with the URI of the summary."""
    lines = [headline(night), *(f"• {words}" for words in alarms(night))]
    for group in night.findings.failures[:_SHORT_FAILURES]:
        first = redact_uri(group.examples[0].uri) if group.examples else "an unknown one"
        lines.append(f"• {group.recordings:,} {group.kind}, such as {first}")
    lines.append(f"{redact_uri(night.output)}, see {redact_uri(summary)}")
    # Slack reserves only &, < and >.
    return html.escape("\n".join(printable(line) for line in lines), quote=False)


def markdown(night: Night) -> str:
    """Return the whole summary."""
    findings = night.findings
    counts = [
        ("planned", night.planned), ("- new", night.new), ("- changed", night.changed),
        ("- failed before", night.retried), ("- to process again", night.redone),
        ("- resumed", night.continued), *((("moved", night.moved),) if night.moved else ()),
        *((("erased, skipped", night.erased),) if night.erased else ()),
        ("done", findings.done), ("- without speech", findings.no_speech),
        ("failed", findings.failed), ("remaining", night.remaining),
        *((f"hook {name}", hook_counts["recordings"]) for name, hook_counts in night.hooks.items()),
    ]  # fmt: skip
    template = text_template(
        "corpus_asr.report",
        "night.md.j2",
        code=_code,
        cut=lambda text: shortened(text, _MOST_CHARACTERS),
        redact=redact_uri,
        text=lambda text: re.sub(r"[\\`*_\[\]<>#|~]", r"\\\g<0>", printable(text)),
        time=lambda moment: f"{datetime.datetime.fromisoformat(moment):%H:%M (%Z)}",
    )
    return template.render(
        aligned=_table,
        night=night,
        findings=findings,
        state=_STATES[night.state],
        alarms=alarms(night),
        counts=[(name, f"{n:,}") for name, n in counts if n or not name.startswith("-")],
        languages=[
            (share.name, f"{share.recordings:,}", duration(share.audio_s))
            for share in findings.languages[:MOST_LANGUAGES]
        ],
        nights=[_night_cells(numbers) for numbers in (night.numbers, *night.past)],
    )


def _night_cells(night: NightNumbers) -> tuple[str, ...]:
    counts = (f"{count:,}" for count in (night.new, night.done, night.failed, night.remaining))
    return (
        night.date, night.state.replace("_", " "), *counts, duration(night.audio_s),
        duration(night.wall_s), f"{night.rtfx:,.1f}", f"{night.low_confidence:,}",
    )  # fmt: skip


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # Aligned, so that the source is readable. Even within code a bar would end the cell.
    rows = [[text.replace("|", "\\|") for text in row] for row in (header, *rows)]
    head, *body = aligned(rows, least=3)  # Markdown requires three dashes
    rule = ["-" * len(head[0]), *("-" * (len(cell) - 1) + ":" for cell in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _code(text: str) -> str:
    return "`" + printable(text).replace("`", "'") + "`"


def tell(
    night: Night,
    summaries: OutputStore,
    *,
    webhook_env: str | None,
    allow_hosts: Sequence[str] | None,
) -> Night:
    """Write the summary, post it to the webhook named by a variable, and record a failure."""
    name = _write(summaries, None, night)
    if webhook_env is None:
        return night
    where = "no summary could be written" if name is None else summaries.address(f"{name}.md")
    message = {"text": chat(night, where), "night": as_data(night)}
    try:
        post_json(os.environ.get(webhook_env, ""), message, allow_hosts=allow_hosts)
    except FetchError as error:
        # A failed message must not fail the run.
        event(logger, logging.WARNING, "webhook_error", variable=webhook_env, error=str(error))
        night = replace(night, webhook_error=f"{error} ({webhook_env})")
        if name is not None:
            _write(summaries, name, night)
    return night


def _write(summaries: OutputStore, name: str | None, night: Night) -> str | None:
    try:
        if name is None:
            # Several runs may start on one day.
            taken, numbered = set(summaries.all_names("")), (f"-{at}" for at in count(2))
            names = (f"{night.date}{number}" for number in chain([""], numbered))
            name = next(name for name in names if f"{name}.json" not in taken)
        summaries.write_bytes(f"{name}.md", markdown(night).encode("utf-8", "replace"))
        summaries.write_json(f"{name}.json", as_data(night))
    except FetchError as error:
        # Runs are often aborted because the store is down: the webhook must still report it.
        if night.error is None:
            raise
        event(logger, logging.WARNING, "summary_not_written", error=str(error))
        return None
    return name


def past_nights(store: OutputStore) -> tuple[NightNumbers, ...]:
    """Return the latest nightly runs of an output folder, latest first."""
    nights = (entry.night for entry in last_runs(store))
    return tuple(islice((night for night in nights if night is not None), _PAST_NIGHTS))
