"""One recording as the windows a pipeline decodes: whole, or cut into overlapping chunks.

In: samples and a feature extractor. Out: features window by window, with the overlap of each. Knows
no model and no text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from corpus_asr.models.speech_input import Speech
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor

# A sixth of a chunk is context on either side unless the caller says otherwise.
_STRIDE_SHARE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Features of a stretch of a recording."""

    features: Float[Tensor, "one mel frame"]
    mask: Int[Tensor, "one frame"]
    """1 where there is sound."""
    is_last: bool
    stride: tuple[int, int, int] | None
    """Samples of the chunk, and those of context on its left and right; None for no chunking."""
    extra: dict[str, Any]
    """What the caller wants back with the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How recordings are cut.

    Args:
        length_s: seconds of a chunk; None or 0 takes recordings whole.
        stride_s: seconds of context on both sides, or on left and right; None is a sixth.

    Raises:
        ValueError: the context leaves nothing of a chunk, or a length is negative.
    """

    length_s: float | None = None
    stride_s: float | tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.length_s:
            return
        left, right = self.strides_s
        if self.length_s < 0 or min(left, right) < 0 or left + right >= self.length_s:
            raise ValueError(
                f"chunking audio: found chunk_length_s {self.length_s} with stride_length_s "
                f"({left}, {right}), expected a chunk longer than both together, and none negative"
            )

    @property
    def strides_s(self) -> tuple[float, float]:
        """Seconds of context on left and right."""
        stride = self.stride_s
        if stride is None:
            stride = (self.length_s or 0.0) / _STRIDE_SHARE
        if isinstance(stride, int | float):
            return stride, stride
        left, right = stride
        return left, right

    def ranges(self, num_samples: int, *, rate_hz: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield start, end and context on left and right of each chunk, in samples.

        Source: `transformers.pipelines.automatic_speech_recognition.chunk_iter`.
        """
        assert self.length_s, "only asked for when there is a length"
        length = round(self.length_s * rate_hz)
        left, right = (round(stride * rate_hz) for stride in self.strides_s)
        step = max(1, length - left - right)
        for start in range(0, num_samples, step):
            end = min(start + length, num_samples)
            first, last = start == 0, start + length >= num_samples
            yield start, end, 0 if first else left, 0 if last else right
            if last:
                return


def chunks_of(
    speech: Speech,
    extractor: WhisperFeatureExtractor,
    *,
    chunking: Chunking,
    dtype: torch.dtype | None,
) -> Iterator[Chunk]:
    """Compute the features of a recording, chunk by chunk.

    Args:
        speech: the recording.
        extractor: of the checkpoint.
        chunking: how it is cut; a recording that is not cut but longer than a window is one chunk
            of all its frames.
        dtype: of the features; None keeps float32.

    Raises:
        ValueError: the recording holds no samples, or none that are numbers.
    """
    samples, rate_hz = speech.samples, extractor.sampling_rate
    if chunking.length_s:
        ranges = list(chunking.ranges(samples.size, rate_hz=rate_hz))
        for i, (start, end, left, right) in enumerate(ranges):
            features, mask = _features(samples[start:end], extractor, dtype=dtype, whole=False)
            yield Chunk(
                features=features,
                mask=mask,
                is_last=i == len(ranges) - 1,
                stride=(end - start, left, right),
                extra=speech.extra,
            )
        return
    features, mask = _features(samples, extractor, dtype=dtype, whole=True)
    stride = None if speech.stride is None else (samples.size, *speech.stride)
    yield Chunk(features=features, mask=mask, is_last=True, stride=stride, extra=speech.extra)


def _features(
    samples: Float32[Any, " sample"],
    extractor: WhisperFeatureExtractor,
    *,
    dtype: torch.dtype | None,
    whole: bool,
) -> tuple[Float[Tensor, "one mel frame"], Int[Tensor, "one frame"]]:
    options: dict[str, Any] = {}
    if whole and samples.size > extractor.n_samples:
        options = {"truncation": False, "padding": "longest"}
    batch = extractor(
        samples,
        sampling_rate=extractor.sampling_rate,
        return_tensors="pt",
        return_attention_mask=True,
        **options,
    )
    return batch.input_features.to(dtype=dtype), batch.attention_mask
