"""Silero's speech probabilities per 32 ms of a recording, computed in numpy.

Only the network's file is taken from silero-vad. ONNX Runtime computes the convolutions of each
step separately, with matrices of one to four columns; here the steps of a block are the rows of one
product, which is three times as fast. Batches of recordings would speed up only the recurrent
layer, a third of the remaining time: each of its steps reads all of its weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.errors import EngineError

# Silero at 16 kHz (`silero_vad/sequence_vad.py`): a step's input includes the previous one's end.
STEP_SAMPLES = 512  # 32 ms
CONTEXT_SAMPLES = 64

# Steps per call of the network. Blocks have fixed positions, so that probabilities do not depend on
# chunk boundaries; from 64 steps on the speed is constant.
BLOCK_STEPS = 64  # 2 s
BLOCK_SAMPLES = BLOCK_STEPS * STEP_SAMPLES

_FFT_SAMPLES = 256
_HALF_FRAME = _FFT_SAMPLES // 2  # also the hop between frames
_BINS = _FFT_SAMPLES // 2 + 1
_WIDTH = 128  # of the recurrent state
_TAPS = 3  # of each convolution

# Tensor names in the network's file.
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
class _NetworkState:
    """State of the network after earlier steps; the hidden state is doubled."""

    hidden: _State = field(default_factory=_silence)
    cell: _State = field(default_factory=_silence)
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, dtype=np.float32))


class SileroDetector:
    """Speech probabilities of one streamed recording at a time.

    Samples must be finite. Chunks of any size give the same probabilities as `score` on the whole
    recording. RTFx about 1,900 on one core.
    Source: `silero_vad/sequence_vad.py` (silero-vad 6.2); equal to it within 1e-4.
    """

    def __init__(self) -> None:
        self._network = _network(_network_path())
        self.reset()

    def reset(self) -> None:
        """Reset the state for another recording."""
        self._memory = _NetworkState()
        self._pending = np.zeros(0, dtype=np.float32)

    def feed(self, samples: Samples) -> Probabilities:
        """Return the probabilities of the steps completed since the last call.

        They come in whole blocks of `BLOCK_STEPS`, so with a delay of up to 2 s.
        """
        pending = np.concatenate([self._pending, samples])
        complete = pending.size // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._pending = pending[complete:].copy()
        return self._score(pending[:complete], self._memory)

    def finish(self) -> Probabilities:
        """Return the remaining probabilities, with the last step zero-padded, and reset."""
        probabilities = self._score(self._pending, self._memory)
        self.reset()
        return probabilities

    def score(self, samples: Samples) -> Probabilities:
        """Return all probabilities of one array; the streamed recording is unaffected."""
        return self._score(samples, _NetworkState())

    def _score(self, samples: Samples, memory: _NetworkState) -> Probabilities:
        probabilities = [np.zeros(0, dtype=np.float32)]
        for start in range(0, samples.size, BLOCK_SAMPLES):
            steps = in_steps(samples[start : start + BLOCK_SAMPLES])
            probabilities.append(self._network(steps, memory))
        return np.concatenate(probabilities)


def in_steps(samples: Samples) -> _Steps:
    """Copy samples into whole steps, with the last one zero-padded."""
    num_steps = -(-samples.size // STEP_SAMPLES)
    steps = np.zeros((num_steps, STEP_SAMPLES), dtype=np.float32)
    steps.reshape(-1)[: samples.size] = samples
    return steps


class _Network:
    """Spectrum, four convolutions, a recurrent layer and one output.

    Sigmoids are computed as tanh: s(x) = (1 + tanh(x / 2)) / 2. Weights are halved for it, and for
    the doubled hidden state; halving is exact.
    """

    def __init__(self, tensors: dict[str, Float32[np.ndarray, "..."]]) -> None:
        # Windowed cosines are symmetric around a frame's middle, sines antisymmetric: sums of a
        # frame's halves are used for the former, differences for the latter, for half the products.
        half = tensors[_BASIS][:, 0, 1 : _HALF_FRAME + 1].T.copy()  # (sample, bin)
        half[-1] *= 0.5  # the middle is added to itself
        self._cosines = half[:, :_BINS].copy()
        self._sines = half[:, _BINS + 1 : -1].copy()  # zero for the lowest and highest bin
        # Kernels are (tap x width, width), matching the memory layout of frames.
        self._convolutions = [
            (weight.transpose(2, 1, 0).reshape(-1, len(weight)), tensors[f"{name}.bias"], stride)
            for name, stride in _STRIDES.items()
            for weight in [tensors[f"{name}.weight"]]
        ]
        # ONNX's gate order is input, output, forget and, without a sigmoid, cell; here output is
        # first.
        order = np.arange(4 * _WIDTH).reshape(4, _WIDTH)[[1, 0, 2, 3]].reshape(-1)
        halves = np.ones((4 * _WIDTH, 1), dtype=np.float32)
        halves[: 3 * _WIDTH] = 0.5
        # Copied, as products read rows.
        self._input_weights = (tensors[_INPUT_WEIGHTS][0, order] * halves).T.copy()  # (width, gate)
        state_weights = tensors[_STATE_WEIGHTS][0, order]  # (gate, width)
        self._state_weights = state_weights * halves * np.float32(0.5)
        biases = tensors[_BIASES].reshape(2, -1)[:, order]
        self._biases = (biases[0] + biases[1]) * halves[:, 0]
        # Halved for the hidden state and for the sigmoid.
        self._output_weights = tensors["output.weight"].reshape(-1) * np.float32(0.25)
        self._output_bias = tensors["output.bias"] * np.float32(0.5)

    def __call__(self, steps: _Steps, memory: _NetworkState) -> Probabilities:
        """Score the steps that follow `memory`, which is advanced to their end."""
        frames = self._spectra(steps, memory.context)
        for kernel, bias, stride in self._convolutions:
            frames = _convolved(frames, kernel, bias, stride=stride)
        hidden = self._recurrent(frames[:, 0] @ self._input_weights + self._biases, memory)
        memory.context = steps[-1, -CONTEXT_SAMPLES:].copy()
        scores = np.maximum(hidden, 0.0) @ self._output_weights + self._output_bias
        probabilities: Probabilities = (np.tanh(scores) + 1) * np.float32(0.5)
        return probabilities

    def _spectra(self, steps: _Steps, context: Samples) -> _Frames:
        """Return the magnitudes of four frames per step, with reflection at its end."""
        num_steps, end = len(steps), CONTEXT_SAMPLES + STEP_SAMPLES
        samples = np.empty((num_steps, end + CONTEXT_SAMPLES), dtype=np.float32)
        samples[0, :CONTEXT_SAMPLES] = context
        samples[1:, :CONTEXT_SAMPLES] = steps[:-1, -CONTEXT_SAMPLES:]
        samples[:, CONTEXT_SAMPLES:end] = steps
        samples[:, end:] = steps[:, -2 : -CONTEXT_SAMPLES - 2 : -1]
        # The first halves of frames, without the first sample, which has zero weight, and the
        # reversed second halves.
        halves = (num_steps, -1, _HALF_FRAME)
        first = samples[:, 1 : 1 - _HALF_FRAME].reshape(halves)
        second = samples[:, : _HALF_FRAME - 1 : -1].reshape(halves)[:, ::-1].copy()
        # As matrix products, as in the file: numpy's Fourier transform is slower.
        power = (first + second).reshape(-1, _HALF_FRAME) @ self._cosines
        np.square(power, out=power)
        sines = (first - second).reshape(-1, _HALF_FRAME) @ self._sines
        power[:, 1:-1] += np.square(sines, out=sines)
        magnitudes: _Frames = np.sqrt(power, out=power).reshape(num_steps, -1, _BINS)
        return magnitudes

    def _recurrent(
        self, gates: Float32[np.ndarray, "step gate"], memory: _NetworkState
    ) -> Float32[np.ndarray, "step width"]:
        """Return the doubled hidden states; `gates` has the input's contribution to the gates."""
        states = np.empty((len(gates), _WIDTH), dtype=np.float32)
        # Gates and cell state are concatenated, so that both products of a step are one.
        row = np.empty(5 * _WIDTH, dtype=np.float32)
        sums, sigmoids = row[: 4 * _WIDTH], row[: 3 * _WIDTH]
        let_out, shares, values = row[:_WIDTH], row[_WIDTH : 3 * _WIDTH], row[3 * _WIDTH :]
        new, cell = values.reshape(2, _WIDTH)
        hidden, squashed = memory.hidden, _silence()
        cell[:] = memory.cell
        # All operations use existing buffers and array operands: they are so short that allocation
        # would double their time, and a scalar operand adds a third.
        for added, state in zip(gates, states, strict=True):
            np.dot(self._state_weights, hidden, sums)
            np.add(sums, added, sums)
            np.tanh(sums, sums)
            np.add(sigmoids, _ONES, sigmoids)
            np.multiply(shares, values, values)
            np.add(new, cell, cell)
            np.multiply(cell, _HALVES, cell)
            np.tanh(cell, squashed)
            np.multiply(let_out, squashed, state)
            hidden = state
        memory.hidden, memory.cell = hidden.copy(), cell.copy()
        return states


