"""Silero's network in numpy: many steps of sound in, one probability of speech for each out.

In: steps of 16 kHz samples, each behind the end of the one before, and what the network remembers.
Out: probabilities, and what it remembers then. Knows nothing of recordings, chunks or spans.

ONNX Runtime convolves step by step, over four frames at a time; here all steps of a call are
convolved in one product, which takes less than half the time.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from corpus_asr.audio.onnx_weights import WeightedNode, read_weights
from corpus_asr.errors import EngineError

WIDTH = 128  # of what it remembers
_TAPS = 3
_FRAME_SAMPLES, _HOP_SAMPLES = 256, 128
_MIRRORED_SAMPLES = 64  # at the end of a step, so that it holds whole hops
_BINS = 129
_STRIDES = (1, 2, 2, 1)

_SHAPES = (
    ("Conv", (258, 1, 256)),
    ("Conv", (128, 129, 3), (128,)),
    ("Conv", (64, 128, 3), (64,)),
    ("Conv", (64, 64, 3), (64,)),
    ("Conv", (128, 64, 3), (128,)),
    ("LSTM", (1, 512, 128), (1, 512, 128), (1, 1024)),
    ("Conv", (1, 128, 1), (1,)),
)

Memory = tuple[Float32[np.ndarray, " width"], Float32[np.ndarray, " width"]]
"""The output and the cell of the recurrent layer."""


def fresh_memory() -> Memory:
    """What the network remembers before anything was heard."""
    return np.zeros(WIDTH, dtype=np.float32), np.zeros(WIDTH, dtype=np.float32)


class SpeechNetwork:
    """The network of one ONNX file; equal to ONNX Runtime within 5e-5.

    Raises:
        EngineError: the file cannot be read or holds another network.

    Source: the graph of `silero_vad/data/silero_vad_16k_sequence.onnx` (silero-vad 6.2), also in
    `silero_vad/tinygrad_model.py`.
    """

    def __init__(self, path: Path) -> None:
        nodes = _checked_nodes(path)
        self._basis = _as_matrix(nodes[0][1][0])  # (sample, bin)
        self._layers = [
            (_as_matrix(weights), bias, stride)
            for (_, (weights, bias)), stride in zip(nodes[1:5], _STRIDES, strict=True)
        ]
        inputs, recurrent, biases = (weights[0] for weights in nodes[5][1])
        # Gates are input, output, forget, cell. sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so one tanh
        # does for all of them; the halves inside are exact in the weights.
        halves = np.repeat(np.array([0.5, 0.5, 0.5, 1.0], dtype=np.float32), WIDTH)
        self._from_input = np.ascontiguousarray((inputs * halves[:, None]).T)  # (width, gate)
        self._from_output = np.ascontiguousarray((recurrent * halves[:, None]).T)
        self._gate_bias = biases.reshape(2, -1).sum(axis=0) * halves
        weights, bias = nodes[6][1]
        self._last_weights, self._last_bias = weights.reshape(-1), bias[0]

    def __call__(
        self, steps: Float32[np.ndarray, "step sample"], memory: Memory
    ) -> tuple[Float32[np.ndarray, " step"], Memory]:
        """Return probabilities, and what is remembered after the last step.

        Args:
            steps: at least one, each 64 samples of the step before and 512 of its own.
            memory: left as it is.
        """
        outputs, memory = self._remember(self._listen(steps), memory)
        scores = np.maximum(outputs, 0.0) @ self._last_weights + self._last_bias
        half = np.float32(0.5)  # as in the gates
        probabilities: Float32[np.ndarray, " step"] = np.tanh(half * scores) * half + half
        return probabilities, memory

    def _listen(
        self, steps: Float32[np.ndarray, "step sample"]
    ) -> Float32[np.ndarray, "step width"]:
        """Return what each step says by itself."""
        mirrored = steps[:, -2 : -2 - _MIRRORED_SAMPLES : -1]
        hops = np.concatenate([steps, mirrored], axis=1).reshape(len(steps), -1, _HOP_SAMPLES)
        frames = np.concatenate([hops[:, :-1], hops[:, 1:]], axis=2)  # (step, frame, sample)
        spectra = frames.reshape(-1, _FRAME_SAMPLES) @ self._basis
        np.square(spectra, out=spectra)
        powers = spectra[:, :_BINS] + spectra[:, _BINS:]  # real and imaginary halves
        heard = np.sqrt(powers, out=powers).reshape(*frames.shape[:2], _BINS)
        for weights, bias, stride in self._layers:
            heard = _convolve(heard, weights, bias, stride=stride)
        last: Float32[np.ndarray, "step width"] = heard[:, 0]  # one frame is left of four
        return last

    def _remember(
        self, heard: Float32[np.ndarray, "step width"], memory: Memory
    ) -> tuple[Float32[np.ndarray, "step width"], Memory]:
        """Run the recurrent layer; everything in place, as a step is little more than its calls."""
        from_inputs = heard @ self._from_input + self._gate_bias  # (step, gate)
        outputs = np.empty_like(heard)
        hidden, cell = memory[0], memory[1].copy()
        gates = np.empty(4 * WIDTH, dtype=np.float32)
        sigmoids = gates[: 3 * WIDTH]
        enter, leave, keep, candidate = gates.reshape(4, WIDTH)
        half = np.float32(0.5)
        for from_input, output in zip(from_inputs, outputs, strict=True):
            np.dot(hidden, self._from_output, out=gates)
            np.add(gates, from_input, out=gates)
            np.tanh(gates, out=gates)
            np.multiply(sigmoids, half, out=sigmoids)
            np.add(sigmoids, half, out=sigmoids)
            np.multiply(keep, cell, out=cell)
            np.multiply(enter, candidate, out=candidate)
            np.add(cell, candidate, out=cell)
            np.tanh(cell, out=output)
            np.multiply(leave, output, out=output)
            hidden = output
        return outputs, (hidden.copy(), cell)


def _convolve(
    frames: Float32[np.ndarray, "step frame width"],
    weights: Float32[np.ndarray, "taps channel"],
    bias: Float32[np.ndarray, " channel"],
    *,
    stride: int,
) -> Float32[np.ndarray, "step moved channel"]:
    """Convolve within each step, between zeros, and keep what is positive."""
    num_steps, num_frames, width = frames.shape
    padded = np.zeros((num_steps, num_frames + 2, width), dtype=np.float32)
    padded[:, 1:-1] = frames
    seen = [padded[:, tap : tap + num_frames : stride] for tap in range(_TAPS)]
    moved = np.concatenate(seen, axis=2)
    result = moved.reshape(-1, _TAPS * width) @ weights
    result += bias
    np.maximum(result, 0.0, out=result)
    moved_on: Float32[np.ndarray, "step moved channel"]
    moved_on = result.reshape(num_steps, moved.shape[1], -1)
    return moved_on


def _as_matrix(
    weights: Float32[np.ndarray, "channel width tap"],
) -> Float32[np.ndarray, "taps channel"]:
    """Lay out a kernel as `_convolve` lays out what it sees: tap by tap."""
    return np.ascontiguousarray(weights.transpose(2, 1, 0).reshape(-1, len(weights)))


def _checked_nodes(path: Path) -> list[WeightedNode]:
    try:
        nodes = read_weights(path)
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    shapes = tuple((kind, *(array.shape for array in arrays)) for kind, arrays in nodes)
    if shapes != _SHAPES:
        raise _unusable(path, f"layers {shapes}")
    return nodes


def _unusable(path: Path, found: str) -> EngineError:
    return EngineError(
        f"loading the speech detector {path}: found {found}, expected the network of silero-vad "
        "6.2; install it (pip install 'silero-vad>=6.2.3,<7') or set extract.speech_detection: none"
    )
