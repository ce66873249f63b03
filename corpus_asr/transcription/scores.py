"""Numbers that tell how far a window's text can be trusted.

In: tokens' log-probabilities and texts. Out: plain floats. Knows no model and no times.
"""

import math
import zlib
from collections.abc import Sequence


def mean_logprob(logprobs: Sequence[float], end_logprob: float | None) -> float:
    """Whisper's average: over the text and the end token, which counts even when cut off.

    Source: openai-whisper `decoding.py`, `sum_logprobs / (len(tokens) + 1)`.
    """
    return (math.fsum(logprobs) + (end_logprob or 0.0)) / (len(logprobs) + 1)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib form: repetition compresses well.

    Source: openai-whisper `utils.py`.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))
