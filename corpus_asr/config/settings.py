"""What all settings share, and how text is searched for: the `decoding` section.

What is checked here goes on as plain values (`config.decoding`), so that engines run where pydantic
is not installed.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import encodable
from corpus_asr.languages import code_of

Auto = Literal["auto"]
ONE_OR_MANY = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
Texts = Annotated[tuple[str, ...], ONE_OR_MANY]
"""Texts, of which one alone need not be in a list."""


class Settings(BaseModel):
    """Base of all settings; `load.py` turns its validation errors into `ConfigError`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Take the text below each key as its description, without line breaks."""
        super().__pydantic_init_subclass__(**options)
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split()) or None

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        items = value if isinstance(value, list | tuple) else [value]
        for text in (item for item in items if isinstance(item, str)):
            if encodable(text) != text:  # "\ud800" in YAML
                raise ValueError(f"found {text[:80]!r}, expected text that UTF-8 can write")
        # pydantic reads true and false as 1 and 0.
        if any(isinstance(item, bool) for item in items) and not admits_bool(field.annotation):
            raise AssertionError("found a boolean")  # reported as a value of the wrong type
        return value


def admits_bool(annotation: Any) -> bool:
    """Return whether a type admits true and false."""
    return annotation is bool or any(admits_bool(part) for part in get_args(annotation))


def section_of(field: FieldInfo) -> type[Settings] | None:
    """Return the model of the keys below a key; None for a single value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def keys_of(
    model: type[Settings], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield every key of a model in the order of the file, sections before what is below them."""
    for name, field in model.model_fields.items():
        yield (*above, name), field
        section = section_of(field)
        if section is not None:
            yield from keys_of(section, (*above, name))


Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
Seconds = Annotated[float, Field(ge=0.0)]


class DecodingSection(Settings):
    """Settings that change the text."""

    language: str | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """Language: `auto` (detected), a code or name such as `en` or `English`, or a list of
    candidates for detection."""
    language_mode: Literal["recording", "part", "window"] = "recording"
    """Scope of one language: `recording`, `part`, or `window` (for speakers who switch
    languages)."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Task: `transcribe` in the spoken language, or `translate` into English."""
    target_language: str | None = None
    """Code of the language that a multilingual Speech2Text checkpoint translates into, such as
    `fr`."""
    strategy: Literal["sequential", "chunked"] = "sequential"
    """Long-form strategy: `sequential` moves window by window along predicted timestamps; `chunked`
    cuts windows at silences and decodes them independently."""
    clip_timestamps: tuple[Seconds, ...] = ()
    """Clips to transcribe, as start, end, start, end ... in seconds of the recording; without the
    last end, up to the end. A list, or text such as `10,20`. Default: everything."""
    window_s: float | None = Field(default=None, ge=1, le=30)
    """Maximum window length in seconds of Speech2Text or of a `chunked` Whisper (faster only with
    padding_s); null: 30 for Whisper, 15 for Speech2Text."""
    temperature: tuple[Temperature, ...] = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=1
    )
    """Temperature fallback schedule: temperatures tried in order until a window passes the
    thresholds below. 0 is greedy or beam search."""
    compression_ratio_threshold: float | None = Field(default=2.4, gt=0)
    """Compression ratio above which a window counts as repetitive and falls back to the next
    temperature; null: no limit."""
    logprob_threshold: float | None = Field(default=-1.0, le=0)
    """Mean log-probability below which a window falls back to the next temperature; null: no
    limit."""
    no_speech_threshold: float | None = Field(default=0.6, ge=0, le=1)
    """No-speech probability above which a window with a low log-probability is dropped as silence;
    null: none is."""
    beam_size: int = Field(default=1, ge=1, le=64)
    """Number of beams at temperature 0; 1 is greedy search."""
    length_penalty: float = 1.0
    """Exponent of the length by which the log-probability of a beam is divided."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Penalty on tokens that already occurred; above 1 makes them less likely."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """Length in tokens of sequences that may not occur twice; 0: no limit."""
    stop_loops: bool = True
    """Stop decoding a window that has entered a repetition loop; it then falls back to the next
    temperature."""
    condition_on_prev_tokens: bool = False
    """Prompt each window with the text before it (`sequential` only)."""
    initial_prompt: str | None = None
    """Prompt text placed before each part (before each window when `strategy` is `chunked`)."""
    hotwords: str | None = None
    """Names and terms to expect, in the prompt of each window."""
    prefix: str | None = None
    """Text that the first window starts with; the model continues it."""
    padding_s: float | None = Field(default=None, ge=0)
    """Seconds of silent padding after a window shorter than 30 s; null pads to 30 s, as in
    training. Lower is faster for short clips but can change the text: on a CPU 10
    doubles the speed at about the same word error rate, with 2 errors more than double."""
    word_timestamps: bool = False
    """Compute start time, end time and probability of each word."""
    align: bool = False
    """Align the text of each recording, the column `text` of source.manifest, instead of
    recognizing one: segments and words have its words, with times. Whisper only."""
    hallucination_silence_threshold: float | None = Field(default=None, gt=0)
    """Seconds of silence to skip around likely hallucinations; needs word_timestamps. null:
    none."""
    drop_nonspeech: bool = False
    """Drop segments outside detected speech."""
    drop_known_hallucinations: bool = False
    """Drop segments whose whole text is a known hallucination of Whisper models without speech;
    otherwise the column `known_hallucination` marks them."""

    @field_validator("language")
    @classmethod
    def _codes_of_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return code_of(value)
        codes = tuple(map(code_of, value))
        if "auto" in codes:
            raise ValueError("auto means every language; leave it out of the list")
        return tuple(dict.fromkeys(codes))  # twice the same would share its probability

    @field_validator("temperature", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("clip_timestamps", mode="before")
    @classmethod
    def _numbers_in_text(cls, value: object) -> object:
        if isinstance(value, int | float):
            return (value,)
        if not isinstance(value, str):
            return value
        try:
            return tuple(float(number) for number in value.split(",")) if value.strip() else ()
        except ValueError as error:
            raise ValueError(
                f'found the text "{value[:80]}", expected seconds with commas between, as in 10,20'
            ) from error

    @field_validator("clip_timestamps")
    @classmethod
    def _one_after_the_other(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for number, (before, after) in enumerate(pairwise(value)):
            starts = number % 2 == 1  # a clip may start where the one before ended
            if after < before or (after == before and not starts):
                raise ValueError(
                    f"found {after:g} after {before:g}, expected start, end, start, end ... of "
                    "clips that follow one another"
                )
        return value

    @field_validator("initial_prompt", "hotwords", "prefix")
    @classmethod
    def _blank_is_nothing(cls, value: str | None) -> str | None:
        return value if value is None or value.strip() else None

    @model_validator(mode="after")
    def _keys_fit_together(self) -> "DecodingSection":
        problems = "; ".join(self._misfits())
        if problems:
            raise ValueError(problems)
        return self

    def settings(self) -> DecodingSettings:
        """Return the values as the engine takes them."""
        return DecodingSettings(**{name: getattr(self, name) for name in type(self).model_fields})

    def _misfits(self) -> Iterator[str]:
        given = self.language != "auto" and (
            isinstance(self.language, str) or len(self.language) == 1
        )
        if given and self.language_mode != "recording":
            yield (
                f"language_mode: {self.language_mode} detects languages, but language names a "
                "single one; set language to auto or to a list"
            )
        if self.beam_size > 1 and 0.0 not in self.temperature:
            yield (
                f"beam_size: {self.beam_size} is for temperature 0 alone, which is not among "
                "temperature; add it, or leave beam_size out"
            )
        if self.beam_size == 1 and self.length_penalty != 1.0:
            yield (
                f"length_penalty: {self.length_penalty:g} ranks beams, and beam_size is 1; set "
                "beam_size, or leave length_penalty out"
            )
        if self.condition_on_prev_tokens and self.strategy == "chunked":
            yield (
                "condition_on_prev_tokens needs windows that follow one another, and strategy is "
                "chunked; set strategy to sequential, or leave condition_on_prev_tokens out"
            )
        if self.hallucination_silence_threshold is not None and not self.word_timestamps:
            yield "hallucination_silence_threshold needs the times of words; set word_timestamps"
