"""One night over an archive: what it came to, whether that is unusual, and its summary.

Summaries go into a folder, as JSON for later nights and as Markdown, and to a webhook. What comes
from recordings (names, messages) is escaped so that it means nothing to Markdown, Slack or a
terminal.
"""

import datetime
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import NightlySettings
from corpus_asr.errors import CorpusAsrError, FetchError
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.logs import event
from corpus_asr.report.reconciliation import EXAMPLES
from corpus_asr.report.run import FailureExample, FailureGroup, LanguageShare, sorted_groups
from corpus_asr.report.text import counted, duration, printable
from corpus_asr.storage.run_state.run_files import read_snapshot
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore
from corpus_asr.storage.stores.http import post_json
from corpus_asr.storage.stores.uri import redact_uri

logger = logging.getLogger(__name__)

MOST_LANGUAGES = 10
MOST_UNSURE = 10
_RECORDING_COLUMNS = (
    "run_id", "recording_id", "uri", "status", "error_stage", "error_kind", "error_message",
    "retryable", "duration_s", "segments", "languages",
)  # fmt: skip
_SEGMENT_COLUMNS = ("run_id", "recording_id", "start_s", "end_s", "confidence")
_WEIGHTED = pa.schema(
    [("recording_id", pa.string()), ("weight", pa.float64()), ("sure", pa.float64())]
)
MIN_PAST = 3  # nights it takes to say what is usual
_FEW = 3  # failures, or unsure recordings, that are nothing to speak of in any number of files
_TIMES = 3.0
_FAILED_POINTS, _UNSURE_POINTS = 0.05, 0.1  # so much higher a share has to be, too
_SLOWER = 0.5
_SHRUNK = 0.9
_SUMMARY = re.compile(r"(\d{4}-\d\d-\d\d)(?:-(\d+))?\.json", re.ASCII)
_MOST_CHARACTERS = 300  # of a message
_SHORT_FAILURES = 5
_MARKUP = set("\\`*_[]<>#|~")


class NightState(StrEnum):
    """How a night ended."""

    done = "done"
    time_over = "time_over"
    """Its time was over before its work: the next night goes on."""
    stopped = "stopped"
    """By a signal; what was committed is kept."""
    broken_off = "broken_off"
    """It could not go on; what was committed is kept."""


