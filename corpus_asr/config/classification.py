"""What audio is told apart by: the `classification` section, read by `classify_audio` alone."""

from typing import Literal

from pydantic import Field, field_validator

from corpus_asr.config.base import Settings


class ClassificationSettings(Settings):
    """Everything that changes the labels for given features and weights."""

    task: Literal["language", "classify"] = Field(
        default="language",
        description="`language`: which one is spoken, with any multilingual Whisper checkpoint; "
        "`classify`: the classes of a WhisperForAudioClassification checkpoint.",
    )
    languages: tuple[str, ...] = Field(
        default=(),
        description="Codes to choose among, two or more; left out, all that the checkpoint knows.",
    )
    windows: Literal["all", "first_speech"] = Field(
        default="all",
        description="`all`: every stretch of speech, in windows of at most 30 s; `first_speech`: "
        "only those that a transcription detects the language in, one or a few where a recording "
        "begins to speak.",
    )
    top_k: int = Field(
        default=5, ge=1, le=1000, description="Rows written for each window, likeliest label first."
    )

    @field_validator("languages", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("languages")
    @classmethod
    def _something_to_choose(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        codes = tuple(dict.fromkeys(value))  # twice the same would share its probability
        if len(codes) == 1:
            raise ValueError(
                f"found {codes[0]} alone, expected two codes or more to choose among, or none"
            )
        return codes
