"""Runs are compared with the one before them in the same folder, whatever its settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.comparison import (
    MINUS,
    MOST_RUNS,
    NO_CHANGE,
    NUMBERS_NAME,
    VERSION,
    KeptNumbers,
    compare,
    numbers_of,
    previous,
    remember,
)
from corpus_asr.report.run import load_report
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import NAMES, ManualRun

NUMBERS = KeptNumbers(
    run_id="run-1", finished_at="2026-01-01T00:00:00+00:00", ok=90, no_speech=5, failed=5,
    audio_s=3600.0, segments=1000, mean_confidence=0.9, low_confidence=0.05, rtfx=20.0,
    wall_s=180.0, failures={"timeout": 4, "not_audio": 1}, languages={"en": 3000.0, "de": 600.0},
    settings={"decoding.num_beams": "1", "model revision": "abc", f"{VERSION}torch": "2.0"},
)  # fmt: skip


def test_differences_are_counted_and_those_for_the_worse_are_marked() -> None:
    now = replace(
        NUMBERS, run_id="run-2", ok=95, failed=7, mean_confidence=0.85, low_confidence=None,
        rtfx=15.0, failures={"timeout": 0, "not_audio": 1, "fetch": 6}, languages={"en": 4200.0},
        settings={"decoding.num_beams": "5", "model revision": "abc"},
    )  # fmt: skip
    found = compare(NUMBERS, now, classifies=False)
    assert {each.name: (each.then, each.now, each.change, each.tone) for each in found.results} == {
        "With text": ("90", "95", "+5", ""),
        "Without speech": ("5", "5", NO_CHANGE, ""),
        "Failed": ("5", "7", "+2", "bad"),
        "Audio": ("1.0 h", "1.0 h", NO_CHANGE, ""),
        "Segments": ("1,000", "1,000", NO_CHANGE, ""),
        "Mean confidence": ("90.0%", "85.0%", f"{MINUS}5.0 points", "bad"),
        "Recordings below 70% confidence": ("5.0%", "-", NO_CHANGE, ""),
        "RTFx": ("20.0", "15.0", f"{MINUS}25%", ""),
        "Time": ("3.0 min", "3.0 min", NO_CHANGE, ""),
    }
    assert [(each.name, each.change, each.tone) for each in found.failures] == [
        ("Could not be read from the store", "+6", "bad"),
        ("The store did not answer in time", f"{MINUS}4", "good"),
        ("Not audio", NO_CHANGE, ""),
    ]
    assert [(each.name, each.change) for each in found.languages] == [
        ("en", "+20.0 min"), ("de", f"{MINUS}10.0 min"),
    ]  # fmt: skip
    # A run that is not finished has no versions: that is no change.
    assert found.settings == [("decoding.num_beams", "1", "5")]
    assert found.changed
    renewed = replace(NUMBERS, settings={**NUMBERS.settings, f"{VERSION}torch": "2.1"})
    found = compare(NUMBERS, renewed, classifies=False)
    assert found.settings == [(f"{VERSION}torch", "2.0", "2.1")]
    slower = compare(NUMBERS, replace(NUMBERS, rtfx=1.0, wall_s=3600.0), classifies=False)
    assert not slower.changed


def test_numbers_are_kept_of_each_run_once_and_of_the_last_few(tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    assert previous(store, "run-1") is None
    remember(store, NUMBERS)
    assert previous(store, "run-1") is None
    for number in range(2, MOST_RUNS + 5):
        later = replace(NUMBERS, run_id=f"run-{number}", ok=number)
        remember(store, later)
        remember(store, later)
    assert previous(store, "run-x") == later
    found = previous(store, later.run_id)
    assert found is not None
    assert found.ok == later.ok - 1
    assert len(store.read_json(NUMBERS_NAME)["runs"]) == MOST_RUNS


@pytest.mark.parametrize("data", [[], {"runs": [{}]}, {"runs": [1]}, {"runs": None}, {}])
def test_numbers_of_another_version_are_no_comparison(data: Any, tmp_path: Path) -> None:
    store = OutputStore(str(tmp_path))
    store.write_json(NUMBERS_NAME, data)
    assert previous(store, "run") is None
    remember(store, NUMBERS)
    assert previous(store, "run") == NUMBERS


@pytest.mark.long
def test_a_run_that_committed_nothing_has_no_numbers(tmp_path: Path) -> None:
    job = ManualRun(tmp_path, (*NAMES, "d.wav"))
    job.begin()
    assert numbers_of(load_report(job.store), finished_at="", settings={}) is None
    job.commit("a.wav", segments=[
        {"segment": n, "start_s": 0.0, "end_s": 1.0, "text": "x", "confidence": c}
        for n, c in enumerate((0.2, 0.69, 0.7, 1.0))
    ])  # fmt: skip
    job.commit("d.wav")
    job.fail("b.wav")
    job.fail("c.wav", error_kind="timeout")
    job.finish()
    found = numbers_of(load_report(job.store), finished_at="then", settings={"a": None})
    assert found is not None
    assert (found.run_id, found.ok, found.failed) == (job.run.run_id, 2, 2)
    assert (found.failures, found.languages) == ({"not_audio": 1, "timeout": 1}, {"en": 120.0})
    assert (found.mean_confidence, found.low_confidence) == pytest.approx((0.708, 0.5))
    # An idle run has another identity, and nothing of its own.
    job.begin()
    job.finish()
    assert numbers_of(load_report(job.store), finished_at="", settings={}) is None
