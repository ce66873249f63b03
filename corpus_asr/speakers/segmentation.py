"""Segmentation of speech by a network in ONNX: who of a window's speakers is active in each frame.

Samples of a part in; out come pieces in which one person speaks, and spans of overlapping speech.
The network numbers up to three speakers anew in each window. Windows overlap by half: speakers of
two windows are matched where both are, and their probabilities averaged. Numbers go no further:
who a piece is by says its embedding.

Supported are networks that take (batch, 1, sample) and return (batch, frame, 3), a probability per
speaker, like pyannote/segmentation, or (batch, frame, 7), a log probability per set of at most two
speakers, like the packaged pyannote/segmentation-3.0.

Source: Plaquet and Bredin 2023, Powerset multi-class cross entropy loss for neural speaker
diarization.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpus_asr.array_types import Bool, Float32, Int64
from corpus_asr.audio.vad import true_runs
from corpus_asr.config.extraction import PACKAGED_SEGMENTATION
from corpus_asr.speakers.networks import LEAST_FRAMES, Samples, SampleSpan, session_of, unfit
from corpus_asr.storage.model_files import fetch_onnx
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

# Threshold of the probability of overlap, fitted on conversations of 41 speakers.
OVERLAPPED_ABOVE = 0.3
# Threshold of the probability that somebody speaks: below it, the last speaker goes on.
ACTIVE_ABOVE = 0.2
# Shorter overlaps are within the error of turn boundaries.
LEAST_OVERLAP_S = 0.1
# Silence that ends a piece; in a longer one, detected speech is too quiet for this network.
PAUSE_S = (0.4, 1.5)
# Window length by number of classes, as in training.
_WINDOW_S = {3: 5, 7: 10}
_NUM_TRACKS = 3
# Active speakers of each class: silence, three of one speaker, three of two.
_SETS = np.array(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.float32
)
_STEP_SAMPLES = SAMPLE_RATE_HZ // 50  # resolution at which windows are averaged
_BATCH_WINDOWS = 8
_PAUSED, _OVERLAPPED, _NOBODY = -3, -2, -1

Tracks = Float32[np.ndarray, "step track"]


class Segments(NamedTuple):
    """Speech of a part, in samples from its start."""

    pieces: list[SampleSpan]
    """Spans of one speaker without pauses, in order of time; touching pieces differ in speaker."""
    overlaps: list[SampleSpan]
    """Spans of two speakers or more, apart from all pieces."""


class Segmenter:
    """Finds speaker changes and overlapping speech; RTFx about 260 on one core.

    Args:
        model: a packaged network, an .onnx file, a folder or repository of the hub with one, or
            `OWNER/NAME/FILE.onnx`.

    Raises:
        CheckpointError: the network cannot be fetched or read, or has unsupported tensors.
    """

    def __init__(self, model: str = PACKAGED_SEGMENTATION) -> None:
        path = fetch_onnx(model)
        self._session = session_of(path)
        self._input = self._session.get_inputs()[0].name
        self._window_samples = SAMPLE_RATE_HZ * self._window_s(path)

    def __call__(self, samples: Samples, speech: Sequence[SampleSpan]) -> Segments:
        """Return the pieces and overlaps of spans of speech."""
        tracks, both = self._activity(samples, speech)
        is_active = tracks.max(axis=1) > ACTIVE_ABOVE
        talkers = _filled(np.where(is_active, tracks.argmax(axis=1), _NOBODY))
        talkers[_lasting(~is_active, *PAUSE_S)] = _PAUSED
        talkers[_lasting(both > OVERLAPPED_ABOVE, LEAST_OVERLAP_S, np.inf)] = _OVERLAPPED
        segments = Segments([], [])
        for span in speech:
            for start, end, talker in _runs(talkers, span):
                if talker != _PAUSED:
                    chosen = segments.overlaps if talker == _OVERLAPPED else segments.pieces
                    chosen.append((start, end))
        return segments

    def _activity(
        self, samples: Samples, speech: Sequence[SampleSpan]
    ) -> tuple[Tracks, Float32[np.ndarray, " step"]]:
        """Return each track's probability of speech and that of overlap, every 20 ms."""
        size, hop = self._window_samples, self._window_samples // 2
        padded = np.pad(samples, (0, -len(samples) % hop + hop))
        starts = [
            start
            for start in range(0, len(padded) - hop, hop)
            if any(first < start + size and last > start for first, last in speech)
        ]
        steps = np.arange(size // _STEP_SAMPLES) + 0.5
        # The middle of a window is known best.
        weights = np.minimum(steps, len(steps) - steps)[:, None].astype(np.float32)
        sums = np.zeros((len(padded) // _STEP_SAMPLES, _NUM_TRACKS + 1), dtype=np.float32)
        totals = np.zeros((len(sums), 1), dtype=np.float32)
        half = len(steps) // 2
        before, before_at = np.zeros((half, _NUM_TRACKS), dtype=np.float32), -1
        for at, values in self._windows(padded, starts, steps):
            if before_at == at - half:
                values[:, :_NUM_TRACKS] = _matched(values[:, :_NUM_TRACKS], before)
            before, before_at = values[half:, :_NUM_TRACKS], at
            sums[at : at + len(steps)] += weights * values
            totals[at : at + len(steps)] += weights
        means = sums / np.maximum(totals, 1e-6)
        return means[:, :_NUM_TRACKS], means[:, _NUM_TRACKS]

    def _windows(
        self, padded: Samples, starts: Sequence[int], steps: np.ndarray
    ) -> Iterator[tuple[int, Float32[np.ndarray, "step track_and_overlap"]]]:
        """Yield the first step of each window, and its probabilities every 20 ms."""
        for number in range(0, len(starts), _BATCH_WINDOWS):
            batch = starts[number : number + _BATCH_WINDOWS]
            values = self._run(
                np.stack([padded[start : start + self._window_samples] for start in batch])
            )
            frames = (np.arange(values.shape[1]) + 0.5) * (len(steps) / values.shape[1])
            for start, window in zip(batch, _probabilities(values), strict=True):
                columns = [np.interp(steps, frames, column) for column in window.T]
                yield start // _STEP_SAMPLES, np.stack(columns, axis=1).astype(np.float32)

    def _window_s(self, path: Path) -> int:
        problem = ""
        for classes, window_s in _WINDOW_S.items():
            noise = np.random.default_rng(0).random((1, window_s * SAMPLE_RATE_HZ))
            try:
                values = self._run(noise.astype(np.float32))
            except Exception as error:
                problem = f"an error for an input {noise.shape}: {str(error).partition(chr(10))[0]}"
                continue
            if values.ndim == 3 and values.shape[2] == classes:
                return window_s
            problem = f"an output {values.shape}"
        expected = "an input (batch, 1, sample) and an output (batch, frame, 3 or 7)"
        raise unfit(path, problem, expected, "remove speakers.segmentation")

    def _run(self, windows: Float32[np.ndarray, "window sample"]) -> np.ndarray:
        values: np.ndarray = self._session.run(None, {self._input: windows[:, None]})[0]
        return values


def _probabilities(
    values: Float32[np.ndarray, "window frame class"],
) -> Float32[np.ndarray, "window frame track_and_overlap"]:
    if values.shape[2] == _NUM_TRACKS:
        tracks, both = values, np.sort(values, axis=2)[:, :, 1:2]
    else:
        sets = np.exp(values)
        tracks = sets @ _SETS
        both = sets[:, :, _SETS.sum(axis=1) > 1].sum(axis=2, keepdims=True)
    return np.concatenate([tracks, both], axis=2)


def _matched(tracks: Tracks, before: Float32[np.ndarray, "shared track"]) -> Tracks:
    """Return a window's tracks in the order of those of the window before."""
    shared = before.T @ tracks[: len(before)]  # (track before, track)
    orders = permutations(range(_NUM_TRACKS))
    best = max(orders, key=lambda order: shared[range(_NUM_TRACKS), order].sum())
    return tracks[:, best]


def _filled(talkers: Int64[np.ndarray, " step"]) -> Int64[np.ndarray, " step"]:
    """Give steps of nobody to the last speaker before, or else to the first."""
    spoken = np.where(talkers == _NOBODY, -1, np.arange(len(talkers)))
    last = np.maximum.accumulate(spoken)
    first = int((spoken >= 0).argmax())
    return talkers[np.where(last < 0, first, last)]


def _lasting(
    mask: Bool[np.ndarray, " step"], least_s: float, most_s: float
) -> Bool[np.ndarray, " step"]:
    """Return the mask without its shorter and longer runs."""
    kept = np.zeros_like(mask)
    for first, stop in true_runs(mask):
        kept[first:stop] = least_s <= (stop - first) * _STEP_SAMPLES / SAMPLE_RATE_HZ <= most_s
    return kept


def _runs(talkers: Int64[np.ndarray, " step"], span: SampleSpan) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and talker of the runs of a span; the last piece takes in shorter ones."""
    start, end = span
    first, stop = start // _STEP_SAMPLES, -(-end // _STEP_SAMPLES)
    steps = talkers[first:stop]
    borders = first + np.flatnonzero(np.diff(steps)) + 1
    edges = [start, *(borders * _STEP_SAMPLES).tolist(), end]
    waiting: tuple[int, int, int] | None = None
    for begin, finish in pairwise(edges):
        talker = int(talkers[min(begin, end - 1) // _STEP_SAMPLES])
        is_short = finish - begin < LEAST_FRAMES * HOP_SAMPLES
        if waiting and min(talker, waiting[2]) >= _NOBODY:
            if is_short or talker == waiting[2]:
                waiting = (waiting[0], finish, waiting[2])
                continue
            if waiting[1] - waiting[0] < LEAST_FRAMES * HOP_SAMPLES:
                waiting = (waiting[0], finish, talker)
                continue
        if waiting:
            yield waiting
        waiting = (begin, finish, talker)
    if waiting:
        yield waiting
