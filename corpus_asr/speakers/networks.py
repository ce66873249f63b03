"""Embeddings of voices by a network in ONNX: windows of speech in, one vector per window out.

Any network does that takes (batch, frame, 80) log mel filter banks, as the packaged CAM++ and the
models of WeSpeaker and 3D-Speaker, and gives (batch, width).

Imports no torch: it runs where audio is decoded.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from corpus_asr.array_types import Float32, Float64
from corpus_asr.config.extraction import PACKAGED_ENCODER
from corpus_asr.errors import CheckpointError
from corpus_asr.features.fbank import kaldi_fbank
from corpus_asr.speakers.turns import SpeechWindows
from corpus_asr.storage.model_files import fetch_onnx
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
SampleSpan = tuple[int, int]

# Length of windows: of 1.0 to 3.0 s, this and longer ones tell voices apart about as well.
WINDOW_FRAMES = 160  # 1.6 s
# Two windows may leave out one between them if their cosine is higher: one voice goes on.
SAME_ABOVE = 0.6
# Another window is taken across the border of two whose cosine is lower: the voice may change.
CHANGED_BELOW = 0.4
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
    # Kept per input shape, and windows have many lengths.
    options.enable_mem_pattern = False
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
    """Computes the embeddings of windows of speech; RTFx about 150 on one core.

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

        Windows touch within a span, and spans of less than 0.3 s have none.
        """
        windows = [(np.zeros((0, 2)), np.zeros((0, self.width), dtype=np.float32))]
        windows += [self._windows(samples, span) for span in speech if _is_enough(span)]
        at, vectors = (np.concatenate(column) for column in zip(*windows, strict=True))
        has_voice = vectors.any(axis=1)
        return SpeechWindows(
            start_s=at[has_voice, 0] / SAMPLE_RATE_HZ,
            end_s=at[has_voice, 1] / SAMPLE_RATE_HZ,
            embeddings=vectors[has_voice].astype(np.float16),
        )

    def _windows(
        self, samples: Samples, span: SampleSpan
    ) -> tuple[Float64[np.ndarray, "window two"], Float32[np.ndarray, "window width"]]:
        """Return borders and embeddings of a span's windows: few where one voice goes on.

        An embedding is that of the middle of its window.
        """
        features = kaldi_fbank(samples[slice(*span)], num_mel_bins=FBANK_MELS)
        number = max(1, round(len(features) / WINDOW_FRAMES))
        size = len(features) // number
        firsts = np.linspace(0, len(features) - size, number).round().astype(int).tolist()
        waiting = sorted({*firsts[::2], firsts[-1]})
        vectors: dict[int, Float32[np.ndarray, " width"]] = {}
        while waiting:
            cuts = (features[first : first + size] for first in waiting)
            vectors.update(zip(waiting, self._embedded(cuts), strict=True))
            waiting = [
                (first + second) // 2
                for first, second in pairwise(sorted(vectors))
                if second - first > 1.5 * size * _spacing(float(vectors[first] @ vectors[second]))
            ]
        firsts = sorted(vectors)
        middles = [(first + second + size) / 2 for first, second in pairwise(firsts)]
        borders = [span[0], *(span[0] + middle * HOP_SAMPLES for middle in middles), span[1]]
        at = np.array([*pairwise(borders)], dtype=np.float64)
        return at, np.stack([vectors[first] for first in firsts])

    def _embedded(
        self, features: Iterator[Float32[np.ndarray, "frame mel"]]
    ) -> Iterator[Float32[np.ndarray, " width"]]:
        """Yield embeddings of length 1; zeros for those without a finite length."""
        while rows := list(islice(features, self._batch)):
            # As these networks were trained.
            rows = [row - row.mean(axis=0) for row in rows]
            filled = [*rows, *rows[-1:] * (self._batch - len(rows) if self._batch_is_fixed else 0)]
            for vector in self._run(np.stack(filled))[: len(rows)]:
                length = np.linalg.norm(vector)
                has_voice = np.isfinite(length) and length > 0.0
                yield vector / length if has_voice else np.zeros_like(vector)

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


def _spacing(cosine: float) -> float:
    """Return how far apart two windows are in the end, in window lengths."""
    return 2.0 if cosine > SAME_ABOVE else 0.5 if cosine < CHANGED_BELOW else 1.0


def _is_enough(span: SampleSpan) -> bool:
    return span[1] - span[0] >= LEAST_FRAMES * HOP_SAMPLES


def unpadded(span: SampleSpan, pad_s: float, num_samples: int) -> SampleSpan:
    """Return a span of speech without most of its padding, which is cut at part boundaries."""
    removed = round(max(0.0, pad_s - KEPT_PAD_S) * SAMPLE_RATE_HZ)
    start = span[0] + removed if span[0] > 0 else 0
    end = span[1] - removed if span[1] < num_samples else num_samples
    # Parts usually start in silence: the first span's padding is as long as that allows.
    return (start, end) if _is_enough((start, end)) else span
