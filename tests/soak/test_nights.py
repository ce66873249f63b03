"""A month of nights over one folder: files come, change and go, stores fail, runs are killed."""

import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from corpus_asr.config.run import Retry, RunOptions
from tests.support.clocks import wrong_clock
from tests.support.nightly import Nights
from tests.support.tables import with_section

RETRY = RunOptions(retry=Retry.failed)
RETRY_ALL = RunOptions(retry=Retry.all)


def spend(nights: Nights, count: int, *, seed: int) -> int:
    """Let nights pass, some of them bad; returns how many runs were killed."""
    chance = random.Random(seed)
    killed = 0
    for number in range(count):
        nights.day()
        options = RETRY if number % 3 == 1 else RunOptions()
        down = 0.3 if number % 4 == 2 else 0.0
        dying = chance.randint(0, 2)  # so often
        for attempt in range(dying + 1):
            after = None if attempt == dying else chance.randint(1, 40)
            counts = nights.night(options=options, down=down, killed_after=after)
            killed += counts is None
        nights.check()
    return killed


def settle(nights: Nights) -> None:
    """See that one quiet night mends what the store did, and that the next has nothing to do."""
    nights.night(options=RETRY)
    assert not nights.down & nights.listed().keys()
    nights.check()
    before = sorted(nights.store.all_names("outcomes"))
    counts = nights.night(options=RETRY)
    assert counts is not None
    assert counts.remaining == 0
    assert counts.listed == len(nights.listed()) == counts.ok + counts.no_speech + counts.failed
    assert sorted(nights.store.all_names("outcomes")) == before
    nights.night(options=RETRY_ALL)
    nights.check()


@pytest.mark.slow
def test_a_few_nights(tmp_path: Path) -> None:
    nights = Nights(tmp_path, seed=1, files=6)
    assert spend(nights, 3, seed=1)
    settle(nights)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("jumping", [False, True])
def test_a_month_of_nights(tmp_path: Path, seed: int, jumping: bool) -> None:
    """Also with a clock that jumps by hours, forwards and backwards, all the time."""
    nights = Nights(tmp_path, seed=seed, files=60)
    with wrong_clock(seed=seed) if jumping else nullcontext():
        assert spend(nights, 31, seed=seed) > 5
        settle(nights)


@pytest.mark.slow
def test_another_model_in_the_middle_of_the_week(tmp_path: Path) -> None:
    """A --new-run is killed again and again; what is in the tables is of one language only."""
    nights = Nights(tmp_path, seed=3, files=6)
    nights.night()
    nights.check()
    before = nights.read("segments")
    nights.config = with_section(nights.config, "decoding", language="de")
    for after in (2, 4, 6, 9, 13):
        assert nights.night(options=RunOptions(new_run=True), killed_after=after) is None
    nights.day()
    nights.night(options=RunOptions(new_run=True))
    nights.check()
    assert {row["text"].split()[-1] for row in nights.read("segments")} == {"de"}
    [earlier] = (nights.output / "_earlier").iterdir()
    nights.output = earlier
    assert sorted(map(repr, nights.read("segments"))) == sorted(map(repr, before))
