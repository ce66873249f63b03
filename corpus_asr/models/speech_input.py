"""What a speech pipeline may be called with, as samples of one channel.

In: a path, an address, the bytes of a file, an array or tensor, or a dictionary of an array and its
rate. Out: samples at 16 kHz, and what else the dictionary said. Knows no model and no chunks.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float32

from corpus_asr.models.feature_extraction import speech_rows
from corpus_asr.units import SAMPLE_RATE_HZ

_MAX_CHANNELS = 2
_ARRAY_KEYS = ("raw", "array")


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

    Args:
        inputs: a path or address (local, http(s), s3, ...); the bytes of a file of any format; an
            array or tensor of samples at 16 kHz, one row per channel if it has two dimensions; or a
            dictionary with `raw` or `array`, `sampling_rate` and, if wanted, `stride`; or what has
            `get_all_samples`, as decoders of torchcodec do.

    Raises:
        FetchError: a file cannot be read.
        DecodeError: it holds no usable audio.
        ValueError: a dictionary lacks something, or an array is no mono or stereo sound.
        TypeError: it is something else.
    """
    if isinstance(inputs, str | PathLike):
        # Imported here, as the decoder is: a GPU image without them still takes arrays.
        from corpus_asr.storage.stores.filesystem import open_binary

        with open_binary(str(inputs)) as file:
            return Speech(samples=_decoded(file, uri=str(inputs)))
    if isinstance(inputs, bytes | bytearray):
        return Speech(samples=_decoded(io.BytesIO(inputs), uri=f"{len(inputs)} bytes"))
    if hasattr(inputs, "get_all_samples"):
        heard = inputs.get_all_samples()
        inputs = {"array": heard.data, "sampling_rate": heard.sample_rate}
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
        given.pop("path", None)  # datasets give it beside the array; it says nothing more
    for other in _ARRAY_KEYS:
        given.pop(other, None)
    if stride is not None:
        ratio = SAMPLE_RATE_HZ / rate_hz
        if sum(stride) > samples.size:
            raise ValueError(
                f"reading a dictionary of audio: found stride {tuple(stride)} with {samples.size} "
                "samples, expected less than there are; correct stride"
            )
        stride = round(stride[0] * ratio), round(stride[1] * ratio)
    return Speech(samples=_at_16_khz(samples, rate_hz), stride=stride, extra=given)


def _at_16_khz(
    samples: Float32[np.ndarray, " sample"], rate_hz: Any
) -> Float32[np.ndarray, " resampled"]:
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    from corpus_asr.audio.resample import resample

    if rate_hz != int(rate_hz):
        raise ValueError(
            f"resampling audio: found a sampling_rate of {rate_hz}, expected a whole number of Hz"
        )
    return resample(samples, rate_hz=int(rate_hz))


def _mono(values: Any) -> Float32[np.ndarray, " sample"]:
    """Average up to two channels; more, or channels in the last axis, are the caller's to mix."""
    if hasattr(values, "detach"):  # a tensor, wherever it lives
        values = values.detach().cpu().float().numpy()
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"reading audio: found a {type(values).__name__}, expected a path, an address, bytes, "
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
    rows = speech_rows(values)
    mixed: Float32[np.ndarray, " sample"] = np.stack(rows).mean(axis=0)
    return mixed
