"""What travels between the extract stage and its child process, apart from what either imports."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16

from corpus_asr.errors import DecodeError

GIGABYTE = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """A recording, and the parts of it that are not wanted again."""

    uri: str
    done_parts: frozenset[int] = frozenset()
    upcoming: tuple[str, ...] = ()
    """Addresses of the next requests, as many as may be opened ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedPart:
    """One part; `wanted` is False for done parts, which only carry their index."""

    part: int
    wanted: bool
    channel: int | None
    start_sample: int
    num_samples: int
    speech: tuple[tuple[float, float], ...] | None
    """Speech in seconds of the recording; empty: none was found; None: it was not looked for."""
    features: Float16[np.ndarray, "frame mel"] | None
    """None for a part without speech."""
    num_mel_bins: int
    pad_value: float | None
    language_features: Float16[np.ndarray, "_ mel"] | None
    """Whole windows, one after the other; None when they lie in this part."""
    language_window_start_s: float | None
    codec: str
    sample_rate_hz: int
    channels: int
    header_duration_s: float | None
    decode_errors: int
    decode_s: float
    cpu_s: float = 0.0
    """CPU time of the process that extracted; `decode_s` beyond it was waiting."""
    fetch_retries: int = 0
    """Requests that its store had to be asked again."""


def check_size(num_bytes: int, *, uri: str, max_file_gb: float) -> None:
    """Refuse a file by its size, before anything is read of it.

    Raises:
        DecodeError: kind `too_large`.
    """
    if num_bytes > max_file_gb * GIGABYTE:
        raise DecodeError(
            f"decoding {uri}: {num_bytes / GIGABYTE:.3g} GB, expected at most "
            f"{max_file_gb:g} (extract.max_file_gb); raise the limit if it is a recording, or "
            "exclude it from the source",
            uri=uri,
            kind="too_large",
        )
