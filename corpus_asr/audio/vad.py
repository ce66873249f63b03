"""Voice activity detection: samples to probabilities per 32 ms, these to spans of speech.

The probabilities are Silero's, whose weights are packaged, computed in numpy.
ONNX Runtime computes the convolutions of each step separately, with matrices of one to four
columns; here the steps of a block are the rows of one product, which is three times as fast.
Batches of recordings would speed up only the recurrent layer, a third of the remaining time: each
of its steps reads all of its weights.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from corpus_asr.array_types import Bool, Float32
from corpus_asr.config.decoding import AudioSettings
from corpus_asr.units import SAMPLE_RATE_HZ

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

_STRIDES = {"encoder.0": 1, "encoder.1": 2, "encoder.2": 2, "encoder.3": 1}
_WEIGHTS = Path(__file__).parent.parent / "pretrained" / "silero-vad" / "model.safetensors"

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
        self._network = _network()
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
        basis = tensors["stft.forward_basis_buffer"]
        half = basis[:, 0, 1 : _HALF_FRAME + 1].T.copy()  # (sample, bin)
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
        self._input_weights = (tensors["lstm.weight_ih"][order] * halves).T.copy()  # (width, gate)
        state_weights = tensors["lstm.weight_hh"][order]  # (gate, width)
        self._state_weights = state_weights * halves * np.float32(0.5)
        biases = tensors["lstm.bias"].reshape(2, -1)[:, order]
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


@cache
def _network() -> _Network:
    """Load the network; the detectors of all channels share its weights."""
    return _Network(load_file(_WEIGHTS))


# Difference between start and end thresholds; the latter is above 0, which no probability is below
# (`silero_vad/utils_vad.py` get_speech_timestamps).
HYSTERESIS = 0.15
LEAST_NEGATIVE_THRESHOLD = 0.01
# A run truncated by the recording's end would have been longer: with 250 ms here, one in ten spoken
# digits that fill their file would be lost. Runs below 100 ms contain no word.
MIN_SPEECH_AT_END_S = 0.1

# Scored again: pauses of at least this length, and audio with a lower peak.
PAUSE_S = 1.0
QUIET_PEAK = 0.06
LEVEL_REACH_S = 3.0  # range in which a click reduces the gain
LEVEL_TARGET = 0.5  # peak
# Minimum peak of speech: a third of the smallest 16-bit step.
QUIETEST_PEAK = 1e-5
PIECE_STEPS = 15 * BLOCK_STEPS  # 30.72 s at a time; bounds memory
# Silence around a piece: without it, a word that fills its file is missed.
LEAD_STEPS = 16  # 0.5 s
# Not used within longer audio, where an onset of noise or hum looks like speech for a third of a
# second. The preceding audio is scored instead, or the reversed beginning of the piece.
LONG_STEPS = 5 * SAMPLE_RATE_HZ // STEP_SAMPLES
WARM_UP_STEPS = 32  # 1 s
# Minimum probability of runs found only at an even level: crowd noise reaches 0.74.
SURE_AT_EVEN_LEVEL = 0.8

StepRun = tuple[int, int]
SampleSpan = tuple[int, int]

_DEFAULTS = AudioSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechCriteria:
    """Criteria for speech, applied to the probabilities of steps: `extract.vad_...`."""

    threshold: float = _DEFAULTS.vad_threshold
    """Probability at which speech starts; it may end below `negative_threshold`."""
    min_speech_s: float = _DEFAULTS.vad_min_speech_s
    """Maximum length of dropped runs: a tone's onset may look like speech for 160 ms."""
    min_silence_s: float = _DEFAULTS.vad_min_silence_s
    """Maximum gap between merged runs. In quiet speech, probabilities fluctuate, and with 0.4 s of
    padding on both sides such runs would become one span anyway."""
    pad_s: float = _DEFAULTS.vad_pad_s
    """Seconds of audio kept before and after a run."""
    min_speech_at_end_s: float = MIN_SPEECH_AT_END_S
    """`min_speech_s` for a run that reaches the recording's end; the smaller one applies."""

    @property
    def negative_threshold(self) -> float:
        """Probability below which speech may have ended."""
        return max(self.threshold - HYSTERESIS, LEAST_NEGATIVE_THRESHOLD)


DEFAULT_CRITERIA = SpeechCriteria()


def speech_runs(
    probabilities: Probabilities, criteria: SpeechCriteria, *, running: bool = False
) -> tuple[list[StepRun], bool]:
    """Return runs of speech, in steps, and whether speech continues after the last step.

    Speech starts at a step that reaches the threshold, and ends with the last step before
    `min_silence_s` without reaching it, counted from the first step below the negative threshold.

    Source: the state machine of `silero_vad/utils_vad.py` get_speech_timestamps_from_probs.
    """
    threshold, negative_threshold = criteria.threshold, criteria.negative_threshold
    min_silence_steps = criteria.min_silence_s * SAMPLE_RATE_HZ / STEP_SAMPLES
    runs: list[StepRun] = []
    start: int | None = 0 if running else None
    silent_from: int | None = None
    for step, probability in enumerate(probabilities.tolist()):
        if probability >= threshold:
            silent_from = None
            if start is None:
                start = step
        elif probability < negative_threshold and start is not None:
            silent_from = step if silent_from is None else silent_from
            if step - silent_from >= min_silence_steps:
                runs.append((start, silent_from))
                start = silent_from = None
    if start is None:
        return runs, False
    return [*runs, (start, len(probabilities))], True


