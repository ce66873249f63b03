"""Budgets are kept or not; what is unusual is said, and what is usual is not."""

from collections.abc import Sequence
from typing import Any

import pytest

from corpus_asr.config.nightly import NightlySettings
from corpus_asr.report.night import Night, NightState, PastNight
from corpus_asr.report.night_trends import over_budget, warnings_of
from tests.support.nights_told import night, past

USUAL = (past(), past(), past())


@pytest.mark.parametrize(
    ("failed", "ended", "budget", "exceeded"),
    [
        (10, 100, {}, False),
        (11, 100, {}, True),
        (1, 1, {}, False),  # one bad file of one
        (2, 5, {}, True),
        (1, 100, {"max_failed_fraction": 0.0}, True),
        (0, 100, {"max_failed_fraction": 0.0}, False),
        (0, 0, {"max_failed_fraction": 0.0, "max_failed": 0}, False),
        (100, 100, {"max_failed_fraction": None}, False),
        (5, 1000, {"max_failed": 5}, False),
        (6, 1000, {"max_failed": 5}, True),
        (60, 100, {"max_failed": 100}, True),
    ],
)
def test_a_budget_is_exceeded_by_its_share_or_its_count(
    failed: int, ended: int, budget: dict[str, Any], exceeded: bool
) -> None:
    found = over_budget(night(done=ended - failed, failed=failed), NightlySettings(**budget))
    assert (found is not None) is exceeded
    if found is not None:
        assert found.startswith(f"{failed:,} of {ended:,} recordings failed")


@pytest.mark.parametrize(
    ("found", "before", "words"),
    [
        (night(), USUAL, None),
        (night(new=0, done=0, audio_s=0.0), USUAL,
         "no new recordings, for the first time in 4 nights (usually 10)"),
        (night(new=0), (*USUAL, past(new=0)), None),  # not the first time
        (night(new=0), USUAL[:2], None),  # who knows what is usual
        (night(listed=800), (past(listed=1000),), "800 recordings are listed, and 1,000 were"),
        (night(listed=950), (past(listed=1000),), None),
        (night(done=7, failed=3), USUAL, "30.0% of the recordings failed, usually 0.0%"),
        (night(done=8, failed=2), USUAL, None),  # two files
        (night(done=7, failed=3), (past(done=8, failed=2),) * 3, None),
        (night(done=7, failed=3), USUAL[:2], None),
        (night(unsure=4), USUAL, "40.0% of the transcripts are unsure, usually 0.0%"),
        (night(unsure=4), (past(unsure=2),) * 3, None),
        (night(speed=4.9), USUAL, "4.9 hours of audio per hour, usually 10.0"),
        (night(speed=5.0), USUAL, None),
        (night(speed=1.0, audio_s=3600.0), USUAL, None),  # a short night
        (night(speed=1.0), (past(audio_s=0.0, speed=0.0),) * 3, None),
        (night(left=30), (past(left=20), past(left=10)), "more is left every night, now 30"),
        (night(left=30), (past(left=20), past(left=0)), None),
        (night(left=20), (past(left=20), past(left=10)), None),
        (night(left=30), (past(left=20),), None),
    ],
)  # fmt: skip
def test_what_is_unusual_is_said_once(
    found: Night, before: Sequence[PastNight], words: str | None
) -> None:
    told = warnings_of(found, before)
    if words is None:
        assert told == ()
    else:
        [only] = told
        assert only.startswith(words)


def test_nights_that_broke_off_neither_warn_nor_count() -> None:
    broken = past(state="broken_off", listed=0, new=0, done=0)
    assert warnings_of(night(state=NightState.broken_off, listed=0, new=0), USUAL) == ()
    assert warnings_of(night(), (broken, *USUAL)) == ()
    [words] = warnings_of(night(new=0), (broken, *USUAL))
    assert "no new recordings" in words
