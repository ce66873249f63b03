"""What runs came to is kept once each, whatever becomes of one of the files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.history import (
    HISTORY_FOLDER,
    MOST_RUNS,
    Entry,
    OutputNumbers,
    last_runs,
    output_numbers,
    run_entry,
    write_entry,
)
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.nightly import past
from tests.support.runs import NAMES, ManualRun

NUMBERS = OutputNumbers(
    ok=90, no_speech=5, failed=5, audio_s=3600.0, segments=1000, mean_confidence=0.9,
    low_confidence=None, rtfx=20.0, wall_s=180.0,
)  # fmt: skip


def note(store: OutputStore, run_id: str, finished_at: str = "2026-01-01", **numbers: Any) -> None:
    entry = run_entry(store, run_id, finished_at=finished_at)
    write_entry(store, replace(entry, **numbers))


def test_a_run_is_kept_once_and_the_last_few_are_read(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    assert last_runs(store) == []
    for number in range(1, MOST_RUNS + 5):
        for ok in (0, number):
            output = replace(NUMBERS, ok=ok)
            note(store, f"run-{number:02}", f"2026-01-{number:02}", output=output)
    entries = last_runs(store)
    assert [entry.output and entry.output.ok for entry in entries] == [*range(MOST_RUNS + 4, 4, -1)]


def test_a_run_has_numbers_of_its_output_and_of_its_night(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    note(store, "run-1", "then", output=NUMBERS)
    note(store, "run-1", "later", night=past())
    assert last_runs(store) == [
        Entry(run_id="run-1", finished_at="then", output=NUMBERS, night=past())
    ]


def test_runs_of_one_second_follow_each_other_as_they_end(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    note(store, "run-b", "2026-01-01T00:00:00.100+00:00", output=NUMBERS)
    note(store, "run-a", "2026-01-01T00:00:00.200+00:00", output=NUMBERS)
    assert [entry.run_id for entry in last_runs(store)] == ["run-a", "run-b"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"run_id": 1}', b"[" * 100_000, b"\xff"]
)
def test_what_is_damaged_is_passed_over_and_written_again(data: bytes, tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    note(store, "run-1", "2026-01-01", output=NUMBERS)
    note(store, "run-2", "2026-01-02", output=NUMBERS)
    store.write_bytes(f"{HISTORY_FOLDER}/run-2.json", data)
    assert [entry.run_id for entry in last_runs(store)] == ["run-1"]
    note(store, "run-2", "2026-01-02", night=past())
    assert [entry.run_id for entry in last_runs(store)] == ["run-2", "run-1"]


@pytest.mark.long
def test_a_run_that_committed_nothing_has_no_numbers(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, (*NAMES, "d.wav"))
    job.begin()
    assert output_numbers(load_report(job.store)) is None
    job.commit("a.wav", segments=[
        {"segment": n, "start_s": 0.0, "end_s": 1.0, "text": "x", "confidence": c}
        for n, c in enumerate((0.2, 0.69, 0.7, 1.0))
    ])  # fmt: skip
    job.commit("d.wav")
    job.fail("b.wav")
    job.fail("c.wav", error_kind="timeout")
    job.finish()
    numbers = output_numbers(load_report(job.store))
    assert numbers is not None
    assert (numbers.ok, numbers.failed) == (2, 2)
    assert (numbers.mean_confidence, numbers.low_confidence) == pytest.approx((0.708, 0.5))
    # An idle run has another identity, and nothing of its own.
    job.begin()
    job.finish()
    assert output_numbers(load_report(job.store)) is None
