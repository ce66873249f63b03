"""Each run that committed something is kept once, and the last few of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.history import (
    MOST_RUNS,
    NUMBERS_NAME,
    PastRun,
    past_run,
    past_runs,
    write_runs,
)
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import NAMES, ManualRun

RUN = PastRun(
    run_id="run-1", finished_at="2026-01-01T00:00:00+00:00", ok=90, no_speech=5, failed=5,
    audio_s=3600.0, segments=1000, mean_confidence=0.9, low_confidence=None, rtfx=20.0,
    wall_s=180.0,
)  # fmt: skip


def test_runs_are_kept_once_and_the_last_few(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    assert past_runs(store, None) == []
    for number in range(1, MOST_RUNS + 5):
        later = replace(RUN, run_id=f"run-{number}", ok=number)
        for _ in range(2):
            runs = past_runs(store, later)
            write_runs(store, runs)
        assert (
            runs[:2] == [later, replace(later, run_id=f"run-{number - 1}", ok=number - 1)][:number]
        )
    assert len(runs) == MOST_RUNS
    assert past_runs(store, None) == runs
    assert past_runs(store, RUN) == [RUN, *runs[:-1]]


@pytest.mark.parametrize("data", [[], {"runs": [{}]}, {"runs": [1]}, {"runs": None}, {}])
def test_numbers_of_another_version_are_begun_again(data: Any, tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.write_json(NUMBERS_NAME, data)
    assert past_runs(store, None) == []
    write_runs(store, past_runs(store, RUN))
    assert past_runs(store, None) == [RUN]


@pytest.mark.long
def test_a_run_that_committed_nothing_has_no_numbers(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, (*NAMES, "d.wav"))
    job.begin()
    assert past_run(load_report(job.store), finished_at="") is None
    job.commit("a.wav", segments=[
        {"segment": n, "start_s": 0.0, "end_s": 1.0, "text": "x", "confidence": c}
        for n, c in enumerate((0.2, 0.69, 0.7, 1.0))
    ])  # fmt: skip
    job.commit("d.wav")
    job.fail("b.wav")
    job.fail("c.wav", error_kind="timeout")
    job.finish()
    found = past_run(load_report(job.store), finished_at="then")
    assert found is not None
    assert (found.run_id, found.ok, found.failed) == (job.run.run_id, 2, 2)
    assert (found.mean_confidence, found.low_confidence) == pytest.approx((0.708, 0.5))
    # An idle run has another identity, and nothing of its own.
    job.begin()
    job.finish()
    assert past_run(load_report(job.store), finished_at="") is None
