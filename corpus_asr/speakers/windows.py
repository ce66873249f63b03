"""Windows of speech: where a recording's voices are looked at, and what they sound like.

Imports no network, so that turns can be read where nothing is embedded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corpus_asr.array_types import Float16, Float64
from corpus_asr.units import HOP_SAMPLES, SAMPLE_RATE_HZ

# Of a window; GE2E was trained on this length (Resemblyzer, `hparams.py` partials_n_frames).
WINDOW_FRAMES = 160  # 1.6 s
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
# Halving the step again doubles the work; a change of speaker is found to half of it.
STEP_FRAMES = 75
# Less of somebody tells nothing: it is left to the turns around it.
LEAST_FRAMES = 30
# Of the padding around detected speech, this much is kept: what was found is seldom all of it.
KEPT_PAD_S = 0.05

SampleSpan = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechWindows:
    """Windows of speech and what they sound like; those of one span touch or overlap."""

    start_s: Float64[np.ndarray, " window"]
    """From the start of the recording."""
    end_s: Float64[np.ndarray, " window"]
    embeddings: Float16[np.ndarray, "window width"]
    """Of length 1."""

    def __len__(self) -> int:
        return len(self.start_s)

    @classmethod
    def joined(cls, parts: Sequence["SpeechWindows"]) -> "SpeechWindows":
        """Return the windows of several parts, in order of time."""
        filled = [part for part in parts if len(part)]
        if not filled:
            empty = np.zeros(0)
            return cls(start_s=empty, end_s=empty, embeddings=np.zeros((0, 1), np.float16))
        start_s = np.concatenate([part.start_s for part in filled])
        order = np.argsort(start_s, kind="stable")
        return cls(
            start_s=start_s[order],
            end_s=np.concatenate([part.end_s for part in filled])[order],
            embeddings=np.concatenate([part.embeddings for part in filled])[order],
        )


def windows_of(span: SampleSpan) -> list[SampleSpan]:
    """Cut a span into windows; the last ends with it, and a short one is one window."""
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
    """Return a span of speech without most of its padding, which ends at a part's borders."""
    removed = round(max(0.0, pad_s - KEPT_PAD_S) * SAMPLE_RATE_HZ)
    start = span[0] + removed if span[0] > 0 else 0
    end = span[1] - removed if span[1] < num_samples else num_samples
    # A part begins in silence, as a rule: then its first span is padded as far as that goes.
    return (start, end) if end - start >= LEAST_FRAMES * HOP_SAMPLES else span
