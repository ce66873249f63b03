"""Embeddings of voices by a network in ONNX: windows of speech in, one vector per window out.

Any network does that takes (batch, frame, 80) log mel filter banks, as the packaged CAM++ and the
models of WeSpeaker and 3D-Speaker, and gives (batch, width).

Imports no torch: it runs where audio is decoded.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from corpus_asr.array_types import Float32
from corpus_asr.config.extraction import PACKAGED_ENCODER
from corpus_asr.errors import CheckpointError
from corpus_asr.features.fbank import kaldi_fbank
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.storage.model_files import fetch_onnx
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
SampleSpan = tuple[int, int]

# Window length: of 1.0 to 3.0 s, this and longer ones tell voices apart about as well.
WINDOW_FRAMES = 160  # 1.6 s
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
# Halving the step again doubles the work; without segmentation, a change of speaker is found to
# half of it.
STEP_FRAMES = 75
# Less speech identifies no speaker: assign it by the turns around it.
LEAST_FRAMES = 30
# Padding to keep around detected speech, since detection seldom finds all of it.
KEPT_PAD_S = 0.05

# Larger batches leave a core's cache; smaller ones pay for each call.
BATCH_WINDOWS = 8
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


class SpeakerEmbedder:
    """Computes the embeddings of windows of speech; about 60 times real time on one core.

    Args:
        model: a packaged network, an .onnx file, a folder or repository of the hub with one, or
            `OWNER/NAME/FILE.onnx`.

    Raises:
        CheckpointError: it cannot be had or read, or takes or gives something else.
    """

    def __init__(self, model: str = PACKAGED_ENCODER) -> None:
        path = fetch_onnx(model)
        self._session = session_of(path)
        inputs = self._session.get_inputs()
        _check_inputs([(value.name, value.shape, value.type) for value in inputs], path)
        self._input = inputs[0].name
        self._batch_is_fixed = isinstance(inputs[0].shape[0], int)
        self._batch = inputs[0].shape[0] if self._batch_is_fixed else BATCH_WINDOWS
        self.width = self._probe(path)

    def __call__(self, samples: Samples, speech: Sequence[SampleSpan]) -> SpeechWindows:
        """Return windows of the spans of `samples`; times are in seconds from the first sample.

        Windows do not cross the ends of spans, and spans of less than 0.3 s have none.
        """
        windows = [window for span in speech for window in windows_of(span)]
        features = (cut for span in speech for cut in _features(samples, span, windows_of(span)))
        values = self._embedded(features)
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
        self, features: Iterator[Float32[np.ndarray, "frame mel"]]
    ) -> Float32[np.ndarray, "window width"]:
        embeddings = [np.zeros((0, self.width), dtype=np.float32)]
        while rows := list(islice(features, self._batch)):
            filled = [*rows, *rows[-1:] * (self._batch - len(rows) if self._batch_is_fixed else 0)]
            embeddings.append(self._run(np.stack(filled))[: len(rows)])
        return np.concatenate(embeddings)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        values: np.ndarray = self._session.run(None, {self._input: batch})[0]
        return values

    def _probe(self, path: Path) -> int:
        shape = (self._batch, WINDOW_FRAMES, FBANK_MELS)
        noise = np.random.default_rng(0).random(shape, dtype=np.float32)
        try:
            values: Any = self._run(noise)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise _unfit(path, f"an error for an input {noise.shape}: {first_line}") from error
        if np.ndim(values) != 2 or len(values) != self._batch:
            raise _unfit(path, f"an output {np.shape(values)} for an input {noise.shape}")
        return int(values.shape[1])


def _check_inputs(inputs: Sequence[tuple[str, list[Any], str]], path: Path) -> None:
    if len(inputs) == 1 and inputs[0][2] == "tensor(float)":
        shape = inputs[0][1]
        if len(shape) == 3 and not isinstance(shape[1], int) and shape[2] == FBANK_MELS:
            return
    shapes = ", ".join(f"{name} {shape} of {kind}" for name, shape, kind in inputs) or "none"
    raise _unfit(path, f"the inputs {shapes}")


def _unfit(path: Path, found: str) -> CheckpointError:
    expected = (
        f"one input of floats, (batch, frame, {FBANK_MELS}), of any length, and an output (batch, "
        "width)"
    )
    return unfit(path, found, expected, "remove the model to use the packaged one")


def _features(
    samples: Samples, span: SampleSpan, windows: Sequence[SampleSpan]
) -> Iterator[Float32[np.ndarray, "frame mel"]]:
    """Yield the log mel filter banks of each window of a span."""
    if not windows:
        return
    values = kaldi_fbank(samples[slice(*span)], num_mel_bins=FBANK_MELS)
    for start, _ in windows:
        first = (start - span[0]) // HOP_SAMPLES
        rows = values[first : first + WINDOW_FRAMES]
        # Short windows are repeated: padding would be another sound.
        rows = rows[np.arange(WINDOW_FRAMES) % len(rows)]
        yield rows - rows.mean(axis=0)  # as these networks were trained


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
