"""Parts of recordings, ready to be transcribed: noise, or what a test puts in its place."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from corpus_asr.segments import SpeechSpan
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_SECOND, HOP_SAMPLES, TAIL_FRAMES


def part(
    seconds: float,
    speech: Sequence[tuple[float, float]] | None = None,
    *,
    mels: int = 4,
    seed: int = 0,
    **fields: Any,
) -> PartRequest:
    """Return a part of noise, with speech at these seconds of the recording; `fields` replace."""
    frames = round(seconds * FRAMES_PER_SECOND)
    noise = np.random.default_rng(seed).standard_normal((frames + TAIL_FRAMES, mels))
    usual: dict[str, Any] = {
        "recording_id": f"r{seed}", "part": 0, "features": noise.astype(np.float16),
        "num_samples": frames * HOP_SAMPLES, "pad_value": -1.5, "start_s": 0.0,
        "speech": None,
    }  # fmt: skip
    if speech is not None:
        usual["speech"] = tuple(SpeechSpan(start_s=start, end_s=end) for start, end in speech)
    return PartRequest(**usual | fields)
