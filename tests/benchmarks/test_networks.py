"""Published sizes, commands that measure engines, and the files of the GPU check."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.recordings import FEATURES, extract_parts, read_parts, read_texts
from benchmarks.measure import PEERS, Recording, run, word_error_rate
from benchmarks.networks import SHAPES
from tests.support.corpora import tiny_model

# Millions of parameters, tied ones and fixed encoder positions counted once each.
PUBLISHED = {
    "tiny": 37.8, "base": 72.6, "small": 241.7, "medium": 763.9, "large-v3": 1543.5,
    "large-v3-turbo": 808.9,
}  # fmt: skip


def test_each_size_has_as_many_parameters_as_the_published_one():
    assert list(SHAPES) == ["nano", *PUBLISHED]
    for name, millions in PUBLISHED.items():
        network = SHAPES[name].network()
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert network.num_parameters() / 1e6 == pytest.approx(millions, abs=0.05), name


SPOKEN = Path(__file__).resolve().parents[1] / "data" / "spoken"
MAX_FEATURES_BYTES = 1_500_000
# Of one core, in float16: what another build of the resampler or FFT may round elsewhere.
FEATURES_TOLERANCE = 0.02


def test_the_committed_features_are_those_of_the_recordings() -> None:
    assert FEATURES.stat().st_size <= MAX_FEATURES_BYTES
    committed, texts = read_parts(), read_texts()
    assert len(committed) == len(texts) == 3
    assert all(texts)
    (found,) = extract_parts(SPOKEN, ["inaugural.flac"])
    ours = committed[0]
    assert (found.num_samples, found.start_s, found.speech) == (
        ours.num_samples, ours.start_s, ours.speech,
    )  # fmt: skip
    np.testing.assert_allclose(
        found.features.astype(np.float32), ours.features.astype(np.float32), atol=FEATURES_TOLERANCE
    )


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
