"""Prompt formats of small vocabularies, and parts of noise to transcribe."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from corpus_asr.segments import SpeechSpan
from corpus_asr.transcription.speech2text import Speech2TextPromptFormat
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_SECOND, HOP_SAMPLES, TAIL_FRAMES

END, START, PREVIOUS, ENGLISH, GERMAN, BEGIN = 10, 30, 31, 32, 33, 35
NO_SPEECH = 29


def prompt_format(**changes: Any) -> PromptFormat:
    """Return the vocabulary; `changes` replace its fields."""
    fields: dict[str, Any] = dict(
        text=lambda ids: "".join(f" w{token}" for token in ids if token < END),
        encode=lambda text: tuple(int(word[1:]) for word in text.split()),
        spell=lambda text: tuple(int(word[1:]) for word in text.split()),
        request=lambda language, task, timestamps: (START, {"en": 32, "de": 33}[language or ""]),
        end=END,
        start=START,
        start_of_previous=31,
        no_speech=None,
        no_timestamps=34,
        timestamp_begin=BEGIN,
        languages={"en": ENGLISH, "de": GERMAN},
        suppress=(),
        suppress_first=(),
        max_initial_timestamp=None,
        max_target_positions=24,
    )
    return PromptFormat(**fields | changes)


def speech2text_prompt_format(**changes: Any) -> Speech2TextPromptFormat:
    """Return a vocabulary in Speech2Text's manner.

    0 ends and starts, 1 pads, 40 and 41 are targets. Words are 3-29, and what 30-39 spell goes on
    with the word before.
    """
    fields: dict[str, Any] = dict(
        spelling=lambda ids: "".join(f" w{token}" if token < 30 else "x" for token in ids).lstrip(),
        encode=lambda text: tuple(int(word[1:]) for word in text.split()),
        begins_word=lambda token: token < 30,
        special=frozenset({0, 1, 40, 41}),
        start=0,
        end=0,
        targets={},
        forced=None,
        suppress=(),
        max_target_positions=24,
        alignment_heads=((0, 0), (0, 1)),
    )
    return Speech2TextPromptFormat(**fields | changes)


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
