"""How probable speech is in each 32 ms of a recording, by Silero's network, in numpy.

Only the network's file is taken from silero-vad. ONNX Runtime multiplies the convolutions of each
step on their own, with matrices of one to four columns; here the steps of a block are the rows of
one product, which is 2.3 times as fast. Several recordings at once would speed up only the
recurrent layer, a third of the time that is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.errors import EngineError

# Silero at 16 kHz (`silero_vad/sequence_vad.py`): a step is scored with the end of the one before.
STEP_SAMPLES = 512  # 32 ms
CONTEXT_SAMPLES = 64

# Steps per call of the network. Always the same spans of the recording, so that probabilities
# do not depend on how it was chunked; from 64 steps on the speed does not change.
BLOCK_STEPS = 64  # 2 s
BLOCK_SAMPLES = BLOCK_STEPS * STEP_SAMPLES

_FFT_SAMPLES = 256
_HOP_SAMPLES = 128
_BINS = _FFT_SAMPLES // 2 + 1
_WIDTH = 128  # of the recurrent state
_TAPS = 3  # of each convolution

# Tensors of the network's file.
_BASIS = "stft.forward_basis_buffer"
_STRIDES = {"encoder.0": 1, "encoder.1": 2, "encoder.2": 2, "encoder.3": 1}
_INPUT_WEIGHTS, _STATE_WEIGHTS, _BIASES = (f"onnx::LSTM_{number}" for number in (209, 210, 211))
_SHAPES = {
    _BASIS: (2 * _BINS, 1, _FFT_SAMPLES),
    "encoder.0.weight": (128, _BINS, _TAPS),
    "encoder.0.bias": (128,),
    "encoder.1.weight": (64, 128, _TAPS),
    "encoder.1.bias": (64,),
    "encoder.2.weight": (64, 64, _TAPS),
    "encoder.2.bias": (64,),
    "encoder.3.weight": (_WIDTH, 64, _TAPS),
    "encoder.3.bias": (_WIDTH,),
    _INPUT_WEIGHTS: (1, 4 * _WIDTH, _WIDTH),
    _STATE_WEIGHTS: (1, 4 * _WIDTH, _WIDTH),
    _BIASES: (1, 8 * _WIDTH),
    "output.weight": (1, _WIDTH, 1),
    "output.bias": (1,),
}

Samples = Float32[np.ndarray, " sample"]
Probabilities = Float32[np.ndarray, " step"]
_State = Float32[np.ndarray, " width"]
_Steps = Float32[np.ndarray, "step offset"]
_Frames = Float32[np.ndarray, "step frame width"]


def _silence() -> _State:
    return np.zeros(_WIDTH, dtype=np.float32)


@dataclass(slots=True)
class _Memory:
    """What the network keeps of the steps before; the hidden state is held doubled."""

    hidden: _State = field(default_factory=_silence)
    cell: _State = field(default_factory=_silence)
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, dtype=np.float32))


class SileroDetector:
    """Speech probabilities of one recording at a time, as it streams by.

    Samples must be finite. Feeding chunks of any size gives the same probabilities as `score` gives
    for the whole recording. About 1,400 times real time on one core.
    Source: `silero_vad/sequence_vad.py` (silero-vad 6.2); equal to it within 1e-4.
    """

    def __init__(self) -> None:
        self._network = _network(_network_path())
        self.reset()

    def reset(self) -> None:
        """Forget the recording; the next samples begin another."""
        self._memory = _Memory()
        self._pending = np.zeros(0, dtype=np.float32)

    def feed(self, samples: Samples) -> Probabilities:
        """Return the probabilities of the steps completed since the last call.

        They come in whole blocks of `BLOCK_STEPS`, so up to 2 s late.
        """
        pending = np.concatenate([self._pending, samples])
        complete = pending.size // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._pending = pending[complete:].copy()
        return self._score(pending[:complete], self._memory)

    def finish(self) -> Probabilities:
        """Return the probabilities still owed, the last step filled up with zeros, and reset."""
        probabilities = self._score(self._pending, self._memory)
        self.reset()
        return probabilities

    def score(self, samples: Samples) -> Probabilities:
        """Return all probabilities of one array; does not touch the recording being fed."""
        return self._score(samples, _Memory())

    def _score(self, samples: Samples, memory: _Memory) -> Probabilities:
        probabilities = [np.zeros(0, dtype=np.float32)]
        for start in range(0, samples.size, BLOCK_SAMPLES):
            steps = in_steps(samples[start : start + BLOCK_SAMPLES])
            probabilities.append(self._network(steps, memory))
        return np.concatenate(probabilities)


def in_steps(samples: Samples) -> _Steps:
    """Copy samples into whole steps, the last one filled up with zeros."""
    num_steps = -(-samples.size // STEP_SAMPLES)
    steps = np.zeros((num_steps, STEP_SAMPLES), dtype=np.float32)
    steps.reshape(-1)[: samples.size] = samples
    return steps


class _Network:
    """Spectrum, four convolutions, a recurrent layer and one output.

    Sigmoids are computed as tanh: s(x) = (1 + tanh(x / 2)) / 2. Weights are halved for it, and for
    the hidden state, which is twice the original's; halving changes no digit.
    """

    def __init__(self, tensors: dict[str, Float32[np.ndarray, "..."]]) -> None:
        self._basis = tensors[_BASIS][:, 0].T  # (sample, bin)
        # Kernels are (tap x width, width), as the frames under them lie in memory.
        self._convolutions = [
            (
                np.concatenate([weight[..., tap].T for tap in range(_TAPS)]),
                tensors[f"{name}.bias"],
                stride,
            )
            for name, stride in _STRIDES.items()
            for weight in [tensors[f"{name}.weight"]]
        ]
        # Gates lie in ONNX's order: input, output, forget and, without a sigmoid, the new value.
        halves = np.ones((4 * _WIDTH, 1), dtype=np.float32)
        halves[: 3 * _WIDTH] = 0.5
        self._input_weights = (tensors[_INPUT_WEIGHTS][0] * halves).T  # (width, gate)
        self._state_weights = tensors[_STATE_WEIGHTS][0] * halves * np.float32(0.5)  # (gate, width)
        biases = tensors[_BIASES].reshape(2, -1)
        self._biases = (biases[0] + biases[1]) * halves[:, 0]
        # Halved for the hidden state and for the sigmoid.
        self._output_weights = tensors["output.weight"].reshape(-1) * np.float32(0.25)
        self._output_bias = tensors["output.bias"] * np.float32(0.5)

    def __call__(self, steps: _Steps, memory: _Memory) -> Probabilities:
        """Score the steps that follow what `memory` holds, which moves on to their end."""
        frames = self._spectra(steps, memory.context)
        for kernel, bias, stride in self._convolutions:
            frames = _convolved(frames, kernel, bias, stride=stride)
        hidden = self._recurrent(frames[:, 0] @ self._input_weights + self._biases, memory)
        memory.context = steps[-1, -CONTEXT_SAMPLES:].copy()
        scores = np.maximum(hidden, 0.0) @ self._output_weights + self._output_bias
        probabilities: Probabilities = (np.tanh(scores) + 1) * np.float32(0.5)
        return probabilities

    def _spectra(self, steps: _Steps, context: Samples) -> _Frames:
        """Return the magnitudes of four frames for each step, mirrored at its end."""
        num_steps, end = len(steps), CONTEXT_SAMPLES + STEP_SAMPLES
        samples = np.empty((num_steps, end + CONTEXT_SAMPLES), dtype=np.float32)
        samples[0, :CONTEXT_SAMPLES] = context
        samples[1:, :CONTEXT_SAMPLES] = steps[:-1, -CONTEXT_SAMPLES:]
        samples[:, CONTEXT_SAMPLES:end] = steps
        samples[:, end:] = steps[:, -2 : -CONTEXT_SAMPLES - 2 : -1]
        cut = np.lib.stride_tricks.sliding_window_view(samples, _FFT_SAMPLES, axis=1)
        windows = cut[:, ::_HOP_SAMPLES].reshape(-1, _FFT_SAMPLES)  # (step x frame, sample)
        # As a product, as in the file: it takes 0.7 of the time of numpy's Fourier transform.
        spectra = np.square(windows @ self._basis)
        power = spectra[:, :_BINS] + spectra[:, _BINS:]
        magnitudes: _Frames = np.sqrt(power, out=power).reshape(num_steps, -1, _BINS)
        return magnitudes

    def _recurrent(
        self, gates: Float32[np.ndarray, "step gate"], memory: _Memory
    ) -> Float32[np.ndarray, "step width"]:
        """Return the doubled hidden states; `gates` holds what the input adds to the gates."""
        states = np.empty((len(gates), _WIDTH), dtype=np.float32)
        sums = np.empty(4 * _WIDTH, dtype=np.float32)
        sigmoids = sums[: 3 * _WIDTH]
        let_in, let_out, keep, new = sums.reshape(4, _WIDTH)
        hidden, cell, squashed = memory.hidden, memory.cell, _silence()
        # Each operation into memory that is there: they are so short that making it would double
        # their time.
        for added, state in zip(gates, states, strict=True):
            np.dot(self._state_weights, hidden, out=sums)
            np.add(sums, added, out=sums)
            np.tanh(sums, out=sums)
            np.add(sigmoids, _ONE, out=sigmoids)
            np.multiply(cell, keep, out=cell)
            np.multiply(new, let_in, out=new)
            np.add(cell, new, out=cell)
            np.multiply(cell, _HALF, out=cell)
            np.tanh(cell, out=squashed)
            np.multiply(let_out, squashed, out=state)
            hidden = state
        memory.hidden = hidden.copy()
        return states


_ONE, _HALF = np.float32(1.0), np.float32(0.5)


def _convolved(
    frames: _Frames,
    kernel: Float32[np.ndarray, "tap out"],
    bias: Float32[np.ndarray, " out"],
    *,
    stride: int,
) -> Float32[np.ndarray, "step place out"]:
    """Convolve each step's frames with silence around them, and take away what is negative."""
    num_steps, num_frames, width = frames.shape
    flat = frames.reshape(num_steps, -1)
    result = np.empty((num_steps, -(-num_frames // stride), bias.size), dtype=np.float32)
    for place in range(result.shape[1]):
        start = place * stride - 1  # of the frames under the kernel
        first, last = max(start, 0), min(start + _TAPS, num_frames)
        taps = kernel[(first - start) * width : (last - start) * width]
        np.matmul(flat[:, first * width : last * width], taps, out=result[:, place])
    result += bias
    np.maximum(result, 0.0, out=result)
    return result


def _network_path() -> Path:
    # Without importing silero_vad, which would load torch.
    spec = find_spec("silero_vad")
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / "data" / "silero_vad_16k_sequence.onnx" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    looked = f"no file {paths[0]}" if paths else "no package silero_vad"
    raise EngineError(
        f"loading the speech detector: found {looked}, expected silero-vad 6.2 or later; install "
        "it (pip install 'silero-vad>=6.2') or set extract.vad_filter: false"
    )


@lru_cache(maxsize=1)
def _network(path: Path) -> _Network:
    """Load a network; the detectors of all channels share its weights."""
    try:
        tensors = dict(_tensors(memoryview(path.read_bytes())))
    except (IndexError, ValueError) as error:  # of bytes that are no such file
        raise _unknown(path, f"no network in ONNX ({error})") from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if other := [name for name in _SHAPES if shapes.get(name) != _SHAPES[name]]:
        raise _unknown(path, f"{other[0]} of shape {shapes.get(other[0])}")
    return _Network(tensors)


def _unknown(path: Path, found: str) -> EngineError:
    return EngineError(
        f"loading the speech detector {path}: found {found}, expected the network of silero-vad "
        "6.2; install that (pip install 'silero-vad==6.2.3') or set extract.vad_filter: false"
    )


# Fields of `onnx/onnx.proto3`: the graph of a model, the tensors of a graph, what is in a tensor.
_GRAPH, _INITIALIZER = 7, 5
_DIMENSION, _NAME, _VALUES = 1, 8, 9


def _tensors(model: memoryview) -> Iterator[tuple[str, Float32[np.ndarray, "..."]]]:
    """Yield the names and values of an ONNX file's tensors, all of float32."""
    graphs = [value for number, value in _fields(model) if number == _GRAPH]
    for graph in graphs:
        for number, tensor in _fields(graph):
            if number == _INITIALIZER:
                fields = list(_fields(tensor))
                shape = [_number(value)[0] for number, value in fields if number == _DIMENSION]
                named = {number: value for number, value in fields if number in (_NAME, _VALUES)}
                # Copied: in the file they lie at addresses that arithmetic is slow with.
                values = np.frombuffer(named[_VALUES], dtype="<f4").astype(np.float32)
                yield bytes(named[_NAME]).decode(), values.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the numbers and bytes of a protobuf message's fields.

    Source: protobuf.dev/programming-guides/encoding.
    """
    place = 0
    while place < len(message):
        tag, start = _number(message, place)
        kind = tag & 7
        if kind == 0:
            place = _number(message, start)[1]
        elif kind == 2:
            length, start = _number(message, start)
            place = start + length
        else:
            place = start + {1: 8, 5: 4}.get(kind, len(message))
        if place > len(message):
            raise ValueError(f"field {tag >> 3} ends after the message")
        yield tag >> 3, message[start:place]


def _number(message: memoryview, place: int = 0) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it with the place behind it."""
    value = shift = 0
    while message[place] & 0x80:
        value |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | message[place] << shift, place + 1