def speech_spans(
    probabilities: Probabilities,
    criteria: SpeechCriteria,
    *,
    num_samples: int,
    running: bool = False,
    goes_on: bool = False,
) -> list[SampleSpan]:
    """Convert probabilities to padded, disjoint spans of speech, in samples.

    Each run is padded by `pad_s` on both sides; overlapping spans are merged. Runs no longer than
    `min_speech_s` are dropped (`min_speech_at_end_s` for one that reaches the end), unless samples
    follow it (`goes_on`) or speech was running before the first step. See also `speech_runs`.
    """
    runs, still_running = speech_runs(probabilities, criteria, running=running)
    pad_samples = round(criteria.pad_s * SAMPLE_RATE_HZ)
    min_at_end_s = min(criteria.min_speech_at_end_s, criteria.min_speech_s)
    spans: list[SampleSpan] = []
    for index, (first, last) in enumerate(runs):
        start, end = first * STEP_SAMPLES, min(last * STEP_SAMPLES, num_samples)
        at_end = still_running and index == len(runs) - 1
        if (running and first == 0) or (goes_on and at_end):
            min_s = 0.0  # a fragment of a run
        else:
            min_s = min_at_end_s if at_end else criteria.min_speech_s
        if end - start <= min_s * SAMPLE_RATE_HZ:
            continue
        start, end = max(0, start - pad_samples), min(num_samples, end + pad_samples)
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def score_again(
    detector: SileroDetector,
    samples: Samples,
    probabilities: Probabilities,
    criteria: SpeechCriteria,
    *,
    running: bool = False,
    goes_on: bool = False,
) -> Probabilities:
    """Raise the probabilities of quiet speech.

    The network requires speech within about 20 dB of full scale. Quieter audio, and pauses without
    a span (everything, if there is no span), are scored again at an even level; the maximum
    probability counts. In recordings of ordinary level this is a few percent of the audio.
    """
    spans = speech_spans(
        probabilities, criteria, num_samples=samples.size, running=running, goes_on=goes_on
    )
    pause_samples = PAUSE_S * SAMPLE_RATE_HZ if spans else 0
    doubtful = _loudest_near(samples) < QUIET_PEAK  # (step,)
    for start, end in _between(spans, samples.size):
        if end - start >= pause_samples:
            doubtful[math.ceil(start / STEP_SAMPLES) : math.ceil(end / STEP_SAMPLES)] = True
    raised = probabilities.copy()
    for first, last in true_runs(doubtful):
        for start in range(first, last, PIECE_STEPS):
            steps = slice(start, min(start + PIECE_STEPS, last))
            num_before = min(WARM_UP_STEPS, start - first)
            piece = samples[(start - num_before) * STEP_SAMPLES : steps.stop * STEP_SAMPLES]
            mirrored = WARM_UP_STEPS if num_before == 0 and last - first >= LONG_STEPS else 0
            scores = _score_raised(detector, piece, mirrored_steps=mirrored)
            raised[steps] = np.maximum(raised[steps], _sure(scores, criteria)[num_before:])
    return raised


def _sure(probabilities: Probabilities, criteria: SpeechCriteria) -> Probabilities:
    kept = probabilities.copy()
    for first, last in speech_runs(probabilities, criteria)[0]:
        if probabilities[first:last].max() < SURE_AT_EVEN_LEVEL:
            kept[first:last] = 0.0
    return kept


def true_runs(mask: Bool[np.ndarray, " step"]) -> list[StepRun]:
    """Return the true runs of a mask, as half-open intervals."""
    bounded = np.concatenate([[False], mask, [False]])
    borders = np.flatnonzero(bounded[1:] != bounded[:-1]).tolist()  # start, end, next start...
    return list(zip(borders[::2], borders[1::2], strict=True))


def _between(spans: list[SampleSpan], num_samples: int) -> list[SampleSpan]:
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), num_samples]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def _score_raised(
    detector: SileroDetector, samples: Samples, *, mirrored_steps: int
) -> Probabilities:
    num_steps = -(-samples.size // STEP_SAMPLES)
    centred = samples - samples.mean()
    if np.abs(centred).max() < QUIETEST_PEAK:
        return np.zeros(num_steps, dtype=np.float32)
    even = even_level(centred)
    silence = np.zeros(LEAD_STEPS * STEP_SAMPLES, dtype=np.float32)
    lead = even[: mirrored_steps * STEP_SAMPLES][::-1] if mirrored_steps else silence
    scores = detector.score(np.concatenate([lead, even, silence]))
    lead_steps = lead.size // STEP_SAMPLES
    return scores[lead_steps : lead_steps + num_steps]


def _loudest_near(samples: Samples) -> Probabilities:
    starts = np.arange(0, samples.size, STEP_SAMPLES)
    peaks = np.maximum(np.maximum.reduceat(samples, starts), -np.minimum.reduceat(samples, starts))
    reach = round(LEVEL_REACH_S * SAMPLE_RATE_HZ / STEP_SAMPLES)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(peaks, reach), 2 * reach + 1)
    loudest: Probabilities = near.max(axis=1)
    return loudest


def even_level(samples: Samples) -> Samples:
    """Scale so that the peak within `LEVEL_REACH_S` of any step is `LEVEL_TARGET`.

    The gain is limited by `QUIETEST_PEAK`, and no sample exceeds `LEVEL_TARGET`.
    """
    gains = np.float32(LEVEL_TARGET) / np.maximum(_loudest_near(samples), np.float32(QUIETEST_PEAK))
    # Gains are interpolated between step borders, which have the smaller neighboring gain.
    borders = np.minimum(np.append(gains, gains[-1:]), np.append(gains[:1], gains))
    ramp = np.linspace(0.0, 1.0, STEP_SAMPLES, endpoint=False, dtype=np.float32)
    steps = in_steps(samples)
    steps *= borders[:-1, None] * (1 - ramp) + borders[1:, None] * ramp
    return steps.reshape(-1)[: samples.size]
