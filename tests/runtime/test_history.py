"""The history of a run stays short and even, and an older snapshot without one still reads."""

import itertools
from dataclasses import asdict

import pytest

from corpus_asr.runtime.recorder import History
from corpus_asr.storage.run_state.run_files import Moment, snapshot_from
from tests.support.tables import snapshot


def moment(elapsed_s: float) -> Moment:
    return Moment(
        elapsed_s=elapsed_s,
        audio_s=10 * elapsed_s,
        files=0,
        failed=0,
        extract_s=0.0,
        extract_alive_s=0.0,
        engine_s=0.0,
        transcribe_alive_s=0.0,
    )


@pytest.mark.parametrize("seconds", [0.0, 15.1, 300.0, 3_000.0, 400_000.0])
def test_moments_are_even_few_and_end_now(seconds: float) -> None:
    history = History(15.0, most=20)
    found = history.with_now(moment(0.0))
    number = 0
    while number * 15.1 < seconds:
        number += 1
        found = history.with_now(moment(number * 15.1))
    times = [each.elapsed_s for each in found]
    assert times[0] == 0.0
    assert times[-1] == number * 15.1
    assert len(times) <= 21
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    assert not gaps or max(gaps) <= 1.05 * min(gaps) + 15.1
    if number >= 20:
        assert len(times) >= 10


def test_history_survives_a_file_and_may_be_missing() -> None:
    seen = snapshot(history=(moment(0.0), moment(15.0)))
    data = asdict(seen)
    assert snapshot_from(data) == seen
    del data["history"]
    assert snapshot_from(data) == snapshot()
    assert snapshot_from(asdict(seen) | {"history": [{"elapsed_s": 3}]}) is None
