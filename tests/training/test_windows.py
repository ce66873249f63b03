"""Utterances to windows: nothing is lost, nothing is too long, and all of it is repeatable."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.config.finetune import WindowSettings
from corpus_asr.training.audio_cache import AudioCache
from corpus_asr.training.windows import EpochPlan, Epochs, Packing, runs_of
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_SAMPLES


def packing(speeds: tuple[float, float] = (0.9, 1.1), **settings: Any) -> Packing:
    usual = {"no_speech_fraction": 0.0, "truncation_probability": 0.0}
    return Packing(settings=WindowSettings(**usual | settings), max_tokens=60, speeds=speeds)


PACKING = packing()


def cache(
    lengths_s: list[list[float]], languages: Sequence[str] = ("en",), gap_s: float = 0.5
) -> AudioCache:
    """Regions of utterances of so many seconds, with gaps between them."""
    rows, at = [], 0
    for number, region in enumerate(lengths_s):
        for seconds in region:
            end = at + round(seconds * SAMPLE_RATE_HZ)
            rows.append((number, at, end, 5, languages[number % len(languages)]))
            at = end + round(gap_s * SAMPLE_RATE_HZ)
    *places, codes = zip(*rows, strict=True)
    numbers, starts, ends, tokens = (np.array(column, np.int64) for column in places)
    table = pa.table({"text": ["word"] * len(rows), "language": pa.array(codes, pa.string())})
    return AudioCache(np.zeros(ends.max(), np.int16), numbers, starts, ends, tokens, table, {})


lengths = st.lists(st.lists(st.floats(0.2, 30.0), min_size=1, max_size=6), min_size=1, max_size=8)


@given(lengths, st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_passage_is_in_one_window_and_fits(
    lengths_s: list[list[float]], epoch: int, share: bool
) -> None:
    found = cache(lengths_s)
    plan = EpochPlan(found, packing(pack=share), seed=1, epoch=epoch)
    seen: list[int] = []
    for number in range(len(plan)):
        window = plan.window(number)
        assert window == plan.window(number)
        after = 0
        for run in window.runs:
            assert run.at >= after
            length = found.end[run.end - 1] - found.start[run.first]
            after = run.at + int(length / window.speed)
            seen += range(run.first, run.end)
        assert after <= WINDOW_SAMPLES
        tokens = sum((found.tokens[r.first : r.end] + 2).sum() for r in window.runs)
        assert tokens <= 60
    assert sorted(seen) == list(range(len(found)))


def test_neighbors_stay_together_and_strangers_of_one_language_share() -> None:
    found = cache([[4.0, 4.0, 4.0], [5.0], [6.0]])
    plan = EpochPlan(found, PACKING, seed=0, epoch=0)
    assert len(plan) == 1  # 13 + 5 + 6 s fit into 27
    runs = {(run.first, run.end) for run in plan.window(0).runs}
    assert runs == {(0, 3), (3, 4), (4, 5)}
    found = cache([[3.0]] * 4, languages=("en", "de"))
    plan = EpochPlan(found, PACKING, seed=0, epoch=0)
    windows = [{found.language(run.first) for run in plan.window(n).runs} for n in range(len(plan))]
    assert sorted(map(list, windows)) == [["de"], ["en"]]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_full_windows_cut_another_passage_off(share: float) -> None:
    found = cache([[8.0]] * 40, languages=("en", "de"))
    filled = packing(speeds=(1.0, 1.0), truncation_probability=share)
    plan = EpochPlan(found, filled, seed=0, epoch=0)
    windows = [plan.window(number) for number in range(len(plan))]
    truncated = [one for one in windows if one.truncated is not None]
    # Windows hold three of eight seconds, all but the last of a language.
    assert len(truncated) >= len(windows) - 4 if share else not truncated
    for one in truncated:
        assert one.truncated is not None
        assert one.runs[-1].at + 8 * SAMPLE_RATE_HZ / one.speed <= one.truncated.at + 1
        assert one.truncated.at < WINDOW_SAMPLES < one.truncated.at + 8 * SAMPLE_RATE_HZ / one.speed
        assert found.language(one.truncated.first) == found.language(one.runs[0].first)
    assert [one.runs for one in windows] == [plan.window(n).runs for n in range(len(plan))]


def test_epochs_and_seeds_differ() -> None:
    found = cache([[5.0]] * 40)

    def order(seed: int, epoch: int) -> list[int]:
        plan = EpochPlan(found, PACKING, seed=seed, epoch=epoch)
        return [run.first for n in range(len(plan)) for run in plan.window(n).runs]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_windows_without_speech_come_beside_the_others() -> None:
    for share in (0.0, 0.5, 1.0):
        apart = packing(speeds=(1, 1), pack=False, no_speech_fraction=share)
        plan = EpochPlan(cache([[5.0]] * 20), apart, seed=0, epoch=0)
        empty = sum(not plan.window(number).runs for number in range(len(plan)))
        assert (len(plan), empty) == (20 + 20 * share, 20 * share)


def test_most_pauses_are_short_and_some_are_long() -> None:
    apart = packing(speeds=(1, 1), pack=False, max_pause_s=4)
    plan = EpochPlan(cache([[1.0]] * 400), apart, seed=0, epoch=0)
    truncated = [plan.window(number).runs for number in range(len(plan))]
    pauses_s = [runs[0].at / SAMPLE_RATE_HZ for runs in truncated if runs]
    assert np.median(pauses_s) == pytest.approx(1.0, abs=0.2)
    assert 3.5 < max(pauses_s) <= 4


def test_runs_end_at_their_length_their_tokens_and_their_stretch() -> None:
    found = cache([[10.0, 10.0, 10.0, 10.0], [2.0]])
    first, end = runs_of(found, longest=WINDOW_SAMPLES, max_tokens=60)
    assert list(zip(first, end, strict=True)) == [(0, 2), (2, 4), (4, 5)]
    first, end = runs_of(found, longest=WINDOW_SAMPLES, max_tokens=7)
    assert first.tolist() == [0, 1, 2, 3, 4]


def test_a_passage_that_others_lie_in_is_heard_to_its_end() -> None:
    found = cache([[10.0, 2.0]], gap_s=-8.0)  # from 0 to 10 s, and from 2 to 4 s
    plan = EpochPlan(found, PACKING, seed=0, epoch=0)
    window = plan.window(0)
    assert found.ends(slice(window.runs[0].first, window.runs[0].end)) == 10 * SAMPLE_RATE_HZ
    after = window.runs[0].at + int(10 * SAMPLE_RATE_HZ / window.speed)
    assert after <= WINDOW_SAMPLES
    long = cache([[29.0, 2.0, 5.0]], gap_s=-27.0)  # 0 to 29, 2 to 4, then far inside
    first, end = runs_of(long, longest=WINDOW_SAMPLES, max_tokens=60)
    for begin, after in zip(first, end, strict=True):
        assert long.ends(slice(begin, after)) - long.start[begin] <= WINDOW_SAMPLES


def test_epochs_of_different_lengths_follow_each_other() -> None:
    draw = np.random.default_rng(5)
    found = cache([[seconds] for seconds in draw.uniform(3.0, 20.0, size=25)])
    counts = [len(EpochPlan(found, PACKING, seed=0, epoch=epoch)) for epoch in range(6)]
    assert len(set(counts)) > 1
    epochs = Epochs(found, PACKING, seed=0)
    windows = [epochs.window(number) for number in range(sum(counts))]
    for epoch, end in enumerate(np.cumsum(counts)):
        runs = [run for window in windows[end - counts[epoch] : end] for run in window.runs]
        assert sorted(run.first for run in runs) == list(range(25)), epoch
    resumed = Epochs(found, PACKING, seed=0)
    assert resumed.window(sum(counts) - 1) == windows[-1]
