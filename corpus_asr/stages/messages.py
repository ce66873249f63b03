"""What travels between the extract stage and its child process.

Apart from both, so that neither has to import what the other needs.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """A recording, and the parts of it that are not wanted again."""

    uri: str
    done_parts: frozenset[int] = frozenset()


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
