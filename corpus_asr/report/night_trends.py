"""What is unusual about a night: its budgets, and how it compares with the nights before.

In: a night and past ones. Out: sentences. Each rule is a function of its own; none speaks before it
has enough to compare with. Knows no store.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from corpus_asr.config.nightly import NightlySettings
from corpus_asr.report.night import Night, NightState, PastNight, comparable

MIN_PAST = 3
"""Nights it takes to say what is usual."""
_FEW = 3  # failures, or unsure recordings, that are nothing to speak of in any number of files
_TIMES = 3.0
_FAILED_POINTS, _UNSURE_POINTS = 0.05, 0.1  # so much higher a share has to be, too
_SLOWER = 0.5
_SHRUNK = 0.9

Rule = Callable[[Night, Sequence[PastNight]], str | None]


def over_budget(night: Night, budget: NightlySettings) -> str | None:
    """Say which budget of failures the night exceeds, and how far; None if it keeps both."""
    failed, ended = night.findings.failed, night.ended
    told = f"{failed:,} of {ended:,} recordings failed"
    if budget.max_failed is not None and failed > budget.max_failed:
        return f"{told}, more than nightly.max_failed allows ({budget.max_failed:,})"
    share = budget.max_failed_fraction
    if share is None:
        return None
    # One bad file in a night of five is no reason to wake somebody.
    allowed = max(1, int(share * ended)) if share > 0 else 0
    if failed <= allowed:
        return None
    return (
        f"{told} ({failed / ended:.1%}), more than nightly.max_failed_fraction allows ({share:.1%})"
    )


def warnings_of(night: Night, past: Sequence[PastNight]) -> tuple[str, ...]:
    """Say what is unusual about a night that came to its end.

    Args:
        night: the night.
        past: nights before it, the last one first.
    """
    if night.state not in (NightState.done, NightState.time_over):
        return ()
    usual = comparable(past)
    found = (rule(night, usual) for rule in _RULES)
    return tuple(words for words in found if words is not None)


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


_RULES: tuple[Rule, ...] = (
    _nothing_new,
    _fewer_listed,
    _more_failures,
    _more_unsure,
    _slower,
    _falling_behind,
)