_ONES = np.ones(3 * _WIDTH, dtype=np.float32)
_HALVES = np.full(_WIDTH, 0.5, dtype=np.float32)


def _convolved(
    frames: _Frames,
    kernel: Float32[np.ndarray, "tap out"],
    bias: Float32[np.ndarray, " out"],
    *,
    stride: int,
) -> Float32[np.ndarray, "step place out"]:
    """Convolve each step's frames with zero padding, followed by ReLU."""
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
        f"loading the speech detector: found {looked}, expected silero-vad 6.2 or later; pip "
        "install 'silero-vad>=6.2', or set extract.vad_filter: false"
    )


@lru_cache(maxsize=1)
def _network(path: Path) -> _Network:
    """Load a network; the detectors of all channels share its weights."""
    try:
        tensors = dict(_tensors(memoryview(path.read_bytes())))
    except (IndexError, ValueError) as error:  # the file is not such a network
        raise _unknown(path, f"no ONNX network ({error})") from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if misfits := [name for name in _SHAPES if shapes.get(name) != _SHAPES[name]]:
        raise _unknown(path, f"{misfits[0]} of shape {shapes.get(misfits[0])}")
    if not _is_mirrored(tensors[_BASIS][:, 0]):
        raise _unknown(path, f"{_BASIS} that is not mirrored around its middle")
    return _Network(tensors)


