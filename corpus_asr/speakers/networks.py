"""Configurable speaker networks, and detection of overlapping speech.

In: samples of a part. Out: time spans. A segmentation network labels each frame of a window with
the active ones of three speakers; identities are ignored, since numbering differs by window.
Supported are ONNX networks that take (batch, 1, sample) and return (batch, frame, 3), a probability
per speaker, like pyannote/segmentation, or (batch, frame, 7), a log probability per set of at most
two speakers, like pyannote/segmentation-3.0. Does not import torch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32, Float64
from corpus_asr.audio.onnx_session import session_of
from corpus_asr.errors import CheckpointError
from corpus_asr.storage.model_files import fetch_onnx
from corpus_asr.units import SAMPLE_RATE_HZ

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
_BATCH_WINDOWS = 8


def unfit(path: Path, found: str, expected: str, advice: str) -> CheckpointError:
    """Return the error for a network with unsupported inputs or outputs."""
    return CheckpointError(
        f"loading the speaker model {path}: found {found}, expected {expected}; export such a "
        f"network, or {advice}"
    )


class OverlapDetector:
    """Detects overlapping speech; RTFx about 170 on one core.

    Raises:
        CheckpointError: the network cannot be fetched or read, or has unsupported tensors.
    """

    def __init__(self, model: str) -> None:
        path = fetch_onnx(model)
        self._session = session_of(path, what="speaker model")
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
        for first in range(0, len(starts), _BATCH_WINDOWS):
            batch = starts[first : first + _BATCH_WINDOWS]
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
