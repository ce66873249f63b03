"""Networks of speakers: windows as vectors, spans where two speak, and what is no network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.features.fbank import kaldi_fbank
from corpus_asr.speakers import networks
from corpus_asr.speakers.networks import OverlapDetector, SpeakerEmbedder
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip

# Tiny ONNX networks, written byte by byte: the library that makes them is no dependency.
# Source: the messages of `onnx/onnx.proto3`, of which a handful of fields are needed.
FLOAT, INT64 = 1, 7
_VARINT, _BYTES = 0, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _value(name: str, shape: Sequence[int | str], kind: int) -> bytes:
    axes = [_field(1, _field(1 if isinstance(axis, int) else 2, axis)) for axis in shape]
    tensor = _field(1, kind) + _field(2, b"".join(axes))
    return _field(1, name) + _field(2, _field(1, tensor))


def mean_network(
    *shape: int | str,
    axis: int | None = 1,
    keep: bool = False,
    kind: int = FLOAT,
    inputs: int = 1,
    times: int = 1,
) -> bytes:
    """Return a network that gives the mean over an axis of its first input, or for None itself.

    Where the axis is kept, it has that mean so many times.
    """
    width = [each for at, each in enumerate(shape) if at != axis or keep]
    out = [times if at == axis and keep else each for at, each in enumerate(width)]
    attributes = b""
    if axis is not None:
        axes = _field(1, "axes") + _field(8, axis) + _field(20, 7)
        kept = _field(1, "keepdims") + _field(3, int(keep)) + _field(20, 2)
        attributes = _field(5, axes) + _field(5, kept)
    operator = "Identity" if axis is None else "ReduceMean"
    node = _field(1, "input0") + _field(2, "mean") + _field(4, operator) + attributes
    over = _field(1, "axis") + _field(3, axis or 0) + _field(20, 2)
    joined = times * _field(1, "mean") + _field(2, "out") + _field(4, "Concat") + _field(5, over)
    graph = _field(1, node) + _field(1, joined) + _field(2, "mean")
    graph += b"".join(_field(11, _value(f"input{at}", shape, kind)) for at in range(inputs))
    graph += _field(12, _value("out", out, kind))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


REPOSITORY = Path(__file__).resolve().parents[2]
SPOKEN = REPOSITORY / "tests" / "data" / "spoken"
# Halves, and the level that features are raised to: sums of squares of other samples.
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
        ([(0.0, 1.6)], [(0.0, 1.6)]),
        ([(0.0, 2.35)], [(0.0, 1.6), (0.75, 2.35)]),
        # The rest is too little for a window of its own, and belongs to the last.
        ([(0.0, 2.5)], [(0.0, 1.6), (0.75, 2.5)]),
        ([(0.0, 2.7)], [(0.0, 1.6), (0.75, 2.35), (1.1, 2.7)]),
        ([(1.0, 1.2), (2.0, 3.0)], [(2.0, 3.0)]),
        ([], []),
    ],
)
def test_windows_cover_the_speech(embedder, voice, spans, expected):
    windows = embedder(voice, seconds(*spans))
    found = np.stack([windows.start_s, windows.end_s], axis=1)
    assert np.allclose(found, np.array(expected).reshape(-1, 2))
    assert windows.embeddings.shape == (len(expected), 256)
    assert windows.embeddings.dtype == np.float16
    lengths = np.linalg.norm(windows.embeddings.astype(np.float32), axis=1)
    assert np.allclose(lengths, 1.0, atol=HALF_PRECISION)


def test_padding_is_no_speech_except_at_the_borders_of_a_part(embedder, voice):
    windows = embedder(voice, seconds((0.0, 2.0), (3.0, 5.0), (6.0, 6.5)), pad_s=0.4)
    # What is shorter than its padding is taken as it is.
    assert np.allclose(windows.start_s, [0.0, 3.35, 6.0])
    assert np.allclose(windows.end_s, [1.65, 4.65, 6.5])


def test_a_voice_is_the_same_at_any_level_and_in_any_batch(embedder, voice):
    whole = embedder(voice, None)
    quiet = embedder(voice * np.float32(0.01), None)
    quieter = embedder(voice * np.float32(0.001), None)
    assert len(whole) == 14
    assert np.allclose(quiet.embeddings, quieter.embeddings, atol=HALF_PRECISION)
    alike = np.sum(whole.embeddings.astype(np.float32) * quiet.embeddings, axis=1)
    assert alike.min() > 0.95
    few = embedder(voice[: 4 * SAMPLE_RATE_HZ], None)
    alike = np.sum(whole.embeddings[:3].astype(np.float32) * few.embeddings[:3], axis=1)
    assert alike.min() > 0.99


def test_two_voices_are_less_alike_than_one(embedder, voice):
    other = read_clip(SPOKEN / "newgate.mp3")[: len(voice)]
    one, two = (embedder(each, None).embeddings.astype(np.float32) for each in (voice, other))
    mean_of_one, mean_of_two = one.mean(axis=0), two.mean(axis=0)
    assert (one @ mean_of_one > one @ mean_of_two).all()
    assert (two @ mean_of_two > two @ mean_of_one).all()


def test_digital_silence_and_nothing_have_no_windows(embedder):
    silence = np.zeros(5 * SAMPLE_RATE_HZ, dtype=np.float32)
    assert len(embedder(silence, [])) == 0
    assert len(embedder(silence[:0], None)) == 0
    for windows in (embedder(silence, None), SpeechWindows.joined([])):
        assert np.isfinite(windows.embeddings).all()
        assert len(windows.start_s) == len(windows.embeddings)


def test_joined_windows_are_in_order_of_time(embedder, voice):
    late = embedder(voice, seconds((5.0, 7.35)))
    early = embedder(voice, seconds((0.0, 1.0)))
    joined = SpeechWindows.joined([late, embedder(voice, []), early])
    assert joined.start_s.tolist() == [0.0, 5.0, 5.75]
    assert np.array_equal(joined.embeddings[1:], late.embeddings)


def test_networks_of_filter_banks_and_of_power_are_given_them(tmp_path, voice):
    def made(name: str, data: bytes) -> SpeakerEmbedder:
        (tmp_path / name).write_bytes(data)
        return SpeakerEmbedder(str(tmp_path / name))

    span = seconds((1.0, 2.6))
    # The mean of filter banks whose mean is taken away is zero, and has no direction.
    fbank = made("fbank.onnx", mean_network("batch", "frame", 80))
    assert fbank.width == 80
    assert np.abs(kaldi_fbank(voice[slice(*span[0])])).max() > 1.0
    assert len(fbank(voice, span)) <= 1
    power = made("power.onnx", mean_network("batch", "frame", 40))
    assert (power.width, len(power(voice, span))) == (40, 1)
    one = made("one.onnx", mean_network(1, "frame", 40))
    assert len(one(voice, None)) == 14


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
    monkeypatch.setattr(networks, "session_of", lambda path: network)
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
