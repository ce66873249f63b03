"""A night for people: Markdown for a file or a mail, and a few lines for a chat.

In: a `Night`. Out: text. What comes from recordings (names, messages) is shown so that it means
nothing: to Markdown, to Slack, to a terminal. Knows no store.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence

from corpus_asr.report.advice import advice
from corpus_asr.report.night import Night, NightState, PastNight
from corpus_asr.report.statistics import FailureGroup
from corpus_asr.report.text import counted, duration
from corpus_asr.storage.stores.uri import redact_uri

_STATES = {
    NightState.done: "done",
    NightState.time_over: "its time was over; the next night goes on",
    NightState.stopped: "stopped; the next night goes on",
    NightState.broken_off: "broken off; what was committed is kept",
}
_MOST_CHARACTERS = 300
_SHORT_FAILURES = 5


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
    """Return a message for Slack and what speaks its language, in which three letters are markup.

    Args:
        night: the night.
        summary: where the whole lies.
    """
    lines = [headline(night)]
    lines += [f"• {words}" for words in alarms(night)]
    groups = night.findings.failures[:_SHORT_FAILURES]
    lines += [f"• {group.recordings:,} {group.kind}, such as {_first(group)}" for group in groups]
    lines.append(f"{redact_uri(night.output)}, see {redact_uri(summary)}")
    text = "\n".join(_flat(line) for line in lines)
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
    yield from _failures(night)
    yield from _languages(night)
    yield from _unsure(night)
    yield from _past(night)


def _counts(night: Night) -> Iterator[tuple[str, str]]:
    found = night.findings
    rows = [
        ("to do", night.planned),
        ("- new", night.new),
        ("- changed", night.changed),
        ("- failed before", night.retried),
        ("- begun before", night.continued),
        ("done", found.done),
        ("- without speech", found.no_speech),
        ("failed", found.failed),
        ("left", night.left),
    ]
    yield from ((name, f"{count:,}") for name, count in rows if count or not name.startswith("-"))


def _audio(night: Night) -> str:
    return (
        f"{duration(night.audio_s)} of audio in {duration(night.wall_s)}, {night.speed:,.1f} hours "
        f"per hour; from {_time(night.started_at)} to {_time(night.ended_at)}"
    )


def _time(moment: str) -> str:
    when = datetime.datetime.fromisoformat(moment)
    return f"{when:%H:%M} ({when.tzname()})"


def _failures(night: Night) -> Iterator[str]:
    groups = night.findings.failures
    if groups:
        yield from _heading("Failures")
    for group in groups:
        next_step = advice(group.kind, retryable=group.retryable)
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


def _languages(night: Night) -> Iterator[str]:
    if night.findings.languages:
        yield from _heading("Languages")
        rows = [
            (share.language, f"{share.recordings:,}", duration(share.audio_s))
            for share in night.findings.languages
        ]
        yield from _table(("language", "recordings", "audio"), rows)


def _unsure(night: Night) -> Iterator[str]:
    found = night.findings
    if found.unsure:
        yield from _heading(f"Low confidence: {counted(found.unsure, 'recording')}")
        rows = [
            (_code(redact_uri(one.uri)), f"{one.confidence:.2f}", duration(one.audio_s))
            for one in found.least_sure
        ]
        yield from _table(("least sure", "confidence", "audio"), rows)


def _past(night: Night) -> Iterator[str]:
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
    """Align columns: the first to the left, the others to the right; readable as it stands."""
    # Even within code a bar would end the cell.
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


def _flat(text: str) -> str:
    """Return a text on one line, without what a terminal would obey."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _code(text: str) -> str:
    """Return a text as Markdown's code."""
    safe = _flat(text).replace("`", "'")
    return f"`{safe}`"


def _text(text: str) -> str:
    """Return a text that Markdown takes as it stands."""
    return "".join(f"\\{one}" if one in _MARKUP else one for one in _flat(text))


_MARKUP = set("\\`*_[]<>#|~")
