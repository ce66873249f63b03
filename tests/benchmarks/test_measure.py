"""The command measures every engine, and counts word errors as they are usually counted."""

import json
from pathlib import Path

import pytest

from benchmarks.measure import PEERS, Recording, run, word_error_rate
from tests.support.corpora import tiny_model

CLIP = Path(__file__).parents[1] / "data" / "clips" / "english.wav"


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
