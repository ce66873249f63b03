"""Workers take turns, one that fails loses only its own; ratios, medians and the table of rows."""

import os
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.benchmark import rounds
from corpus_asr.benchmark.orders import Case, Recording, Settings
from corpus_asr.benchmark.rounds import (
    Row,
    environment,
    measure,
    ratios,
    render,
    summarize,
    word_error_rate,
)
from tests.benchmark.runners import TURNS, order


def silent(line: str) -> None:
    """Tell nobody."""


def test_processes_of_their_own_take_turns_and_the_first_round_does_not_count(tmp_path):
    # What the second one prints is not taken for a reply.
    runners = {"A": "Works", "B": "Chatters", "C": "Works"}
    orders = [order(runner, tmp_path, dtype=name) for name, runner in runners.items()]
    rows = measure(orders, runs=2, tell=silent, settle_s=0)
    assert (tmp_path / TURNS).read_text().split() == list("ABCABCABC")
    assert [[run["total_s"] for run in row.runs] for row in rows] == [[2.0, 3.0]] * 3
    assert [row.failed for row in rows] == [None] * 3
    processes = [{run["pid"] for run in row.runs} for row in rows]
    assert [len(pids) for pids in processes] == [1, 1, 1]
    assert len({os.getpid()}.union(*processes)) == 4
    runs = [run for row in rows for run in row.runs]
    assert {(run["threads"], run["cores"]) for run in runs} == {("1", 1)}
    assert all(run["peak_memory_mib"] > 1 for run in runs)


@pytest.mark.parametrize(
    ("runner", "counted", "reason"),
    [
        ("CannotLoad", 0, "ValueError: no such weights"),
        ("FailsInRoundTwo", 1, "MemoryError: too much"),
        ("Dies", 0, "its process ended with -9 (out of memory?); its last words: malloc()"),
        ("Unheard", 0, "AttributeError"),
    ],
)
def test_one_that_fails_says_why_and_the_others_go_on(tmp_path, runner, counted, reason):
    messages: list[str] = []
    orders = [order(runner, tmp_path, dtype="A"), order("Works", tmp_path, dtype="B")]
    failed, other = measure(orders, runs=2, tell=messages.append, settle_s=0)
    assert failed.failed is not None
    assert failed.failed.startswith(reason)
    assert "\n" not in failed.failed
    assert len(failed.runs) == counted
    assert other.failed is None
    assert len(other.runs) == 2
    assert any(failed.failed in line for line in messages)


def test_a_worker_sees_its_own_gpu_alone(tmp_path):
    for device, inherited, expected in (
        ("cpu", None, None),
        ("cpu", "3", "3"),
        ("cuda:0", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "4,GPU-77", "GPU-77"),
    ):
        one = replace(order("Works", tmp_path), device=device)
        given = {} if inherited is None else {"CUDA_VISIBLE_DEVICES": inherited}
        found = environment(one, {**given, "PYTHONPATH": "elsewhere"})
        assert found.get("CUDA_VISIBLE_DEVICES") == expected, (device, inherited)
        assert found["PYTHONPATH"].endswith(f"{os.pathsep}elsewhere")
        assert found["HF_HUB_OFFLINE"] == "1"


SECONDS = st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=7)


def row(
    label: str,
    totals: list[float],
    failed: str | None = None,
    settings: Settings = "thresholds-off",
    **more: object,
) -> Row:
    engine, dtype = label.split()
    runs = [{"total_s": total, "stages": {"encode": total / 2}, **more} for total in totals]
    return Row(case=Case(engine=engine, dtype=dtype, settings=settings), runs=runs, failed=failed)


def said(*texts: str | None) -> list[Recording]:
    return [Recording(path=Path("a.wav"), duration_s=1.0, text=text) for text in texts]


@given(SECONDS, SECONDS)
def test_a_ratio_is_the_median_over_rounds_of_theirs_over_ours(ours, theirs):
    pairs = list(zip(ours, theirs, strict=False))
    found = ratios(row("corpus-asr auto", ours), row("transformers float32", theirs))
    assert found is not None
    each = [other / own for own, other in pairs]
    assert found.median == pytest.approx(statistics.median(each))
    assert [found.min, found.max] == pytest.approx([min(each), max(each)])


def test_every_type_of_ours_is_compared_with_every_peer_and_not_with_itself():
    rows = [
        row("corpus-asr float32", [2.0, 2.0]),
        row("corpus-asr int8", [1.0, 1.0]),
        row("transformers float32", [4.0, 6.0]),
    ]
    ours, _, theirs = summarize(rows, audio_s=60.0)
    assert ours.ours_times_as_fast == {}
    assert {name: ratio.median for name, ratio in theirs.ours_times_as_fast.items()} == {
        "float32": 2.5,
        "int8": 5.0,
    }
    assert theirs.times_real_time is not None
    assert asdict(theirs.times_real_time) == {"median": 12.5, "min": 10.0, "max": 15.0}
    assert theirs.median_stages_s == {"encode": 2.5}


def test_engines_are_compared_with_the_same_settings():
    rows = [
        row("corpus-asr auto", [2.0]),
        row("corpus-asr auto", [3.0], settings="default"),
        row("faster-whisper int8", [4.0]),
        row("faster-whisper int8", [9.0], settings="default"),
    ]
    found = summarize(rows, audio_s=60.0)
    assert [one.ours_times_as_fast["auto"].median for one in found[2:]] == [2.0, 3.0]
    assert [one.label for one in found[:2]] == ["corpus-asr auto", "corpus-asr auto, defaults"]


def test_word_errors_are_counted_after_whispers_normalizer():
    pytest.importorskip("jiwer")
    recordings = said("Mr. Smith isn't here.", None, "Twenty one colours!", "(laughs)")
    right = ["mister smith is not here", "anything", "21 colors", "ha ha"]
    assert word_error_rate(right, recordings) == 0.0
    wrong = ["mister smith is not there", "", "21 colors", ""]
    assert word_error_rate(wrong, recordings) == pytest.approx(1 / 7)
    german = said("Schöne Grüße, Wien!")  # which keeps its spelling
    assert word_error_rate(["schöne grüße wien"], german, language="de") == 0.0


def test_without_references_or_jiwer_there_is_no_word_error_rate(monkeypatch):
    assert word_error_rate(["a"], said(None)) is None
    monkeypatch.setattr(rounds, "find_spec", lambda name: None)
    assert word_error_rate(["a"], said("a")) is None


def test_the_table_shows_medians_with_their_spread_and_leaves_out_what_nobody_knows():
    rows = [
        row("corpus-asr auto", [1.0, 2.0, 4.0], peak_memory_mib=512.4, cpu_s=3.0),
        row("transformers float32", [3.0, 6.0, 8.0], peak_memory_mib=None),
        row("faster-whisper int8", [], failed="its process ended with -9"),
    ]
    lines = render(summarize(rows, audio_s=12.0)).splitlines()
    assert "peak MiB" in lines[0]
    assert "GPU" not in lines[0]
    assert "WER" not in lines[0]
    assert "CPU s" in lines[0]
    seconds = ["1.00", "2.00", "3.00"]
    assert lines[1].split() == ["corpus-asr", "auto", "6.0", "(3.0..12.0)", *seconds, "512"]
    assert lines[2].split()[-2:] == ["3.00", "(2.00..3.00)"]
    assert lines[3] == "faster-whisper int8  failed: its process ended with -9"
    assert len(lines) == 4
    alone = [row("corpus-asr auto", [], failed="no memory")]
    assert render(summarize(alone, audio_s=1.0)) == "corpus-asr auto  failed: no memory"
