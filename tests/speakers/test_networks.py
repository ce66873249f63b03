"""Embeddings of voices: windows as vectors, and what is no network for them."""

from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.speakers.networks import SpeakerEmbedder, unpadded
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.onnx_networks import INT64, mean_network

REPOSITORY = Path(__file__).resolve().parents[2]
SPOKEN = REPOSITORY / "tests" / "data" / "spoken"
# Embeddings are stored as halves.
HALF_PRECISION = 2e-3


@pytest.fixture(scope="module")
def embedder() -> SpeakerEmbedder:
    return SpeakerEmbedder()


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    return read_clip(SPOKEN / "inaugural.flac")


def seconds(*spans: tuple[float, float]) -> list[tuple[int, int]]:
    return [(round(a * SAMPLE_RATE_HZ), round(b * SAMPLE_RATE_HZ)) for a, b in spans]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0.0, 1.0)], [(0.0, 1.0)]),
        ([(0.0, 2.35)], [(0.0, 2.35)]),
        ([(0.0, 2.5)], [(0.0, 1.24), (1.24, 2.5)]),
        ([(1.0, 1.2), (2.0, 3.0)], [(2.0, 3.0)]),
        ([], []),
    ],
)
def test_windows_cover_the_speech(embedder, voice, spans, expected):
    windows = embedder(voice, seconds(*spans))
    found = np.stack([windows.start_s, windows.end_s], axis=1)
    assert np.allclose(found, np.array(expected).reshape(-1, 2))
    assert windows.embeddings.shape == (len(expected), 192)
    assert windows.embeddings.dtype == np.float16
    lengths = np.linalg.norm(windows.embeddings.astype(np.float32), axis=1)
    assert np.allclose(lengths, 1.0, atol=HALF_PRECISION)


def test_padding_is_no_speech_except_at_the_borders_of_a_part():
    spans = seconds((0.0, 2.0), (3.0, 5.0), (6.0, 6.5))
    found = [unpadded(span, 0.4, 11 * SAMPLE_RATE_HZ) for span in spans]
    # What is shorter than its padding is taken as it is.
    assert found == seconds((0.0, 1.65), (3.35, 4.65), (6.0, 6.5))


def test_a_voice_is_the_same_at_any_level_and_in_any_batch(embedder, voice, monkeypatch):
    whole = embedder(voice, [(0, voice.size)])
    quiet = embedder(voice * np.float32(0.01), [(0, voice.size)])
    alike = np.sum(whole.embeddings.astype(np.float32) * quiet.embeddings, axis=1)
    assert alike.min() > 0.95
    monkeypatch.setattr(embedder, "_batch", 1)
    single = embedder(voice, [(0, voice.size)])
    assert np.array_equal(single.end_s, whole.end_s)
    assert np.allclose(single.embeddings, whole.embeddings, atol=HALF_PRECISION)


def test_windows_are_few_where_a_voice_goes_on_and_short_where_it_changes(embedder, voice):
    half = 8 * SAMPLE_RATE_HZ
    two = np.concatenate([voice[:half], read_clip(SPOKEN / "newgate.mp3")[:half]])
    windows = embedder(two, [(0, two.size)])
    assert np.array_equal(windows.start_s[1:], windows.end_s[:-1])
    assert (windows.start_s[0], windows.end_s[-1]) == (0.0, 16.0)
    around = (windows.start_s < 8.0) & (windows.end_s > 8.0)
    assert windows.lasts_s[around].max() < 1.3
    assert windows.lasts_s.max() > 2.0
    assert len(windows) < 16.0 / 1.6 + 3


def test_two_voices_are_less_alike_than_one(embedder, voice):
    other = read_clip(SPOKEN / "newgate.mp3")[: len(voice)]
    one, two = (
        embedder(each, [(0, each.size)]).embeddings.astype(np.float32) for each in (voice, other)
    )
    mean_of_one, mean_of_two = one.mean(axis=0), two.mean(axis=0)
    assert (one @ mean_of_one > one @ mean_of_two).all()
    assert (two @ mean_of_two > two @ mean_of_one).all()


def test_digital_silence_and_nothing_have_no_windows(embedder):
    silence = np.zeros(5 * SAMPLE_RATE_HZ, dtype=np.float32)
    assert len(embedder(silence, [])) == 0
    assert len(embedder(silence[:0], [(0, 0)])) == 0
    for windows in (embedder(silence, [(0, silence.size)]), SpeechWindows.joined([])):
        assert np.isfinite(windows.embeddings).all()
        assert len(windows.start_s) == len(windows.embeddings)


def test_joined_windows_are_in_order_of_time(embedder, voice):
    late = embedder(voice, seconds((5.0, 6.0), (7.0, 8.0)))
    early = embedder(voice, seconds((0.0, 1.0)))
    joined = SpeechWindows.joined([late, embedder(voice, []), early])
    assert joined.start_s.tolist() == [0.0, 5.0, 7.0]
    assert np.array_equal(joined.embeddings[1:], late.embeddings)


@pytest.mark.parametrize(("batch", "most"), [("batch", 3), (1, 1)])
def test_another_network_is_given_centered_filter_banks(tmp_path, voice, monkeypatch, batch, most):
    (tmp_path / "model.onnx").write_bytes(mean_network(batch, "frame", 80))
    embedder = SpeakerEmbedder(str(tmp_path / "model.onnx"))
    batches = []

    def run(rows: np.ndarray) -> np.ndarray:
        batches.append(rows)
        return np.ones((len(rows), 80), dtype=np.float32)

    monkeypatch.setattr(embedder, "_run", run)
    assert len(embedder(voice, seconds((0.0, 8.0)))) == 3
    assert embedder.width == 80
    assert max(len(rows) for rows in batches) == most
    for rows in batches:
        assert np.abs(rows.mean(axis=1)).max() < 1e-4
        assert rows.std(axis=1).min() > 0.1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no network", "expected an ONNX network"),
        (mean_network("batch", "frame", 64), r"found the inputs input0 \['batch', 'frame', 64\]"),
        (mean_network("batch", 200, 80), r"\['batch', 200, 80\].*of any length"),
        (mean_network("batch", "frame", 80, inputs=2), "input0 .*, input1 "),
        (
            mean_network("batch", "frame", 80, kind=INT64),
            r"tensor\(int64\)|ReduceMean",
        ),
        (mean_network("batch", "frame", 80, axis=None), r"found an output \(8, 160, 80\) for"),
        (mean_network("batch", "sample", keep=True), "found the inputs"),
    ],
)
def test_another_network_is_refused_with_what_it_takes(tmp_path, data, message):
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        SpeakerEmbedder(str(tmp_path / "model.onnx"))
    assert str(caught.value).startswith("loading the speaker model")
