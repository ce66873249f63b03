"""Segmentation: where speakers change, where two speak, and what is no network for it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.speakers import segmentation
from corpus_asr.speakers.segmentation import Segmenter
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.onnx_networks import mean_network

SPOKEN = Path(__file__).resolve().parents[1] / "data" / "spoken"
HOP = 270


FIRST, SECOND, BOTH = 0.1, 0.5, 0.9


class Network:
    """A sample says who speaks then; who is the first or the second changes with each window."""

    name = "samples"

    def __init__(self, classes: int, window_s: float) -> None:
        self.classes, self.size = classes, round(window_s * SAMPLE_RATE_HZ)
        self.num_windows = 0

    def get_inputs(self) -> list["Network"]:
        return [self]

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        samples = inputs[self.name][:, 0]
        if samples.shape[1] != self.size:
            raise ValueError("another length")
        states = samples[:, HOP // 2 :: HOP, None]
        at = np.arange(3)
        values = []
        for state in states:
            self.num_windows += 1
            first, second = np.random.default_rng(self.num_windows).permutation(3)[:2]
            speaking = (at == first) * (state != np.float32(SECOND))
            speaking = speaking + (at == second) * (state >= np.float32(SECOND))
            speaking = np.where(state == 0.0, 0, speaking).astype(np.float32)
            if self.classes == 3:
                values.append(speaking)
                continue
            sets = np.array([[0, 0, 0], *np.eye(3), [1, 1, 0], [1, 0, 1], [0, 1, 1]])
            likely = (speaking[:, None] == sets).all(axis=2)
            values.append(np.log(np.where(likely, 1.0, 1e-9)).astype(np.float32))
        return [np.stack(values)]


def scripted(monkeypatch: pytest.MonkeyPatch, classes: int, window_s: float) -> Segmenter:
    network = Network(classes, window_s)
    monkeypatch.setattr(segmentation, "fetch_onnx", Path)
    monkeypatch.setattr(segmentation, "session_of", lambda path: network)
    segmenter = Segmenter("scripted.onnx")
    network.num_windows = 0
    return segmenter


def samples_of(*states: tuple[float, float, float], seconds: float = 60.0) -> np.ndarray:
    samples = np.zeros(round(seconds * SAMPLE_RATE_HZ), dtype=np.float32)
    for start_s, end_s, state in states:
        samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = state
    return samples


def seconds_of(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(spans).reshape(-1, 2) / SAMPLE_RATE_HZ


@pytest.mark.parametrize(("classes", "window_s"), [(3, 5), (7, 10)])
def test_pieces_end_where_speakers_change_and_where_two_speak(monkeypatch, classes, window_s):
    segmenter = scripted(monkeypatch, classes, window_s)
    samples = samples_of(
        (0.0, 3.0, FIRST), (3.0, 4.5, BOTH), (4.5, 8.0, SECOND), (8.0, 8.05, BOTH),
        (8.05, 11.0, SECOND), (11.0, 13.0, FIRST), (13.5, 14.5, FIRST), (14.5, 14.6, SECOND),
        (14.6, 16.0, FIRST), (50.0, 52.0, BOTH),
    )  # fmt: skip
    speech = [(0, 16 * SAMPLE_RATE_HZ), (40 * SAMPLE_RATE_HZ, 41 * SAMPLE_RATE_HZ)]
    pieces, overlaps = segmenter(samples, speech)
    # Where nobody is heard for long the last one goes on, and what is shorter than a window is no
    # change; a pause is in no piece.
    expected = [(0.0, 3.0), (4.5, 11.0), (11.0, 13.0), (13.5, 16.0), (40.0, 41.0)]
    assert np.allclose(seconds_of(pieces), expected, atol=0.05)
    assert np.allclose(seconds_of(overlaps), [(3.0, 4.5)], atol=0.05)
    # Nobody looks at what is no speech.
    assert segmenter._session.num_windows < 13


def test_short_and_no_samples_are_pieces(monkeypatch):
    segmenter = scripted(monkeypatch, 7, 10)
    short = samples_of((0.0, 1.0, FIRST), seconds=1.0)
    assert segmenter(short, [(0, short.size)]) == ([(0, short.size)], [])
    assert segmenter(short[:0], []) == ([], [])


@pytest.mark.long
def test_the_packaged_network_hears_a_change_and_two_at_once():
    one, two = (read_clip(SPOKEN / name) for name in ("inaugural.flac", "newgate.mp3"))
    one, two = one[: 6 * SAMPLE_RATE_HZ], two[: 8 * SAMPLE_RATE_HZ]
    mixed = np.zeros(13 * SAMPLE_RATE_HZ, dtype=np.float32)
    mixed[: one.size] += one
    mixed[4 * SAMPLE_RATE_HZ : 12 * SAMPLE_RATE_HZ] += two
    pieces, overlaps = Segmenter()(mixed, [(0, mixed.size)])
    assert len(overlaps) > 0
    assert 3.8 < seconds_of(overlaps).min() < seconds_of(overlaps).max() < 6.2
    assert seconds_of(pieces).max() == 13.0


def test_a_network_that_does_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "other.onnx"
    path.write_bytes(mean_network("batch", 1, "sample", axis=1))
    with pytest.raises(CheckpointError, match=r"an output \(1, 160000\), expected an input"):
        Segmenter(str(path))
