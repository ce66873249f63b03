"""What a run came to, kept for the next one, and how the two differ.

Tables hold the archive as it is now; what it was after an earlier run is in `_run/numbers.json`,
where each run that committed something leaves its numbers, whatever its settings.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.failure_kinds import failure_kind
from corpus_asr.logs import event
from corpus_asr.report.run import Report
from corpus_asr.report.text import duration
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

_LOG = logging.getLogger(__name__)

NUMBERS_NAME = "_run/numbers.json"
# Of about 5 kB; only the last one of another run is compared with.
MOST_RUNS = 10
MOST_KINDS = MOST_LANGUAGES = 12
# What settings that are versions of packages begin with.
VERSION = "version of "
MINUS, NO_CHANGE = "\N{MINUS SIGN}", "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNumbers:
    """An output folder after a run; of the run itself are speed and time only."""

    run_id: str
    finished_at: str
    """ISO 8601, UTC."""
    ok: int
    no_speech: int
    failed: int
    audio_s: float
    segments: int
    """Or labels."""
    mean_confidence: float | None
    low_confidence: float | None
    """Share of the recordings with text, or labels, whose confidence is below `LOW_CONFIDENCE`."""
    rtfx: float | None
    wall_s: float | None
    failures: Mapping[str, int]
    """Recordings by kind of failure."""
    languages: Mapping[str, float]
    """Seconds of audio by language, or by label."""
    settings: Mapping[str, str | None]
    """Settings and versions by their names, as the page shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number, then and now, in words."""

    name: str
    then: str
    now: str
    change: str
    tone: str = ""
    """`good` or `bad`, where one of them is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run compared with the one before it."""

    before: KeptNumbers
    results: Sequence[Difference]
    failures: Sequence[Difference]
    languages: Sequence[Difference]
    settings: Sequence[tuple[str, str | None, str | None]]
    """Those that changed: name, then and now."""

    @property
    def changed(self) -> bool:
        """Whether anything differs but speed and time."""
        groups = (self.results[:-2], self.failures, self.languages)
        return bool(self.settings) or any(each.change != NO_CHANGE for g in groups for each in g)


def numbers_of(
    report: Report, *, finished_at: str, settings: Mapping[str, str | None]
) -> KeptNumbers | None:
    """Return the numbers of a report; None if its run committed nothing."""
    counts = report.statistics
    if report.run_id is None or report.run_id not in dict(counts.audio_by_run_s):
        return None
    failures: dict[str, int] = {}
    for group in counts.failures:
        failures[group.kind] = failures.get(group.kind, 0) + group.recordings
    return KeptNumbers(
        run_id=report.run_id,
        finished_at=finished_at,
        ok=counts.ok,
        no_speech=counts.no_speech,
        failed=counts.failed,
        audio_s=counts.audio_s,
        segments=counts.segments,
        mean_confidence=counts.mean_confidence,
        low_confidence=counts.low_confidence / counts.ok if counts.ok else None,
        rtfx=report.rtfx,
        wall_s=report.wall_s,
        failures=failures,
        languages={each.name: each.audio_s for each in (counts.labels or counts.languages)},
        settings=settings,
    )


def remember(store: OutputStore, numbers: KeptNumbers) -> None:
    """Keep a run's numbers for later runs of its output folder."""
    others = [each for each in _kept(store) if each.run_id != numbers.run_id]
    runs = [asdict(each) for each in (*others, numbers)][-MOST_RUNS:]
    store.write_json(NUMBERS_NAME, {"runs": runs})


def previous(store: OutputStore, run_id: str | None) -> KeptNumbers | None:
    """Return the numbers of the last run but this one; None for the first."""
    others = [each for each in _kept(store) if each.run_id != run_id]
    return others[-1] if others else None


