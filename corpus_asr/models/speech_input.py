"""Recordings as a speech pipeline takes them: read as samples, and cut into chunks of features."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus_asr.array_types import Float, Float32, Int
from corpus_asr.models.feature_extraction import speech_rows
from corpus_asr.models.whisper.processor import WhisperFeatureExtractor
from corpus_asr.units import SAMPLE_RATE_HZ

# More rows than this are samples of (samples, channels), or channels only the caller can mix.
_MAX_CHANNELS = 2
_FULL_SCALE = 32_768  # of int16
# `raw` is transformers' own name, `array` that of data sets.
_ARRAY_KEYS = ("raw", "array")
# A sixth of a chunk is context on either side unless the caller says otherwise.
_STRIDE_SHARE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One recording."""

    samples: Float32[np.ndarray, " sample"]
    """At 16 kHz."""
    stride: tuple[int, int] | None = None
    """Samples at both ends that only give context."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other entries of the dictionary, for the result."""


def load_speech(inputs: Any) -> Speech:
    """Read one recording.

    It is a path or URI (local, http(s), s3, ...); the bytes of a file of any format; an array or
    tensor of samples at 16 kHz, float in -1 to 1 or int16, one row per channel if it has two
    dimensions; a dictionary with
    `raw` or `array`, `sampling_rate` and, if wanted, `stride`; or what has `get_all_samples`, as
    decoders of torchcodec do.

    Raises:
        FetchError: a file cannot be read.
        DecodeError: it holds no usable audio.
    """
    if isinstance(inputs, str | PathLike):
        # Imported here, as the decoder is: a GPU image without them still takes arrays.
        from corpus_asr.storage.stores.filesystem import open_binary

        with open_binary(str(inputs)) as file:
            return Speech(samples=_decoded(file, uri=str(inputs)))
    if isinstance(inputs, bytes | bytearray):
        return Speech(samples=_decoded(io.BytesIO(inputs), uri=f"{len(inputs)} bytes"))
    if hasattr(inputs, "get_all_samples"):
        audio = inputs.get_all_samples()
        inputs = {"array": audio.data, "sampling_rate": audio.sample_rate}
    if isinstance(inputs, Mapping):
        return _from_mapping(dict(inputs))
    return Speech(samples=_mono(inputs))


def _decoded(file: Any, *, uri: str) -> Float32[np.ndarray, " sample"]:
    from corpus_asr.audio.decode import open_audio

    with open_audio(file, uri=uri) as decoder:
        samples: Float32[np.ndarray, " sample"] = np.concatenate(list(decoder), axis=1)[0]
    return samples


def _from_mapping(given: dict[str, Any]) -> Speech:
    key = next((key for key in _ARRAY_KEYS if given.get(key) is not None), None)
    if key is None or given.get("sampling_rate") is None:
        raise ValueError(
            f"reading a dictionary of audio: found {', '.join(map(str, given)) or 'nothing'}, "
            "expected raw (or array) with the samples and sampling_rate; add what is missing"
        )
    rate_hz, stride = given.pop("sampling_rate"), given.pop("stride", None)
    samples = _mono(given.pop(key))
    if key == "array":
        given.pop("path", None)  # data sets add it to the array: no entry of the caller's
    for other in _ARRAY_KEYS:
        given.pop(other, None)
    if stride is not None:
        # In samples of the recording, not of the model.
        ratio = SAMPLE_RATE_HZ / rate_hz
        if sum(stride) > samples.size:
            raise ValueError(
                f"reading a dictionary of audio: found stride {tuple(stride)} with {samples.size} "
                "samples, expected less than there are; correct stride"
            )
        stride = round(stride[0] * ratio), round(stride[1] * ratio)
    if rate_hz != SAMPLE_RATE_HZ:
        # Imported here, as the decoder is.
        from corpus_asr.audio.resample import resample

        if rate_hz != int(rate_hz):
            raise ValueError(
                f"resampling audio: found a sampling_rate of {rate_hz}, expected a whole number "
                "of Hz"
            )
        samples = resample(samples, rate_hz=int(rate_hz))
    return Speech(samples=samples, stride=stride, extra=given)


def _mono(values: Any) -> Float32[np.ndarray, " sample"]:
    if hasattr(values, "detach"):  # a tensor, wherever it lives
        values = values.detach().cpu()
        values = (values if values.dtype == torch.int16 else values.float()).numpy()
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"reading audio: found a {type(values).__name__}, expected a path, a URI, bytes, "
            "an array, a tensor, or a dictionary with raw (or array) and sampling_rate"
        )
    if values.ndim not in (1, 2):
        raise ValueError(
            f"reading audio: found an array of shape {values.shape}, expected (samples,) or "
            "(channels, samples)"
        )
    if values.ndim == 2 and len(values) > _MAX_CHANNELS:
        raise ValueError(
            f"reading audio: found an array of shape {values.shape}, expected at most "
            f"{_MAX_CHANNELS} channels in the first axis; transpose samples of the form "
            "(samples, channels), and mix more channels yourself"
        )
    if values.dtype == np.int16:
        values = values.astype(np.float32) / _FULL_SCALE
    rows = speech_rows(values)
    mixed: Float32[np.ndarray, " sample"] = np.stack(rows).mean(axis=0)
    return mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Features of a span of a recording."""

    features: Float[Tensor, "one mel frame"]
    mask: Int[Tensor, "one frame"]
    """1 for valid frames."""
    is_last: bool
    stride: tuple[int, int, int] | None
    """Samples of the chunk, and those of context on its left and right; None for no chunking."""
    extra: dict[str, Any]
    """What the caller wants back with the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How recordings are cut: into chunks of `length_s`, or not at all where that is None or 0.

    `stride_s` is the context on both sides, or on left and right; None is a sixth of a chunk.
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
        assert self.length_s, "None only if there is no length"
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
    """Compute the features of a recording, chunk by chunk; `dtype` of None keeps float32."""
    samples, rate_hz = speech.samples, extractor.sampling_rate
    stride = None if speech.stride is None else (samples.size, *speech.stride)
    cuts: list[tuple[int, int, tuple[int, int, int] | None]] = [(0, samples.size, stride)]
    if chunking.length_s:
        ranges = chunking.ranges(samples.size, rate_hz=rate_hz)
        cuts = [(start, end, (end - start, left, right)) for start, end, left, right in ranges]
    options: dict[str, Any] = {}
    if not chunking.length_s and samples.size > extractor.n_samples:
        # One chunk of all its frames, which `generate` decodes window by window.
        options = {"truncation": False, "padding": "longest"}
    for start, end, stride in cuts:
        batch = extractor(
            samples[start:end],
            sampling_rate=rate_hz,
            return_tensors="pt",
            return_attention_mask=True,
            **options,
        )
        yield Chunk(
            features=batch.input_features.to(dtype=dtype),
            mask=batch.attention_mask,
            is_last=end == samples.size,
            stride=stride,
            extra=speech.extra,
        )
