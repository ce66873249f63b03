"""A small vocabulary in Whisper's layout, to test transcription without a tokenizer.

1-9 are words, 10 ends; 30 starts, 31 begins the previous text, 32 and 33 are languages, 34 asks for
text without timestamps; timestamps follow.
"""

from typing import Any

from corpus_asr.transcription.dialect import Dialect

END, START, PREVIOUS, ENGLISH, GERMAN, BEGIN = 10, 30, 31, 32, 33, 35
NO_SPEECH = 29


def dialect(**changes: Any) -> Dialect:
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
    return Dialect(**fields | changes)
