"""Ratios, medians, word errors, and the table that shows them."""

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.benchmark import results
from corpus_asr.benchmark.orders import Case, Recording
from corpus_asr.benchmark.results import ratios, render, summarise, word_error_rate
from corpus_asr.benchmark.rounds import Row

SECONDS = st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=1, max_size=7)


def row(label: str, totals: list[float], failed: str | None = None, **more: object) -> Row:
    engine, dtype = label.split()
    runs = [{"total_s": total, "stages": {"encode": total / 2}, **more} for total in totals]
    return Row(case=Case(engine=engine, dtype=dtype), runs=runs, failed=failed)


def said(*texts: str | None) -> list[Recording]:
    return [Recording(path=Path("a.wav"), duration_s=1.0, text=text) for text in texts]


@given(SECONDS, SECONDS)
def test_a_ratio_is_the_median_over_rounds_of_theirs_over_ours(ours, theirs):
    pairs = list(zip(ours, theirs, strict=False))
    found = ratios(row("corpus-asr auto", ours), row("transformers float32", theirs))
    assert found is not None
    each = [other / own for own, other in pairs]
    assert found.median == pytest.approx(statistics.median(each))
    assert [found.least, found.most] == pytest.approx([min(each), max(each)])


@given(SECONDS, st.floats(min_value=0.1, max_value=10.0))
def test_a_machine_that_slows_down_changes_no_ratio(ours, factor):
    found = ratios(
        row("corpus-asr auto", ours),
        row("transformers float32", [factor * seconds for seconds in ours]),
    )
    assert found is not None
    assert found.least == pytest.approx(factor)
    assert found.most == pytest.approx(factor)


def test_every_type_of_ours_is_compared_with_every_peer_and_not_with_itself():
    rows = [
        row("corpus-asr float32", [2.0, 2.0]),
        row("corpus-asr int8", [1.0, 1.0]),
        row("transformers float32", [4.0, 6.0]),
    ]
    ours, _, theirs = summarise(rows, audio_s=60.0)
    assert ours.ratios == {}
    assert {name: ratio.median for name, ratio in theirs.ratios.items()} == {
        "float32": 2.5,
        "int8": 5.0,
    }
    assert theirs.speed is not None
    assert (theirs.speed.median, theirs.speed.least, theirs.speed.most) == (12.5, 10.0, 15.0)
    assert theirs.stages == {"encode": 2.5}


def test_word_errors_are_counted_after_whispers_normaliser():
    pytest.importorskip("jiwer")
    recordings = said("Mr. Smith isn't here.", None, "Twenty one colours!", "(laughs)")
    right = ["mister smith is not here", "anything", "21 colors", "ha ha"]
    assert word_error_rate(right, recordings) == 0.0
    wrong = ["mister smith is not there", "", "21 colors", ""]
    assert word_error_rate(wrong, recordings) == pytest.approx(1 / 7)


def test_other_languages_keep_their_spelling():
    pytest.importorskip("jiwer")
    recordings = said("Schöne Grüße, Wien!")
    assert word_error_rate(["schöne grüße wien"], recordings, language="de") == 0.0


def test_without_references_or_jiwer_there_is_no_word_error_rate(monkeypatch):
    assert word_error_rate(["a"], said(None)) is None
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    assert word_error_rate(["a"], said("a")) is None


def test_the_table_shows_medians_with_their_spread_and_leaves_out_what_nobody_knows():
    rows = [
        row("corpus-asr auto", [1.0, 2.0, 4.0], peak_memory_mib=512.4),
        row("transformers float32", [3.0, 6.0, 8.0], peak_memory_mib=None),
        row("faster-whisper int8", [], failed="its process ended with -9"),
    ]
    lines = render(summarise(rows, audio_s=12.0)).splitlines()
    assert "peak MiB" in lines[0]
    assert "GPU" not in lines[0]
    assert "WER" not in lines[0]
    assert lines[1].split() == ["corpus-asr", "auto", "6.0", "(3.0..12.0)", "1.00", "2.00", "512"]
    assert lines[2].split()[-2:] == ["3.00", "(2.00..3.00)"]
    assert lines[3] == "faster-whisper int8  failed: its process ended with -9"
    assert len(lines) == 4


def test_a_table_of_failures_alone_says_why():
    rows = [row("corpus-asr auto", [], failed="no memory")]
    assert render(summarise(rows, audio_s=1.0)) == "corpus-asr auto  failed: no memory"


def test_summaries_are_json():
    rows = [row("corpus-asr auto", [1.0]), row("transformers float32", [], failed="why")]
    data = [summary.as_data() for summary in summarise(rows, audio_s=1.0)]
    assert json.loads(json.dumps(data)) == data
    assert data[0]["times_real_time"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert data[1]["times_real_time"] is None
    assert data[1]["failed"] == "why"