def _kept(store: OutputStore) -> list[KeptNumbers]:
    data = store.read_json(NUMBERS_NAME)
    if data is None:
        return []
    try:
        return [_read(run) for run in data["runs"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Of another version: the page does without a comparison, and the next run begins it again.
        event(
            _LOG, logging.WARNING, "numbers_not_read", uri=redact_uri(store.uri),
            why=f"{NUMBERS_NAME}: {type(error).__name__}: {error}",
        )  # fmt: skip
        return []


def _read(run: Any) -> KeptNumbers:
    def measure(name: str) -> float | None:
        return None if run[name] is None else float(run[name])

    return KeptNumbers(
        run_id=str(run["run_id"]),
        finished_at=str(run["finished_at"]),
        ok=int(run["ok"]),
        no_speech=int(run["no_speech"]),
        failed=int(run["failed"]),
        audio_s=float(run["audio_s"]),
        segments=int(run["segments"]),
        failures={kind: int(count) for kind, count in run["failures"].items()},
        languages={name: float(audio_s) for name, audio_s in run["languages"].items()},
        settings={key: value and str(value) for key, value in run["settings"].items()},
        mean_confidence=measure("mean_confidence"),
        low_confidence=measure("low_confidence"),
        rtfx=measure("rtfx"),
        wall_s=measure("wall_s"),
    )


def compare(before: KeptNumbers, now: KeptNumbers, *, classifies: bool) -> Comparison:
    """Return how two runs of one output folder differ."""
    what = "Labels" if classifies else "Segments"
    results = [
        _count("With labels" if classifies else "With text", before.ok, now.ok),
        _count("Without speech", before.no_speech, now.no_speech),
        _count("Failed", before.failed, now.failed, more="bad"),
        _number("Audio", before.audio_s, now.audio_s, duration),
        _count(what, before.segments, now.segments),
        _share("Mean confidence", before.mean_confidence, now.mean_confidence, more="good"),
        _share(
            f"Recordings below {LOW_CONFIDENCE:.0%} confidence",
            before.low_confidence, now.low_confidence, more="bad",
        ),
        _number("RTFx", before.rtfx, now.rtfx, "{:,.1f}".format, factor=True),
        _number("Time", before.wall_s, now.wall_s, duration),
    ]  # fmt: skip
    failures = [
        _count(failure_kind(kind).title, *counts, more="bad")
        for kind, counts in _both(before.failures, now.failures, MOST_KINDS)
    ]
    languages = [
        _number(name, *audio_s, duration)
        for name, audio_s in _both(before.languages, now.languages, MOST_LANGUAGES)
    ]
    settings = [
        (key, before.settings.get(key), now.settings.get(key))
        for key in sorted({*before.settings, *now.settings})
        if before.settings.get(key) != now.settings.get(key)
        # Versions are known of finished runs alone.
        and (not key.startswith(VERSION) or {key} <= before.settings.keys() & now.settings.keys())
    ]
    return Comparison(
        before=before, results=results, failures=failures, languages=languages, settings=settings
    )


def _both(
    before: Mapping[str, float], now: Mapping[str, float], most: int
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    # The largest of either.
    largest = {name: max(before.get(name, 0), now.get(name, 0)) for name in (*now, *before)}
    for name in sorted(largest, key=lambda name: (-largest[name], name))[:most]:
        yield name, (before.get(name, 0), now.get(name, 0))


def _count(name: str, before: int, now: int, *, more: str = "") -> Difference:
    return _number(name, before, now, "{:,}".format, more=more)


def _number(
    name: str,
    before: float | None,
    now: float | None,
    say: Callable[[Any], str],
    *,
    more: str = "",
    factor: bool = False,
) -> Difference:
    then_words, words = ("-" if each is None else say(each) for each in (before, now))
    if before is None or now is None or then_words == words:
        return Difference(name=name, then=then_words, now=words, change=NO_CHANGE)
    sign = "+" if now > before else MINUS
    change = (
        f"{sign}{abs(now / before - 1):.0%}" if factor and before else sign + say(abs(now - before))
    )
    fewer = {"good": "bad", "bad": "good", "": ""}[more]
    tone = more if now > before else fewer
    return Difference(name=name, then=then_words, now=words, change=change, tone=tone)


def _share(name: str, before: float | None, now: float | None, *, more: str) -> Difference:
    found = _number(name, before, now, "{:.1%}".format, more=more)
    return replace(found, change=found.change.replace("%", " points"))
