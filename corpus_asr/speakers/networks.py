"""Networks of speakers in ONNX: embeddings of voices, and detection of overlapping speech.

Embeddings: windows of detected speech in, one vector per window out. Any network does that takes
(batch, frame, 40) mel power as the packaged GE2E encoder, or (batch, frame, 80) filter banks as the
models of WeSpeaker and 3D-Speaker, and gives (batch, width).

Overlap: samples of a part in, time spans out. A segmentation network labels each frame of a window
with the active ones of three speakers; identities are ignored, since numbering differs by window.
Supported are networks that take (batch, 1, sample) and return (batch, frame, 3), a probability per
speaker, like pyannote/segmentation, or (batch, frame, 7), a log probability per set of at most two
speakers, like pyannote/segmentation-3.0.

Imports no torch: it runs where audio is decoded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from corpus_asr.array_types import Float32, Float64
from corpus_asr.errors import CheckpointError
from corpus_asr.features.fbank import kaldi_fbank
from corpus_asr.features.mel import mel_filters, power_spectra
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.storage.model_files import fetch_onnx
from corpus_asr.units import FFT_SAMPLES, HOP_SAMPLES, SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
SampleSpan = tuple[int, int]

# Threshold of the probability of overlap: fitted on conversations of 41 speakers. Lower values
# detect more, but with decreasing precision.
OVERLAPPED_ABOVE = 0.35
# Shorter overlaps are within the error of turn boundaries.
LEAST_OVERLAP_S = 0.1
# Window length by number of classes, as in training.
_WINDOW_S = {3: 5, 7: 10}
_SETS_OF_TWO = slice(4, 7)  # silence, three of one speaker, three of two
_STEP_SAMPLES = SAMPLE_RATE_HZ // 50  # resolution at which windows are averaged
_OVERLAP_BATCH = 8

PACKAGED_ENCODER = "ge2e"

# Window length; GE2E was trained on this length (Resemblyzer, `hparams.py` partials_n_frames).
WINDOW_FRAMES = 160  # 1.6 s
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
# Halving the step again doubles the work; a change of speaker is found to half of it.
STEP_FRAMES = 75
# Less speech identifies no speaker: assign it by the turns around it.
LEAST_FRAMES = 30
# Padding to keep around detected speech, since detection seldom finds all of it.
KEPT_PAD_S = 0.05

# Larger batches leave a core's cache; smaller ones pay for each call.
BATCH_WINDOWS = 8
# Level of each window: mel power, unlike its logarithm, depends on it, and a voice is no other one
# for being louder. Resemblyzer raises whole recordings to -30 dBFS; of -35 to -20 dBFS for each
# window, -25 told the speakers of 18 conversations apart best, a little better than levels left as
# they were.
GE2E_RMS = 10 ** (-25 / 20)
_QUIETEST_RMS = 1e-6
GE2E_MELS = 40
FBANK_MELS = 80


def unfit(path: Path, found: str, expected: str, advice: str) -> CheckpointError:
    """Return the error for a network with unsupported inputs or outputs."""
    return CheckpointError(
        f"loading the speaker model {path}: found {found}, expected {expected}; export such a "
        f"network, or {advice}"
    )


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Load a speaker network for one thread.

    Raises:
        CheckpointError: it cannot be read.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exception classes are not public
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"loading the speaker model {path}: {first_line}, expected an ONNX network; replace "
            "the file"
        ) from error


class OverlapDetector:
    """Detects overlapping speech; RTFx about 170 on one core.

    Raises:
        CheckpointError: the network cannot be fetched or read, or has unsupported tensors.
    """

    def __init__(self, model: str) -> None:
        path = fetch_onnx(model)
        self._session = session_of(path)
        self._input = self._session.get_inputs()[0].name
        num_classes, problem = 3, ""
        for classes, window_s in _WINDOW_S.items():
            noise = np.random.default_rng(0).random((1, window_s * SAMPLE_RATE_HZ))
            try:
                values = self._run(noise.astype(np.float32))
            except Exception as error:
                problem = f"an error for an input {noise.shape}: {str(error).partition(chr(10))[0]}"
                continue
            if values.ndim == 3 and values.shape[2] == classes:
                num_classes, problem = classes, ""
                break
            problem = f"an output {values.shape}"
        if problem:
            expected = "an input (batch, 1, sample) and an output (batch, frame, 3 or 7)"
            raise unfit(path, problem, expected, "remove speakers.segmentation")
        self._window_samples = _WINDOW_S[num_classes] * SAMPLE_RATE_HZ

    def __call__(
        self, samples: Samples, speech: Sequence[SampleSpan]
    ) -> Float64[np.ndarray, "span two"]:
        """Return the start and end of each span, in seconds from the part's start."""
        is_overlapped = np.concatenate(
            [[False], self._chances(samples, speech) > OVERLAPPED_ABOVE, [False]]
        )
        borders = (
            np.flatnonzero(is_overlapped[1:] != is_overlapped[:-1]) * _STEP_SAMPLES / SAMPLE_RATE_HZ
        )
        spans: Float64[np.ndarray, "span two"] = borders.reshape(-1, 2)
        long: Float64[np.ndarray, "span two"] = spans[np.diff(spans)[:, 0] >= LEAST_OVERLAP_S]
        return long

    def _chances(
        self, samples: Samples, speech: Sequence[SampleSpan]
    ) -> Float32[np.ndarray, " step"]:
        """Return the probability of overlap every 20 ms, the mean of two windows."""
        size, hop = self._window_samples, self._window_samples // 2
        padded = np.pad(samples, (0, -len(samples) % hop + hop))
        starts = [
            start
            for start in range(0, len(padded) - hop, hop)
            if any(first < start + size and last > start for first, last in speech)
        ]
        sums, counts = np.zeros((2, len(padded) // _STEP_SAMPLES), dtype=np.float32)
        steps = np.arange(size // _STEP_SAMPLES) + 0.5
        for first in range(0, len(starts), _OVERLAP_BATCH):
            batch = starts[first : first + _OVERLAP_BATCH]
            values = self._run(np.stack([padded[start : start + size] for start in batch]))
            both = self._of_two(values)
            frames = (np.arange(both.shape[1]) + 0.5) * (len(steps) / both.shape[1])
            for start, row in zip(batch, both, strict=True):
                at = start // _STEP_SAMPLES
                sums[at : at + len(steps)] += np.interp(steps, frames, row)
                counts[at : at + len(steps)] += 1
        chances: Float32[np.ndarray, " step"] = sums / np.maximum(counts, 1)
        return chances

    def _of_two(
        self, values: Float32[np.ndarray, "window frame class"]
    ) -> Float32[np.ndarray, "window frame"]:
        both: Float32[np.ndarray, "window frame"]
        if values.shape[2] == 3:
            both = np.sort(values, axis=2)[:, :, 1]
        else:
            both = np.exp(values[:, :, _SETS_OF_TWO]).sum(axis=2)
        return both

    def _run(self, windows: Float32[np.ndarray, "window sample"]) -> np.ndarray:
        values: np.ndarray = self._session.run(None, {self._input: windows[:, None]})[0]
        return values


class SpeakerEmbedder:
    """Computes the embeddings of windows of speech; about 180 times real time on one core.

    Args:
        model: an .onnx file, a folder or repository of the hub with one, or `OWNER/NAME/FILE.onnx`;
            None is the packaged encoder.

    Raises:
        CheckpointError: it cannot be had or read, or takes or gives something else.
    """

    def __init__(self, model: str | None = None) -> None:
        path = fetch_onnx(model or PACKAGED_ENCODER)
        self._session = session_of(path)
        inputs = self._session.get_inputs()
        self._num_mels = _mels_of(
            [(model_input.name, model_input.shape, model_input.type) for model_input in inputs],
            path,
        )
        self._input = inputs[0].name
        self._batch_is_fixed = isinstance(inputs[0].shape[0], int)
        self._batch = inputs[0].shape[0] if self._batch_is_fixed else BATCH_WINDOWS
        self.width = self._probe(path)

    def __call__(
        self, samples: Samples, speech: Sequence[SampleSpan] | None, *, pad_s: float = 0.0
    ) -> SpeechWindows:
        """Return the windows of a part with embeddings; times are in seconds from its start.

        `speech` has spans of `samples`, padded by `pad_s`; None means all samples.
        """
        spans = [(0, samples.size)] if speech is None else speech
        windows = [
            window for span in spans for window in windows_of(unpadded(span, pad_s, samples.size))
        ]
        values = self._embedded(samples, windows)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        # Digital silence has no voice.
        has_voice = np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0.0)
        at = np.array(windows, dtype=np.float64).reshape(-1, 2)[has_voice] / SAMPLE_RATE_HZ
        return SpeechWindows(
            start_s=at[:, 0],
            end_s=at[:, 1],
            embeddings=(values[has_voice] / lengths[has_voice]).astype(np.float16),
        )

    def _embedded(
        self, samples: Samples, windows: Sequence[SampleSpan]
    ) -> Float32[np.ndarray, "window width"]:
        if not windows:
            return np.zeros((0, self.width), dtype=np.float32)
        cut = _FRONT_ENDS[self._num_mels](samples)
        embeddings = []
        for first in range(0, len(windows), self._batch):
            rows = [cut(start, end) for start, end in windows[first : first + self._batch]]
            filled = rows + rows[-1:] * (self._batch - len(rows) if self._batch_is_fixed else 0)
            embeddings.append(self._run(np.stack(filled))[: len(rows)])
        return np.concatenate(embeddings)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        values: np.ndarray = self._session.run(None, {self._input: batch})[0]
        return values

    def _probe(self, path: Path) -> int:
        shape = (self._batch, WINDOW_FRAMES, self._num_mels)
        noise = np.random.default_rng(0).random(shape, dtype=np.float32)
        try:
            values: Any = self._run(noise)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise _unfit(path, f"an error for an input {noise.shape}: {first_line}") from error
        if np.ndim(values) != 2 or len(values) != self._batch:
            raise _unfit(path, f"an output {np.shape(values)} for an input {noise.shape}")
        return int(values.shape[1])


def _mels_of(inputs: Sequence[tuple[str, list[Any], str]], path: Path) -> int:
    if len(inputs) == 1 and inputs[0][2] == "tensor(float)":
        shape = inputs[0][1]
        if len(shape) == 3 and not isinstance(shape[1], int) and shape[2] in _FRONT_ENDS:
            return int(shape[2])
    shapes = ", ".join(f"{name} {shape} of {kind}" for name, shape, kind in inputs) or "none"
    raise _unfit(path, f"the inputs {shapes}")


def _unfit(path: Path, found: str) -> CheckpointError:
    expected = (
        f"one input of floats, (batch, frame, {FBANK_MELS}) or (batch, frame, {GE2E_MELS}), of any "
        "length, and an output (batch, width)"
    )
    return unfit(path, found, expected, "remove the model to use the packaged one")


def _repeated(values: np.ndarray, num_rows: int) -> np.ndarray:
    # Recurrent networks do not support padding, and silence has no voice.
    return values[np.arange(num_rows) % len(values)]


def _of_fbank(samples: Samples) -> Callable[[int, int], Float32[np.ndarray, "frame mel"]]:
    def cut(start: int, end: int) -> Float32[np.ndarray, "frame mel"]:
        values = kaldi_fbank(samples[start:end], num_mel_bins=FBANK_MELS)
        filled = _repeated(values, WINDOW_FRAMES)
        centered: Float32[np.ndarray, "frame mel"] = filled - filled.mean(axis=0)
        return centered  # as these networks were trained

    return cut


def _of_mel(samples: Samples) -> Callable[[int, int], Float32[np.ndarray, "frame mel"]]:
    """Source: Resemblyzer, `audio.py` wav_to_mel_spectrogram; the level is ours."""
    filters = mel_filters(GE2E_MELS).T  # (bin, mel)
    # What ends within a frame is still a frame.
    padded = np.pad(samples, (0, FFT_SAMPLES))
    mel = np.concatenate([power @ filters for power in power_spectra(padded)])  # (frame, mel)
    mel = mel.astype(np.float32, copy=False)  # NumPy 1 transforms in float64

    def cut(start: int, end: int) -> Float32[np.ndarray, "frame mel"]:
        first = start // HOP_SAMPLES
        rms = max(float(np.sqrt(np.square(samples[start:end]).mean())), _QUIETEST_RMS)
        level = np.float32((GE2E_RMS / rms) ** 2)
        return level * _repeated(mel[first : max(first + 1, end // HOP_SAMPLES)], WINDOW_FRAMES)

    return cut


_FRONT_ENDS = {GE2E_MELS: _of_mel, FBANK_MELS: _of_fbank}


def windows_of(span: SampleSpan) -> list[SampleSpan]:
    """Split a span into windows; the last one ends with it, and a short span is one window."""
    first, last = span
    if last - first < LEAST_FRAMES * HOP_SAMPLES:
        return []
    if last - first <= WINDOW_SAMPLES:
        return [span]
    step = STEP_FRAMES * HOP_SAMPLES
    starts = [*range(first, last - WINDOW_SAMPLES + 1, step)]
    if last - (starts[-1] + WINDOW_SAMPLES) >= step // 3:
        starts.append(last - WINDOW_SAMPLES)
    windows = [(start, start + WINDOW_SAMPLES) for start in starts]
    return [*windows[:-1], (windows[-1][0], last)]


def unpadded(span: SampleSpan, pad_s: float, num_samples: int) -> SampleSpan:
    """Return a span of speech without most of its padding, which is cut at part boundaries."""
    removed = round(max(0.0, pad_s - KEPT_PAD_S) * SAMPLE_RATE_HZ)
    start = span[0] + removed if span[0] > 0 else 0
    end = span[1] - removed if span[1] < num_samples else num_samples
    # Parts usually start in silence: the first span's padding is as long as that allows.
    return (start, end) if end - start >= LEAST_FRAMES * HOP_SAMPLES else span
