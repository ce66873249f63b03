"""How text is searched for: the `decoding` section, and the options of `Transcriber.transcribe`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from corpus_asr.config.base import Settings

Temperature = Annotated[float, Field(ge=0.0, le=2.0)]


class DecodingSettings(Settings):
    """Everything that changes the text for given features and weights."""

    language: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default="auto",
        description="`auto`, a code such as `en`, or a list of codes to choose among.",
    )
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="`translate` writes English whatever is spoken."
    )
    strategy: Literal["sequential", "chunked"] = Field(
        default="sequential",
        description="`sequential` moves window by window along the predicted timestamps; "
        "`chunked` cuts speech-aligned windows and decodes them independently.",
    )
    temperature: tuple[Temperature, ...] = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        min_length=1,
        description="Tried in order until a window passes the thresholds below; one number or a "
        "ladder. 0 is greedy.",
    )
    compression_ratio_threshold: float | None = Field(
        default=2.4, gt=0, description="Above it a window counts as repetitive and is retried."
    )
    logprob_threshold: float | None = Field(
        default=-1.0, le=0, description="Mean log-probability below which a window is retried."
    )
    no_speech_threshold: float | None = Field(
        default=0.6, ge=0, le=1,
        description="No-speech probability above which an improbable window is dropped as silence.",
    )  # fmt: skip
    condition_on_prev_tokens: bool = Field(
        default=False, description="Prompt each window with the text before it (sequential only)."
    )

    @field_validator("language")
    @classmethod
    def _auto_stands_alone(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and "auto" in value:
            raise ValueError("auto means every language; leave it out of the list")
        return value

    @field_validator("temperature", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value