_STATES = {
    NightState.done: "done",
    NightState.time_over: "its time was over; the next night goes on",
    NightState.stopped: "stopped; the next night goes on",
    NightState.broken_off: "broken off; what was committed is kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PastNight:
    """What a night is compared by; times in seconds."""

    date: str
    state: str
    listed: int
    new: int
    done: int
    failed: int
    left: int
    audio_s: float
    wall_s: float
    speed: float
    unsure: int

    @property
    def ended(self) -> int:
        """Recordings that were done or failed."""
        return self.done + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsure:
    """A recording whose text the model was not sure of."""

    uri: str
    confidence: float
    audio_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the night's recordings hold, done and failed ones."""

    done: int = 0
    no_speech: int = 0
    failed: int = 0
    failures: tuple[FailureGroup, ...] = ()
    languages: tuple[LanguageShare, ...] = ()
    unsure: int = 0
    least_sure: tuple[Unsure, ...] = ()
    """Of them the first few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """All that is listed, whenever it was done."""

    done: int
    failed: int
    audio_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """A night; times in seconds, moments as ISO 8601 with their offset."""

    date: str
    """When it began, by the local clock."""
    output: str
    run_id: str
    state: NightState
    error: str | None
    """Why it broke off or was stopped."""
    started_at: str
    ended_at: str
    wall_s: float
    listed: int
    new: int
    """Of the recordings it had to do, those never seen before, ..."""
    changed: int
    """... those with new content, ..."""
    retried: int
    """... those that had failed before, ..."""
    continued: int
    """... and those begun before."""
    left: int
    """Neither done nor failed."""
    audio_s: float
    """Audio it committed."""
    speed: float
    """Hours of that per hour."""
    findings: Findings
    archive: Archive | None
    """None where the night did not come to its end."""
    left_alone: int
    """Recordings that failed too often to be tried again."""
    given_up: tuple[str, ...]
    """Those of them that this night gave up, the first few."""
    over_budget: str | None = None
    """Which budget is exceeded, and how far."""
    warnings: tuple[str, ...] = ()
    past: tuple[PastNight, ...] = ()
    """Earlier nights, the last one first."""
    not_told: str | None = None
    """Why the webhook did not take the message."""

    @property
    def planned(self) -> int:
        """Recordings it had to do."""
        return self.new + self.changed + self.retried + self.continued

    @property
    def ended(self) -> int:
        """Recordings that were done or failed."""
        return self.findings.done + self.findings.failed

    def as_past(self) -> PastNight:
        """Return what later nights compare with."""
        found = self.findings
        return PastNight(
            date=self.date, state=self.state, listed=self.listed, new=self.new, done=found.done,
            failed=found.failed, left=self.left, audio_s=self.audio_s, wall_s=self.wall_s,
            speed=self.speed, unsure=found.unsure,
        )  # fmt: skip


def as_data(night: Night) -> dict[str, Any]:
    """Return a night as JSON has it."""
    return {**asdict(night), "planned": night.planned, "numbers": asdict(night.as_past())}


def past_from(data: Any) -> PastNight | None:
    """Return the numbers of what `as_data` made; None of anything else, or another version."""
    try:
        numbers = data["numbers"]
        return PastNight(**{field.name: numbers[field.name] for field in fields(PastNight)})
    except (KeyError, TypeError):
        return None


def findings_of(store: OutputStore, run_id: str, *, low_confidence: float) -> Findings:
    """Return what a finished run found; recordings below `low_confidence` are named."""
    rows = [
        row
        for batch in store.recordings(_RECORDING_COLUMNS)
        for row in batch.filter(pc.equal(batch["run_id"], run_id)).to_pylist()
    ]
    statuses = Counter(row["status"] for row in rows)
    unsure = _unsure(store, run_id, rows, low_confidence)
    return Findings(
        done=statuses["ok"] + statuses["no_speech"],
        no_speech=statuses["no_speech"],
        failed=statuses["failed"],
        failures=_failures([row for row in rows if row["status"] == "failed"]),
        languages=_languages(rows),
        unsure=len(unsure),
        least_sure=tuple(unsure[:MOST_UNSURE]),
    )


def findings_so_far(store: OutputStore, run_id: str) -> tuple[Findings, float]:
    """Return what a run that did not come to its end had counted, and the audio it committed."""
    seen = read_snapshot(store)
    if seen is None or seen.run_id != run_id:
        return Findings(), 0.0
    failed = min(seen.failed, seen.files)
    groups = (
        FailureGroup(
            stage=failure.stage,
            kind=failure.kind,
            recordings=failure.count,
            retryable=failure.retryable,
            examples=tuple(FailureExample(uri=uri, message="") for uri in failure.examples),
        )
        for failure in seen.failures
    )
    findings = Findings(done=seen.files - failed, failed=failed, failures=tuple(groups))
    return findings, seen.audio_s


def _failures(failed: list[dict[str, Any]]) -> tuple[FailureGroup, ...]:
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(failed, key=lambda row: str(row["uri"])):
        kinds[row["error_stage"] or "unknown", row["error_kind"] or "unknown"].append(row)
    return sorted_groups(
        FailureGroup(
            stage=stage,
            kind=kind,
            recordings=len(rows),
            retryable=any(row["retryable"] for row in rows),
            examples=tuple(
                FailureExample(uri=row["uri"], message=row["error_message"] or "")
                for row in rows[:EXAMPLES]
            ),
        )
        for (stage, kind), rows in kinds.items()
    )


def _languages(rows: list[dict[str, Any]]) -> tuple[LanguageShare, ...]:
    # A recording counts for the language that most of its parts are in.
    spoken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["languages"]:
            spoken[row["languages"][0]].append(row)
    shares = [
        LanguageShare(
            language=language,
            recordings=len(theirs),
            audio_s=sum(row["duration_s"] for row in theirs),
            segments=sum(row["segments"] for row in theirs),
        )
        for language, theirs in spoken.items()
    ]
    shares.sort(key=lambda share: (-share.audio_s, share.language))
    return tuple(shares[:MOST_LANGUAGES])


def _unsure(
    store: OutputStore, run_id: str, rows: list[dict[str, Any]], low_confidence: float
) -> list[Unsure]:
    # By the mean of their segments over time.
    means = _confidences(store, run_id)
    unsure = [
        Unsure(uri=row["uri"], confidence=means[row["recording_id"]], audio_s=row["duration_s"])
        for row in rows
        if row["status"] == "ok" and means.get(row["recording_id"], 1.0) < low_confidence
    ]
    return sorted(unsure, key=lambda recording: (recording.confidence, recording.uri))


def _confidences(store: OutputStore, run_id: str) -> dict[str, float]:
    weighted = [_WEIGHTED.empty_table()]
    # The segments of commits without rows of the run need not be opened.
    commits = {
        batch.name: None
        for batch in store.committed(["run_id"], store.names(OUTCOMES_FOLDER))
        if pc.any(pc.equal(batch.rows["run_id"], run_id)).as_py()
    }
    for batch in store.segments(_SEGMENT_COLUMNS, list(commits)):
        ours = batch.filter(pc.equal(batch["run_id"], run_id))
        seconds = pc.subtract(ours["end_s"], ours["start_s"])
        weights = pc.add(seconds, 1e-3)  # a segment may have no length
        sure = pc.multiply(pc.cast(ours["confidence"], pa.float64()), weights)
        columns = [ours["recording_id"], weights, sure]
        weighted.append(pa.table(columns, schema=_WEIGHTED).drop_null())
    sums = pa.concat_tables(weighted).group_by("recording_id", use_threads=False)
    added = sums.aggregate([("sure", "sum"), ("weight", "sum")]).to_pylist()
    return {row["recording_id"]: row["sure_sum"] / row["weight_sum"] for row in added}


def over_budget(night: Night, budget: NightlySettings) -> str | None:
    """Say which budget of failures the night exceeds, and how far; None if it keeps both."""
    failed, ended = night.findings.failed, night.ended
    words = f"{failed:,} of {ended:,} recordings failed"
    if budget.max_failed is not None and failed > budget.max_failed:
        return f"{words}, more than nightly.max_failed allows ({budget.max_failed:,})"
    limit = budget.max_failed_fraction
    if limit is None:
        return None
    # One bad file in a night of five is no reason to wake somebody.
    allowed = max(1, int(limit * ended)) if limit > 0 else 0
    if failed <= allowed:
        return None
    words += f" ({failed / ended:.1%})"
    return f"{words}, more than nightly.max_failed_fraction allows ({limit:.1%})"


def warnings_of(night: Night, past: Sequence[PastNight]) -> tuple[str, ...]:
    """Say what is unusual about a night that came to its end, beside the past ones, last first.

    No rule speaks before it has enough nights to compare with.
    """
    at_their_end = (NightState.done, NightState.time_over)
    if night.state not in at_their_end:
        return ()
    usual = [one for one in past if one.state in at_their_end]
    rules = (_nothing_new, _fewer_listed, _more_failures, _more_unsure, _slower, _falling_behind)
    return tuple(words for rule in rules if (words := rule(night, usual)) is not None)


def _nothing_new(night: Night, past: Sequence[PastNight]) -> str | None:
    if night.new or len(past) < MIN_PAST or not all(one.new for one in past):
        return None
    usual = median(one.new for one in past)
    return (
        f"no new recordings, for the first time in {len(past) + 1} nights (usually {usual:,.0f}); "
        "does whatever delivers them still run?"
    )


def _fewer_listed(night: Night, past: Sequence[PastNight]) -> str | None:
    if not past or night.listed >= _SHRUNK * past[0].listed:
        return None
    return (
        f"{night.listed:,} recordings are listed, and {past[0].listed:,} were the night before; "
        "were they moved, or can they no longer be seen?"
    )


def _more_failures(night: Night, past: Sequence[PastNight]) -> str | None:
    failed, usual = night.findings.failed, sum(one.failed for one in past)
    share = _higher(failed, night.ended, usual, sum(one.ended for one in past), _FAILED_POINTS)
    if share is None or len(past) < MIN_PAST:
        return None
    return f"{failed / night.ended:.1%} of the recordings failed, usually {share:.1%}"


def _more_unsure(night: Night, past: Sequence[PastNight]) -> str | None:
    found, usual = night.findings, sum(one.unsure for one in past)
    share = _higher(found.unsure, found.done, usual, sum(one.done for one in past), _UNSURE_POINTS)
    if share is None or len(past) < MIN_PAST:
        return None
    return f"{found.unsure / found.done:.1%} of the transcripts are unsure, usually {share:.1%}"


def _higher(count: int, of: int, past_count: int, past_of: int, points: float) -> float | None:
    """Return the usual share where this one is far above it."""
    if count < _FEW or not past_of:
        return None
    usual = past_count / past_of
    return usual if count / of > max(_TIMES * usual, usual + points) else None


def _slower(night: Night, past: Sequence[PastNight]) -> str | None:
    busy = [one for one in past if one.audio_s > 0]
    if len(busy) < MIN_PAST or night.audio_s < _SLOWER * median(one.audio_s for one in busy):
        return None  # of a short night loading the model takes most of the time
    usual = median(one.speed for one in busy)
    if night.speed >= _SLOWER * usual:
        return None
    return f"{night.speed:,.1f} hours of audio per hour, usually {usual:,.1f}"


def _falling_behind(night: Night, past: Sequence[PastNight]) -> str | None:
    lefts = [night.left, *(one.left for one in past[: MIN_PAST - 1])]
    growing = all(later > earlier > 0 for later, earlier in pairwise(lefts))
    if len(lefts) < MIN_PAST or not growing:
        return None
    return (
        f"more is left every night, now {night.left:,} recordings: the archive grows faster than "
        "it is transcribed; raise nightly.stop_after_h, or give it more machines"
    )


def headline(night: Night) -> str:
    """Return the night in a sentence."""
    found = night.findings
    work = (
        f"{counted(found.done, 'recording')} done, {found.failed:,} failed, {night.left:,} left; "
        f"{duration(night.audio_s)} of audio in {duration(night.wall_s)}"
    )
    return f"Night of {night.date}, {_STATES[night.state]}: {work}"


def alarms(night: Night) -> list[str]:
    """Return what somebody should look at, the worst first."""
    found = [night.error, night.over_budget, *night.warnings, night.not_told]
    return [words for words in found if words is not None]


def chat(night: Night, summary: str) -> str:
    """Return a message for Slack, or what speaks its language, with the address of the summary."""
    lines = [headline(night)]
    lines += [f"• {words}" for words in alarms(night)]
    groups = night.findings.failures[:_SHORT_FAILURES]
    lines += [f"• {group.recordings:,} {group.kind}, such as {_first(group)}" for group in groups]
    lines.append(f"{redact_uri(night.output)}, see {redact_uri(summary)}")
    text = "\n".join(printable(line) for line in lines)
    # The only letters that are markup there.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(night: Night) -> str:
    """Return the whole summary."""
    return "\n".join(_lines(night)) + "\n"


def _lines(night: Night) -> Iterator[str]:
    yield f"# Night of {night.date}"
    yield ""
    yield f"{_code(redact_uri(night.output))}, {_STATES[night.state]}, run {night.run_id}"
    for words in alarms(night):
        yield ""
        yield f"> **Look at this:** {_text(words)}"
    yield ""
    yield from _table(("", "recordings"), _counts(night))
    yield ""
    yield f"{_audio(night)}."
    if night.archive is not None:
        found = night.archive
        yield (
            f"The archive: {found.done:,} of {night.listed:,} listed recordings done, "
            f"{found.failed:,} failed, {duration(found.audio_s)} of audio."
        )
    yield from _failure_lines(night)
    yield from _language_lines(night)
    yield from _unsure_lines(night)
    yield from _past_lines(night)


def _counts(night: Night) -> Iterator[tuple[str, str]]:
    found = night.findings
    rows = [
        ("to do", night.planned), ("- new", night.new), ("- changed", night.changed),
        ("- failed before", night.retried), ("- begun before", night.continued),
        ("done", found.done), ("- without speech", found.no_speech), ("failed", found.failed),
        ("left", night.left),
    ]  # fmt: skip
    yield from ((name, f"{count:,}") for name, count in rows if count or not name.startswith("-"))


def _audio(night: Night) -> str:
    return (
        f"{duration(night.audio_s)} of audio in {duration(night.wall_s)}, {night.speed:,.1f} hours "
        f"per hour; from {_time(night.started_at)} to {_time(night.ended_at)}"
    )


def _time(moment: str) -> str:
    when = datetime.datetime.fromisoformat(moment)
    return f"{when:%H:%M} ({when.tzname()})"


def _failure_lines(night: Night) -> Iterator[str]:
    groups = night.findings.failures
    if groups:
        yield from _heading("Failures")
    for group in groups:
        next_step = failure_kind(group.kind, retryable=group.retryable).advice
        if group.retryable:
            next_step = "tried again in the next nights"
        yield f"- **{_text(group.kind)}** ({_text(group.stage)}): {group.recordings:,}; {next_step}"
        for example in group.examples:
            message = f": {_text(_cut(example.message))}" if example.message else ""
            yield f"    - {_code(redact_uri(example.uri))}{message}"
    if night.left_alone:
        yield ""
        yield f"Failed too often, and now left alone: {counted(night.left_alone, 'recording')}."
        for uri in night.given_up:
            yield f"- given up tonight: {_code(redact_uri(uri))}"


def _language_lines(night: Night) -> Iterator[str]:
    if night.findings.languages:
        yield from _heading("Languages")
        rows = [
            (share.language, f"{share.recordings:,}", duration(share.audio_s))
            for share in night.findings.languages
        ]
        yield from _table(("language", "recordings", "audio"), rows)


def _unsure_lines(night: Night) -> Iterator[str]:
    found = night.findings
    if found.unsure:
        yield from _heading(f"Low confidence: {counted(found.unsure, 'recording')}")
        rows = [
            (_code(redact_uri(one.uri)), f"{one.confidence:.2f}", duration(one.audio_s))
            for one in found.least_sure
        ]
        yield from _table(("least sure", "confidence", "audio"), rows)


def _past_lines(night: Night) -> Iterator[str]:
    yield from _heading("Nights")
    header = (
        "night", "ended", "new", "done", "failed", "left", "audio", "time", "hours per hour",
        "unsure",
    )  # fmt: skip
    yield from _table(header, [_night_cells(one) for one in (night.as_past(), *night.past)])


def _night_cells(one: PastNight) -> tuple[str, ...]:
    counts = (f"{count:,}" for count in (one.new, one.done, one.failed, one.left))
    state = one.state.replace("_", " ")
    return (
        one.date, state, *counts, duration(one.audio_s), duration(one.wall_s), f"{one.speed:,.1f}",
        f"{one.unsure:,}",
    )  # fmt: skip


def _heading(text: str) -> Iterator[str]:
    yield ""
    yield f"## {text}"
    yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    # Aligned, so that it can be read as it stands. Even within code a bar would end the cell.
    cells = [[text.replace("|", "\\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    for number, row in enumerate(cells):
        first, *others = (
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"| {' | '.join([first, *others])} |"
        if number == 0:
            rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            yield f"| {' | '.join(rules)} |"


def _first(group: FailureGroup) -> str:
    return redact_uri(group.examples[0].uri) if group.examples else "none that is known"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _code(text: str) -> str:
    safe = printable(text).replace("`", "'")
    return f"`{safe}`"


def _text(text: str) -> str:
    return "".join(f"\\{one}" if one in _MARKUP else one for one in printable(text))


def tell(
    night: Night,
    summaries: OutputStore,
    *,
    webhook_env: str | None,
    allow_hosts: Sequence[str] | None,
) -> Night:
    """Write the summary, tell the webhook, and note if that failed.

    Of a night that broke off, a summary that cannot be written is logged, and the webhook is told
    all the same: perhaps it broke off for that very reason.

    Args:
        night: the night.
        summaries: the folder of summaries.
        webhook_env: the variable that holds the webhook's address; None for none.
        allow_hosts: where http is good enough for it.

    Raises:
        FetchError: the summary of a night that came to its end could not be written.
    """
    name = _write(summaries, None, night)
    if webhook_env is None:
        return night
    where = "no summary could be written" if name is None else summaries.address(f"{name}.md")
    message = {"text": chat(night, where), "night": as_data(night)}
    try:
        post_json(os.environ.get(webhook_env, ""), message, allow_hosts=allow_hosts)
    except FetchError as error:
        # The night's work is worth more than the message about it.
        event(logger, logging.WARNING, "webhook_not_told", variable=webhook_env, error=str(error))
        night = replace(night, not_told=f"{error} ({webhook_env})")
        if name is not None:
            _write(summaries, name, night)
    return night


def _write(summaries: OutputStore, name: str | None, night: Night) -> str | None:
    try:
        name = name or _free_name(summaries, night.date)
        summaries.write_bytes(f"{name}.md", markdown(night).encode("utf-8", "replace"))
        summaries.write_json(f"{name}.json", as_data(night))
    except FetchError as error:
        if night.error is None:
            raise
        event(logger, logging.WARNING, "summary_not_written", error=str(error))
        return None
    return name


def past_nights(summaries: OutputStore, count: int) -> tuple[PastNight, ...]:
    """Return the last nights a folder has summaries of, the latest first.

    One that cannot be read is left out, and logged.
    """
    nights = []
    for name in reversed(_summary_names(summaries)[-count:]):
        try:
            night = past_from(summaries.read_json(name))
        except CorpusAsrError as error:
            logger.warning("earlier night left out: %s", error)
            continue
        if night is not None:
            nights.append(night)
            continue
        address = redact_uri(summaries.address(name))
        logger.warning("earlier night left out: %s is no summary", address)
    return tuple(nights)


def _free_name(summaries: OutputStore, date: str) -> str:
    # Several nights may begin on a day.
    names = _summary_names(summaries)
    numbers = [number for day, number, _ in map(_parts, names) if day == date]
    return date if not numbers else f"{date}-{max(numbers) + 1}"


def _summary_names(summaries: OutputStore) -> list[str]:
    names = (name for name in summaries.all_names("") if _SUMMARY.fullmatch(name))
    return sorted(names, key=_parts)


def _parts(name: str) -> tuple[str, int, str]:
    match = _SUMMARY.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 1), name