def _is_mirrored(basis: Float32[np.ndarray, "bin sample"]) -> bool:
    cosines, sines = basis[:_BINS], basis[_BINS:]
    even = np.array_equal(cosines[:, 1:], cosines[:, :0:-1])
    odd = np.array_equal(sines[:, 1:], -sines[:, :0:-1])
    return even and odd and not basis[:, 0].any() and not sines[[0, -1]].any()


def _unknown(path: Path, found: str) -> EngineError:
    return EngineError(
        f"loading the speech detector {path}: found {found}, expected the network of silero-vad "
        "6.2; pip install 'silero-vad==6.2.3', or set extract.vad_filter: false"
    )


# Field numbers of `onnx/onnx.proto3`: graph of a model, tensors of a graph, content of a tensor.
_GRAPH, _INITIALIZER = 7, 5
_DIMENSION, _NAME, _VALUES = 1, 8, 9


def _tensors(model: memoryview) -> Iterator[tuple[str, Float32[np.ndarray, "..."]]]:
    """Yield the names and values of an ONNX file's float32 tensors."""
    graphs = [value for number, value in _fields(model) if number == _GRAPH]
    for graph in graphs:
        for number, tensor in _fields(graph):
            if number == _INITIALIZER:
                fields = list(_fields(tensor))
                shape = [_number(value)[0] for number, value in fields if number == _DIMENSION]
                named = {number: value for number, value in fields if number in (_NAME, _VALUES)}
                # Copied: unaligned addresses in the file are slow.
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
    """Parse a varint; return it with the position after it."""
    value = shift = 0
    while message[place] & 0x80:
        value |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | message[place] << shift, place + 1
