"""The verdict follows from what was busy, and says which setting moves it."""

import pytest

from corpus_asr.activity import Activity
from corpus_asr.report.bottleneck import Verdict, bottleneck, time_lines
from tests.support.snapshots import snapshot

IDLE_EXTRACT = {"extract_alive_s": 100.0, "extract_s": 10.0, "parts_extracted": 5}
IDLE_ENGINE = {"transcribe_alive_s": 100.0, "step_s": 10.0, "steps": 1000}


def verdict(**counts: object) -> Verdict:
    found = Activity(**(IDLE_EXTRACT | IDLE_ENGINE | counts))  # type: ignore[arg-type]
    told = bottleneck(found, elapsed_s=110.0, transcribe_workers=1)
    assert told is not None
    return told


@pytest.mark.parametrize(
    ("counts", "stage", "setting"),
    [
        ({"load_s": 80.0}, "loading", "longer run"),
        ({"encode_s": 85.0}, "transcription", "transcribe.workers"),
        ({"encode_s": 85.0, "slot_steps": 9, "slot_room": 10}, "transcription", "model.dtype"),
        (
            {"step_s": 90.0, "slot_steps": 2, "slot_room": 10, "parts_begun": 5},
            "slots",
            "extract.part_s",
        ),
        (
            {"step_s": 90.0, "slot_steps": 2, "slot_room": 10, "parts_begun": 1},
            "transcription",
            "transcribe.workers",
        ),
        ({"extract_s": 90.0, "extract_cpu_s": 80.0}, "extraction", "CPU machines"),
        ({"extract_s": 90.0, "extract_cpu_s": 20.0}, "store", "extract.workers"),
        ({"commits": 9, "commit_s": 100.0}, "commits", "output.uri"),
        ({}, "nothing", "extract.pack_mb"),
    ],
)
def test_what_is_busy_is_what_held_it_up(counts, stage, setting):
    told = verdict(**counts)
    assert told.stage == stage
    assert setting in told.advice


def test_halved_slots_are_told_where_the_engine_is_busy():
    assert "halved" in verdict(encode_s=85.0, halvings=2).advice


def test_nothing_is_said_of_a_run_that_has_done_nothing():
    assert bottleneck(Activity(), elapsed_s=10.0, transcribe_workers=1) is None


def test_lines_show_shares_queues_and_repetitions_within_the_width():
    found = Activity(
        **(IDLE_EXTRACT | IDLE_ENGINE),  # type: ignore[arg-type]
        hand_over_s=40.0, slots=16, slot_steps=3, slot_room=4, parts_begun=3, parts_transcribed=2,
        commits=2, commit_s=1.0, fetch_retries=1, commit_retries=2, workers_replaced=1,
        extract_cpu_s=5.0, load_s=3.0, windows=7, tokens=1,
    )  # fmt: skip
    lines = list(time_lines(snapshot(activity=found, parts=1, parts_retried=4)))
    text = "\n".join(lines)
    for told in (
        "10% of the time at work (50% of it computing), 40% handing over, 50% without work",
        "75% of 16 slots in use; model loaded in 3.0 s; 7 windows, 1 token; 1 worker",
        "2 commits of 0.5 s each",
        "3 requests to stores, 4 parts after their worker died, 1 worker replaced",
        "2 parts before the engines, 1 in them, 1 behind them",
        "nothing: no stage was at work most of the time. What would move it",
    ):
        assert told in " ".join(text.split()), told
    assert max(len(line) for line in lines) <= 100


def test_without_counts_only_queues_are_shown():
    (line,) = time_lines(snapshot(activity=Activity()))
    assert line.strip() == "queues      0 parts before the engines, 0 in them, 0 behind them"
