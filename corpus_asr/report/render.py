"""A report as text for a console, and as plain data for a file.

In: counts. Out: lines of at most about 100 characters, the same on a terminal and in a log. Knows
no store and prints nothing itself.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from corpus_asr.report.advice import advice
from corpus_asr.report.balance import Balance
from corpus_asr.report.bottleneck import time_lines
from corpus_asr.report.statistics import (
    CONFIDENCE_BINS,
    FailureGroup,
    Report,
    Statistics,
)
from corpus_asr.report.text import counted, duration, row, table, wrapped

_BAR_WIDTH = 40
_MOST_LABELS = 20  # a classifier may know thousands


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
        yield row("model", f"{report.model}{revision}")
    yield row("recordings", _recordings(found))
    yield row("audio", _audio(found))
    yield row("labels" if found.labels else "segments", f"{found.segments:,}")
    if report.wall_s is not None and report.speed is not None:
        speed = f"{report.speed:,.1f} hours of audio per hour in the last run"
        yield row("speed", f"{speed}, which took {duration(report.wall_s)}")
    yield from _stages(found)
    if report.snapshot is not None:
        yield from time_lines(report.snapshot)
    yield from _labels(found) if found.labels else _languages(found)
    yield from _confidence(found)
    yield from _failures(found.failures)
    yield from _balance(found.balance, finished=report.finished)


def _recordings(found: Statistics) -> str:
    balance = found.balance
    counts = [
        (found.ok, "with labels" if found.labels else "with text"),
        (found.no_speech, "without speech"),
        (found.failed, "failed"),
        (balance.unfinished, "begun"),
        (balance.waiting, "waiting"),
    ]
    told = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    total = balance.ended + balance.unfinished + balance.waiting
    return f"{total:,}: {told}" if told else "none yet"


def _audio(found: Statistics) -> str:
    parts = counted(found.parts, "part")
    speech = "speech was not looked for"
    if found.speech_s is not None:
        speech = f"{duration(found.speech_s)} of it speech"
        if found.audio_s > 0:
            speech += f" ({found.speech_s / found.audio_s:.0%})"
    return f"{duration(found.audio_s)} in {parts}; {speech}"


def _stages(found: Statistics) -> Iterator[str]:
    if not found.parts:
        return
    yield row("extracting", f"{duration(found.extract_s)}, summed over processes")
    if found.devices:
        parts = sum(count for _, count in found.devices)
        devices = ", ".join(name for name, _ in found.devices)
        mean = duration(found.transcribe_s / parts)
        yield row("transcribe", f"{mean} per part from hand-over to result, on {devices}")
    if found.skipped_packets:
        files = found.recordings_with_skipped_packets
        yield row(
            "damage",
            f"{found.skipped_packets:,} broken packets skipped in {counted(files, 'recording')}",
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
            counted(share.recordings, "recording"),
            counted(share.segments, "segment"),
        )
        for share in found.languages
    ]
    yield from table("languages", rows)


def _labels(found: Statistics) -> Iterator[str]:
    total = sum(share.audio_s for share in found.labels) or 1.0
    shown = [
        (
            share.label,
            duration(share.audio_s),
            f"{share.audio_s / total:.0%}",
            counted(share.recordings, "recording"),
        )
        for share in found.labels[:_MOST_LABELS]
    ]
    yield from table("found", shown)
    others = found.labels[_MOST_LABELS:]
    if others:
        audio_s = sum(share.audio_s for share in others)
        yield row("", f"and {counted(len(others), 'other label')}, {duration(audio_s)}")


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
        yield row("confidence" if number == 0 else "", text).rstrip()


def _failures(groups: tuple[FailureGroup, ...]) -> Iterator[str]:
    for group in groups:
        count = counted(group.recordings, "recording")
        yield row("failed", f"{count}: {group.kind}, in {group.stage}")
        for example in group.examples:
            # A message names its recording; one that does not is given the address.
            named = example.uri in example.message
            text = example.message if named else f"{example.uri}: {example.message}"
            yield from wrapped(text, bullet="- ")
        yield from wrapped(f"What to do: {advice(group.kind, retryable=group.retryable)}.")


def _balance(balance: Balance, *, finished: bool) -> Iterator[str]:
    problems = list(balance.problems)
    if finished and balance.unfinished + balance.waiting:
        problems.append(
            f"the run finished, yet {balance.unfinished:,} recordings are only begun and "
            f"{balance.waiting:,} are waiting"
        )
    if problems:
        yield row("balance", "OFF")
        for problem in problems:
            yield from wrapped(problem, bullet="- ")
        return
    if balance.listed is None:
        yield row("balance", f"{balance.ended:,} ended exactly once; the listing is not known")
    elif balance.ended == balance.listed:
        yield row("balance", f"all {balance.listed:,} listed files ended exactly once")
    else:
        yield row(
            "balance",
            f"{balance.ended:,} of {balance.listed:,} listed files ended, each exactly once; "
            "run the same command again for the rest",
        )
