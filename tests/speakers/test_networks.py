"""Where two speak at once: spans of time from a scripted network's frames."""

from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.speakers import networks
from corpus_asr.speakers.networks import OverlapDetector
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.speakers.test_embeddings import mean_network

HOP = 270


class Network:
    """A sample is the probability that the second speaker speaks then; the first always does."""

    def __init__(self, classes: int, window_s: float) -> None:
        self.classes, self.size = classes, round(window_s * SAMPLE_RATE_HZ)
        self.num_windows = 0

    def get_inputs(self) -> list["Network"]:
        return [self]

    name = "samples"

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        samples = inputs[self.name][:, 0]
        if samples.shape[1] != self.size:
            raise ValueError("another length")
        self.num_windows += len(samples)
        second = samples[:, HOP // 2 :: HOP]
        if self.classes == 3:
            return [np.stack([second, np.ones_like(second), 0 * second], axis=2)]
        sets = np.full((*second.shape, self.classes), 1e-9, dtype=np.float32)
        sets[:, :, 1], sets[:, :, 4] = 1 - second, second
        return [np.log(np.maximum(sets, 1e-9, dtype=np.float32))]


@pytest.mark.parametrize(("classes", "window_s"), [(3, 5), (7, 10)])
def test_two_at_once_are_found_where_speech_is(monkeypatch, classes, window_s):
    network = Network(classes, window_s)
    monkeypatch.setattr(networks, "fetch_onnx", Path)
    monkeypatch.setattr(networks, "session_of", lambda path, what: network)
    detector = OverlapDetector("scripted.onnx")
    network.num_windows = 0
    samples = np.full(60 * SAMPLE_RATE_HZ, 0.1, dtype=np.float32)
    for start_s, end_s in ((3.0, 4.5), (8.0, 8.05), (50.0, 52.0)):
        samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = 0.9
    # Nobody looks at what is no speech; what is shorter than borders are exact is nothing.
    found = detector(samples, [(0, 16 * SAMPLE_RATE_HZ)])
    assert np.allclose(found, [(3.0, 4.5)], atol=0.03)
    assert network.num_windows < 9
    assert detector(samples[:SAMPLE_RATE_HZ], [(0, SAMPLE_RATE_HZ)]).shape == (0, 2)
    assert detector(samples[:0], [(0, 0)]).shape == (0, 2)


def test_a_network_that_does_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "other.onnx"
    path.write_bytes(mean_network("batch", 1, "sample", axis=1))
    with pytest.raises(CheckpointError, match=r"an output \(1, 160000\), expected an input"):
        OverlapDetector(str(path))
