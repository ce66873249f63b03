"""The command: rows and options, rounds and tables, and one clear message for each mistake."""

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measure as measuring
from benchmarks.measure import (
    PEERS,
    Recording,
    Row,
    measure,
    run,
    table,
    word_error_rate,
)
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes
from tests.support.corpora import tiny_model

CLIP = Path(__file__).parents[1] / "data" / "clips" / "english.wav"
RUNNERS = "tests.benchmarks.runners"


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(tone(1.5), rate_hz=SAMPLE_RATE_HZ))
    return path


@pytest.fixture
def rows_of(clip, monkeypatch):
    """Return the rows of a command line; none of them works."""

    def rows(*arguments: str) -> dict[str, dict]:
        seen: list[Row] = []
        monkeypatch.setattr(measuring, "measure", lambda rows, *_, **__: seen.extend(rows))
        run([str(clip), "--model", "m", "--device", "cpu", *arguments], say=lambda line: None)
        return {row.name: row.options | {"engine": row.engine} for row in seen}

    return rows


def test_engines_get_the_same_work_or_their_defaults(rows_of):
    same = rows_of("--beams", "2", "--batch", "4", "--mode", "chunked", "--threads", "1")
    assert {row["threads"] for row in same.values()} == {1}
    ours, faster, batched, transformers = same.values()
    assert (ours["slots"], ours["beam_size"], ours["strategy"]) == (8, 2, "chunked")
    assert (faster["beam_size"], faster["temperature"], faster["vad_filter"]) == (2, 0.0, True)
    assert "without_timestamps" not in batched
    assert (batched["batched"], batched["batch_size"]) == (True, 4)
    assert transformers["batch_size"] == 4
    assert transformers["generate"]["num_beams"] == 2
    for row in list(rows_of("--defaults").values())[:3]:
        assert not {"temperature", "beam_size", "vad_filter"} & set(row)
        assert row["language"] == "en"


def made(label: str, engine: str, **options: object) -> Row:
    return Row(name=label, engine=f"{RUNNERS}:{engine}", options={"threads": 1, **options})


def test_rows_take_turns_and_one_that_fails_has_no_more(tmp_path):
    turns = str(tmp_path / "turns")
    one, broken, two = (
        made("A", "works", name="A", turns=turns), made("B", "cannot_load"),
        made("C", "works", name="C", turns=turns),
    )  # fmt: skip
    measure([one, broken, two], {"work": ["a", "b"], "warm_up": []}, runs=2)
    assert Path(turns).read_text().split() == ["A0", "A2", "C0", "C2"] * 2
    assert [len(row.runs) for row in (one, broken, two)] == [2, 0, 2]
    assert broken.failed == "exit code 1: ValueError: no such weights"


def with_times(name: str, walls_s: list[float], failed: str | None = None, **more: object) -> Row:
    runs = [{"wall_s": wall_s, **more} for wall_s in walls_s]
    return Row(name=name, engine="", options={}, runs=runs, failed=failed)


def test_the_table_shows_medians_with_their_spread_and_omits_what_nobody_knows():
    rows = [
        with_times("corpus-asr auto", [1.0, 2.0, 4.0], peak_mib=512.4, cpu_s=3.0),
        with_times("transformers float32", [3.0, 6.0, 8.0]),
        with_times("faster-whisper int8", [], failed="exit code -9: no message"),
    ]
    rows[1].word_error_rate = 0.125
    header, ours, theirs, failed = table(rows, 12.0).splitlines()
    for title in (
        "x real time",
        "total s",
        "CPU s",
        "corpus-asr auto is x as fast",
        "MiB",
        "WER %",
    ):
        assert title in header
    assert "GPU" not in header
    assert "6.00 (3.00..12.00)" in ours
    assert "512 (512..512)" in ours
    assert "3.00 (2.00..3.00)" in theirs
    assert theirs.endswith("12.50")
    assert failed == "faster-whisper int8 failed: exit code -9: no message"
    staged = table([with_times("a", [1.0], encode=0.25)], 1.0, "encode")
    assert "0.25 (0.25..0.25)" in staged
    assert table([with_times("a", [], failed="no")], 1.0) == "a failed: no"


SECONDS = st.lists(st.floats(min_value=1e-2, max_value=1e3), min_size=1, max_size=7)


@given(SECONDS, SECONDS)
def test_a_ratio_is_the_median_over_rounds_of_theirs_over_ours(ours, theirs):
    pairs = list(zip(ours, theirs, strict=False))
    drawn = table([with_times("ours", ours), with_times("theirs", theirs)], 1.0)
    ratios = [other / own for own, other in pairs]
    digits = 2 if max(ratios) < 100 else 0
    assert f" {statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f}" in drawn


def said(*texts: str | None) -> list[Recording]:
    return [Recording(path=Path("a.wav"), duration_s=1.0, text=text) for text in texts]


def test_word_errors_are_counted_after_whispers_normalizer():
    pytest.importorskip("jiwer")
    recordings = said("Mr. Smith isn't here.", None, "Twenty one colours!", "(laughs)")
    right = ["mister smith is not here", "anything", "21 colors", "ha ha"]
    assert word_error_rate(right, recordings) == 0.0
    wrong = ["mister smith is not there", "", "21 colors", ""]
    assert word_error_rate(wrong, recordings) == pytest.approx(1 / 7)
    german = said("Schöne Grüße, Wien!")  # which keeps its spelling
    assert word_error_rate(["schöne grüße wien"], german, language="de") == 0.0


@pytest.mark.long
@pytest.mark.parametrize("peers", ["none", pytest.param(",".join(PEERS), marks=pytest.mark.slow)])
def test_a_real_run_measures_every_engine(peers, request, tmp_path):
    # Peers on a checkpoint that ends its sentences; one of noise babbles for minutes.
    model = tiny_model(tmp_path) if peers == "none" else request.getfixturevalue("float_model")
    clip = tmp_path / "english.wav"
    clip.write_bytes(CLIP.read_bytes())
    clip.with_suffix(".txt").write_text("Four score and seven years ago")
    path = tmp_path / "found.json"
    printed: list[str] = []
    run(
        [str(clip), "--model", str(model), "--runs", "1", "--peers", peers, "--json", str(path),
         "--device", "cpu", "--dtype", "float32"],
        say=printed.append,
    )  # fmt: skip
    assert "1 recordings, 9 s, sequential; medians of 1 alternating runs" in printed[0]
    assert "\ncorpus-asr float32 " in printed[1]
    found = json.loads(path.read_text())
    assert found["audio_s"] == pytest.approx(9.458, abs=0.01)
    assert [row["failed"] for row in found["rows"]] == [None] * (1 if peers == "none" else 4)
    for row in found["rows"]:
        (one,) = row["runs"]
        assert one["wall_s"] > 0
        assert one["cpu_s"] > 0
        assert one["peak_mib"] > 50
        assert row["word_error_rate"] is not None
