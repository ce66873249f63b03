"""A report as text for a console, and as plain data for a file.

In: counts. Out: lines of at most about 100 characters, the same on a terminal and in a log. Knows
no store and prints nothing itself.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from corpus_asr.report.balance import Balance
from corpus_asr.report.statistics import (
    CONFIDENCE_BINS,
    FailureGroup,
    Report,
    Statistics,
)

WIDTH = 100
_LABEL_WIDTH = 12
_BAR_WIDTH = 40

# What to do about a kind of failure, where its own message cannot say it for the whole corpus.
_ADVICE = {
    "access_denied": "check the credentials' rights on these addresses",
    "changed": "these were replaced while being read; run again when nothing writes there",
    "decoder_crashed": "their decoder crashed; convert them (ffmpeg -i IN OUT.flac) and run again",
    "decoder_timeout": "raise extract.item_timeout_s, or convert them (ffmpeg -i IN OUT.flac)",
    "not_found": "these were gone when they were read; list again with a new run",
    "poison": "they brought a model worker down twice; try them one by one with `transcribe`",
    "too_many_channels": "set extract.channels to mix or to one channel's number",
}
# A run does not repeat what failed: the failure is an outcome like any other.
_RETRY = "trying again may help: name them in a manifest, with another output.uri"
_NO_RETRY = "running again will not help; replace them or leave them out of the source"


def as_data(report: Report) -> dict[str, Any]:
    """Return the report as plain data for JSON."""
    data = asdict(report)
    statistics = data["statistics"]
    statistics["devices"] = dict(statistics["devices"])
    return data


def render(report: Report) -> str:
    """Return the report as text, without a final newline."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    found = report.statistics
    state = "finished" if report.finished else "not finished: still running, or stopped"
    yield f"{report.uri} ({state})"
    if report.model is not None:
        revision = f", revision {report.model_revision}" if report.model_revision else ""
        yield _row("model", f"{report.model}{revision}")
    yield _row("recordings", _recordings(found))
    yield _row("audio", _audio(found))
    yield _row("segments", f"{found.segments:,}")
    if report.wall_s is not None and report.speed is not None:
        speed = f"{report.speed:,.1f} hours of audio per hour in the last run"
        yield _row("speed", f"{speed}, which took {duration(report.wall_s)}")
    yield from _stages(found)
    yield from _languages(found)
    yield from _confidence(found)
    yield from _failures(found.failures)
    yield from _balance(found.balance, finished=report.finished)


def duration(seconds: float) -> str:
    """Say a stretch of time with the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _row(label: str, text: str) -> str:
    return f"  {label:<{_LABEL_WIDTH}}{text}"


def _table(label: str, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield _row(label if number == 0 else "", "  ".join(cells)).rstrip()


def _recordings(found: Statistics) -> str:
    balance = found.balance
    counts = [
        (found.ok, "with text"),
        (found.no_speech, "without speech"),
        (found.failed, "failed"),
        (balance.unfinished, "begun"),
        (balance.waiting, "waiting"),
    ]
    told = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    total = balance.ended + balance.unfinished + balance.waiting
    return f"{total:,}: {told}" if told else "none yet"


def _audio(found: Statistics) -> str:
    parts = _counted(found.parts, "part")
    speech = "speech was not looked for"
    if found.speech_s is not None:
        speech = f"{duration(found.speech_s)} of it speech"
        if found.audio_s > 0:
            speech += f" ({found.speech_s / found.audio_s:.0%})"
    return f"{duration(found.audio_s)} in {parts}; {speech}"


def _stages(found: Statistics) -> Iterator[str]:
    if not found.parts:
        return
    yield _row("extract", f"{duration(found.extract_s)}, summed over processes")
    if found.devices:
        parts = sum(count for _, count in found.devices)
        devices = ", ".join(name for name, _ in found.devices)
        mean = duration(found.transcribe_s / parts)
        yield _row("transcribe", f"{mean} per part from hand-over to result, on {devices}")
    if found.skipped_packets:
        files = found.recordings_with_skipped_packets
        yield _row(
            "damage",
            f"{found.skipped_packets:,} broken packets skipped in {_counted(files, 'recording')}",
        )


def _languages(found: Statistics) -> Iterator[str]:
    if not found.languages:
        return
    total = sum(share.audio_s for share in found.languages) or 1.0
    rows = [
        (
            share.language,
            duration(share.audio_s),
            f"{share.audio_s / total:.0%}",
            _counted(share.recordings, "recording"),
            _counted(share.segments, "segment"),
        )
        for share in found.languages
    ]
    yield from _table("languages", rows)


def _confidence(found: Statistics) -> Iterator[str]:
    total = sum(found.confidence)
    if not total:
        return
    largest = max(found.confidence)
    width = 1 / CONFIDENCE_BINS
    for number, count in enumerate(found.confidence):
        bar = "#" * round(count / largest * _BAR_WIDTH)
        span = f"{number * width:.1f}-{(number + 1) * width:.1f}"
        text = f"{span}  {count:>10,}  {count / total:>4.0%}  {bar}"
        yield _row("confidence" if number == 0 else "", text).rstrip()


def _failures(groups: tuple[FailureGroup, ...]) -> Iterator[str]:
    for group in groups:
        count = _counted(group.recordings, "recording")
        yield _row("failed", f"{count}: {group.kind}, in {group.stage}")
        for example in group.examples:
            # A message names its recording; one that does not is given the address.
            named = example.uri in example.message
            text = example.message if named else f"{example.uri}: {example.message}"
            yield from _wrapped(text, bullet="- ")
        yield from _wrapped(f"What to do: {advice(group)}.", bullet="")


def _wrapped(text: str, *, bullet: str) -> Iterator[str]:
    indent = " " * (_LABEL_WIDTH + 2)
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent + bullet,
        subsequent_indent=indent + " " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def advice(group: FailureGroup) -> str:
    """Say what to do about a kind of failure."""
    return _ADVICE.get(group.kind, _RETRY if group.retryable else _NO_RETRY)


def _balance(balance: Balance, *, finished: bool) -> Iterator[str]:
    problems = list(balance.problems)
    if finished and balance.unfinished + balance.waiting:
        problems.append(
            f"the run finished, yet {balance.unfinished:,} recordings are only begun and "
            f"{balance.waiting:,} are waiting"
        )
    if problems:
        yield _row("balance", "OFF")
        for problem in problems:
            yield from _wrapped(problem, bullet="- ")
        return
    if balance.listed is None:
        yield _row("balance", f"{balance.ended:,} ended exactly once; the listing is not known")
    elif balance.ended == balance.listed:
        yield _row("balance", f"all {balance.listed:,} listed files ended exactly once")
    else:
        yield _row(
            "balance",
            f"{balance.ended:,} of {balance.listed:,} listed files ended, each exactly once; "
            "run the same command again for the rest",
        )
