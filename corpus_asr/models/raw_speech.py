"""What callers pass as speech, as checked rows of samples.

In: one recording or several, as lists, arrays or tensors. Out: one float32 row per recording, and
an error where the values cannot be one channel of sound. Knows no sample rate and no features.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32

# More columns than this are samples; so few beside more rows are the channels of one recording.
_MAX_CHANNELS = 8

Row = Float32[np.ndarray, " sample"]


def speech_rows(raw_speech: Any) -> list[Row]:
    """Turn one recording, or several, into rows.

    Args:
        raw_speech: a list of numbers, an array of one dimension, or a list of either; an array of
            two dimensions holds one recording per row.

    Raises:
        ValueError: there is nothing, more than one channel, or no finite number.
        TypeError: it is no sequence of numbers.
    """
    if isinstance(raw_speech, list | tuple):
        if not raw_speech:
            raise ValueError(
                "extracting features: found an empty list, expected one recording or more; leave "
                "out what has no audio"
            )
        if not _is_number(raw_speech[0]):
            return [_row(speech, name=f"recording {i}") for i, speech in enumerate(raw_speech)]
        return [_row(raw_speech, name="the recording")]
    values = _array(raw_speech, name="the recording")
    if values.ndim == 2:
        _check_channels(values)
        return [_row(row, name=f"recording {i}") for i, row in enumerate(values)]
    return [_row(values, name="the recording")]


def _row(speech: Any, *, name: str) -> Row:
    values = _array(speech, name=name)
    if values.ndim != 1:
        raise ValueError(
            f"extracting features of {name}: found an array of shape {values.shape}, expected only "
            "mono-channel audio of one dimension; choose a channel or average the channels"
        )
    if values.size == 0:
        raise ValueError(
            f"extracting features of {name}: found no samples, expected at least one; leave out "
            "what has no audio"
        )
    if values.dtype.kind in "iu" and not (values.min() >= -1 and values.max() <= 1):
        raise ValueError(
            f"extracting features of {name}: found {values.dtype} samples from {values.min()} to "
            f"{values.max()}, expected numbers from -1 to 1; divide 16-bit samples by 32768"
        )
    row: Row = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(row)
    if not finite.all():
        raise ValueError(
            f"extracting features of {name}: found {row[~finite][0]} at sample "
            f"{int(np.argmin(finite))} ({int((~finite).sum())} of {row.size} are not finite), "
            "expected finite numbers; repair or leave out the recording"
        )
    return row


def _array(speech: Any, *, name: str) -> np.ndarray:
    if isinstance(speech, str | bytes | dict | set):
        hint = "decode the file first" if isinstance(speech, str | bytes) else 'pass its "array"'
        raise TypeError(
            f"extracting features of {name}: found a {type(speech).__name__}, expected an array or "
            f"list of samples; {hint}"
        )
    values = speech
    if hasattr(values, "detach"):  # a tensor, wherever it lives
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"values of type {array.dtype}")
    except (ValueError, TypeError) as error:
        raise TypeError(
            f"extracting features of {name}: found a {type(speech).__name__} with {error}, "
            "expected an array or list of numbers; decode the file first"
        ) from error
    return array


def _check_channels(values: np.ndarray) -> None:
    recordings, samples = values.shape
    if samples <= _MAX_CHANNELS < recordings:
        raise ValueError(
            f"extracting features: found an array of shape {values.shape}, which looks like "
            f"{samples} channels of one recording, expected only mono-channel audio; pass one "
            "channel, or their mean over the last axis"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float | np.number) or getattr(value, "ndim", None) == 0
