"""Small vocabularies in the layouts of the families, to test transcription without a tokenizer.

Whisper's: 1-9 are words, 10 ends; 30 starts, 31 begins the previous text, 32 and 33 are languages,
34 asks for text without timestamps; timestamps follow.
"""

from typing import Any

from corpus_asr.transcription.speech2text import Speech2TextPromptFormat
from corpus_asr.transcription.whisper_prompt import PromptFormat

END, START, PREVIOUS, ENGLISH, GERMAN, BEGIN = 10, 30, 31, 32, 33, 35
NO_SPEECH = 29


def prompt_format(**changes: Any) -> PromptFormat:
    """Return the vocabulary; `changes` replace its fields."""
    fields: dict[str, Any] = dict(
        text=lambda ids: "".join(f" w{token}" for token in ids if token < END),
        encode=lambda text: tuple(int(word[1:]) for word in text.split()),
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
