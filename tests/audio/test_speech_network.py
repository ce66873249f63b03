"""The network beside ONNX Runtime, block after block, and files that hold another network."""

import numpy as np
import onnxruntime
import pytest

from corpus_asr.audio.speech_network import SpeechNetwork, fresh_memory
from corpus_asr.errors import EngineError
from tests.audio.test_onnx_weights import DATA, NETWORK

STEP_WITH_CONTEXT = 576


@pytest.fixture(scope="module")
def network() -> SpeechNetwork:
    return SpeechNetwork(NETWORK)


def steps_of(count: int, *, loudness: float = 0.05) -> np.ndarray:
    noise = np.random.default_rng(count).standard_normal((count, STEP_WITH_CONTEXT))
    return (loudness * noise).astype(np.float32)


def test_blocks_in_a_row_equal_onnx_runtime(network):
    session = onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
    state = dict.fromkeys(("h", "c"), np.zeros((1, 1, 128), dtype=np.float32))
    memory = fresh_memory()
    for count, loudness in ((1, 0.05), (64, 0.3), (3, 0.0), (64, 1e-4), (17, 30.0)):
        steps = steps_of(count, loudness=loudness)
        expected, state["h"], state["c"] = session.run(None, {"input": steps, **state})
        found, memory = network(steps, memory)
        np.testing.assert_allclose(found, expected.reshape(-1), rtol=0, atol=5e-5)
        for ours, theirs in zip(memory, (state["h"], state["c"]), strict=True):
            np.testing.assert_allclose(ours, theirs.reshape(-1), rtol=0, atol=5e-4)


def test_the_memory_given_stays_as_it_was(network):
    _, memory = network(steps_of(5), fresh_memory())
    before = [values.copy() for values in memory]
    first, _ = network(steps_of(4), memory)
    second, _ = network(steps_of(4), memory)
    assert np.array_equal(first, second)
    assert all(np.array_equal(*pair) for pair in zip(before, memory, strict=True))


@pytest.mark.parametrize("loudness", [0.0, 1e-30, 1e9])
def test_absurd_loudness_gives_probabilities(network, loudness):
    found, _ = network(steps_of(8, loudness=loudness), fresh_memory())
    assert ((found >= 0) & (found <= 1)).all()


def test_another_network_is_named(tmp_path):
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for path in (empty, DATA / "silero_vad.onnx"):
        with pytest.raises(EngineError, match=r"\.onnx: found layers .*network of silero-vad 6\.2"):
            SpeechNetwork(path)


def test_a_broken_or_missing_file_is_named(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(NETWORK.read_bytes()[:-9])
    with pytest.raises(EngineError, match=r"broken\.onnx: .*speech_detection: none"):
        SpeechNetwork(broken)
    with pytest.raises(EngineError, match=r"none\.onnx: .*No such file"):
        SpeechNetwork(tmp_path / "none.onnx")
