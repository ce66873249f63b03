"""Base of all settings, and the `decoding` section.

Validated values are passed on as plain dataclasses (`config.decoding`), so that engines run without
pydantic.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from corpus_asr.config.decoding import QUALITIES, DecodingSettings, hotwords_from
from corpus_asr.config.storage_options import StorageOptions, parsed
from corpus_asr.errors import encodable
from corpus_asr.languages import code_of

Auto = Literal["auto"]
ONE_OR_MANY = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
Texts = Annotated[tuple[str, ...], ONE_OR_MANY]
"""List of texts; a single one need not be a list."""
StoreSection = Annotated[
    StorageOptions, PlainValidator(parsed), PlainSerializer(StorageOptions.shown)
]
"""Options of a store by name; possibly secret values are hidden in dumps."""
NONE_OR_MANY = BeforeValidator(lambda value: () if value is None else value)


class Settings(BaseModel):
    """Base of all settings; `load.py` turns its validation errors into `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        items = value if isinstance(value, list | tuple) else [value]
        for text in (item for item in items if isinstance(item, str)):
            if encodable(text) != text:  # "\ud800" in YAML
                raise ValueError(f"found {text[:80]!r}, expected text that UTF-8 can write")
        # pydantic accepts true and false as 1 and 0.
        if any(isinstance(item, bool) for item in items) and not admits_bool(field.annotation):
            raise AssertionError("found a boolean")  # reported as a wrong type
        return value


def check_store(
    section: str,
    uris: Iterable[str],
    options: StorageOptions,
    *,
    lists_others: bool = False,
) -> None:
    """Raise ValueError if the stores of these URIs do not support a section's options."""
    if problems := options.problems(uris, lists_others=lists_others):
        raise ValueError("; ".join(f"{section}.storage_options: {problem}" for problem in problems))


def admits_bool(annotation: Any) -> bool:
    """Return whether a type includes booleans."""
    return annotation is bool or any(admits_bool(part) for part in get_args(annotation))


def section_of(field: FieldInfo) -> type[Settings] | None:
    """Return the model of the keys below a key; None for a single value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def keys_of(
    model: type[Settings], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield every key of a model in file order, sections before their keys."""
    for name, field in described(model).items():
        yield (*above, name), field
        section = section_of(field)
        if section is not None:
            yield from keys_of(section, (*above, name))


_PLAIN: dict[type, type] = {}  # by the dataclass they are made from


def keys_from(plain: Any, **types: Any) -> Any:
    """Return a base model for a section, whose keys are the fields of a plain dataclass.

    The docstring below a field is its key's description, and `metadata` its bounds, named as in
    pydantic's `Field`. `types` override field types.
    """
    keys: dict[str, Any] = {
        plain_field.name: (
            types.get(plain_field.name, plain_field.type),
            Field(default=plain_field.default, **plain_field.metadata),
        )
        for plain_field in fields(plain)
    }  # fmt: skip
    made = create_model(plain.__name__, **keys)
    _PLAIN[made] = plain
    return made


@cache
def described(model: type[Settings]) -> Mapping[str, FieldInfo]:
    """Return the keys of a model, with the docstrings below them as descriptions.

    Not by pydantic when classes are created, which takes 50 ms at every process start.
    """
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        texts |= _texts_below(_PLAIN.get(base, base))
    for name, field in model.model_fields.items():
        field.description = " ".join(texts.get(name, "").split()) or None
    return model.model_fields


def _texts_below(declared: type) -> dict[str, str]:
    if not declared.__module__.startswith(__package__):
        return {}
    statements = pairwise(_classes(declared.__module__)[declared.__name__].body)
    return {
        ast.unparse(key.target): ast.literal_eval(text.value)
        for key, text in statements
        if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


if TYPE_CHECKING:
    _DecodingKeys = DecodingSettings
else:
    _DecodingKeys = keys_from(
        DecodingSettings,
        language=Auto | str | Annotated[tuple[str, ...], Field(min_length=1)],
        clip_timestamps=tuple[Annotated[float, Field(ge=0.0)], ...],
        temperature=tuple[Annotated[float, Field(ge=0.0, le=2.0)], ...],
        beam_size=Annotated[int, Field(ge=1, le=64)] | Auto,
        padding_s=Annotated[float, Field(ge=0.0)] | Auto | None,
    )


def _code_of(text: str) -> str:
    # Forms and clients of other libraries send an empty text for no choice.
    return code_of(text) if text.strip() else "auto"


class DecodingSection(_DecodingKeys, Settings):  # type: ignore[misc]  # both are frozen
    """Settings that change the text."""

    quality: Literal["fast", "balanced", "accurate"] = Field(default="balanced", exclude=True)
    """Preset of keys below that are not set: `fast` has beam_size 1, `accurate` beam_size 5,
    `balanced` the defaults."""

    @model_validator(mode="before")
    @classmethod
    def _keys_of_quality(cls, data: Any) -> Any:
        # A run's copy of the settings has the resolved keys, not the name of the preset.
        name = data.get("quality") if isinstance(data, Mapping) else None
        return {**QUALITIES.get(name, {}), **data} if isinstance(name, str) else data

    @field_validator("language")
    @classmethod
    def _codes_of_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = value.strip(", ").split(",") if isinstance(value, str) else value
        codes = tuple(map(_code_of, names))
        if len(codes) == 1:
            return codes[0]
        if "auto" in codes:
            raise ValueError("found auto in a list, expected codes of languages; remove it")
        choice = tuple(dict.fromkeys(codes))  # duplicates would share its probability
        return choice if len(choice) > 1 else choice[0]  # a single one needs no detection

    @field_validator("temperature", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("clip_timestamps", mode="before")
    @classmethod
    def _numbers_of_any_form(cls, value: object) -> object:
        if isinstance(value, int | float):
            return (value,)
        if isinstance(value, list | tuple) and any(isinstance(clip, dict) for clip in value):
            # As faster-whisper's batched pipeline takes them.
            try:
                return tuple(float(clip[edge]) for clip in value for edge in ("start", "end"))
            except (TypeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"found {str(value)[:80]}, expected {{'start': seconds, 'end': seconds}} for "
                    "each clip, or numbers alone"
                ) from error
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
        for number, (earlier_s, later_s) in enumerate(pairwise(value)):
            starts = number % 2 == 1  # a clip may start where the previous one ended
            if later_s < earlier_s or (later_s == earlier_s and not starts):
                raise ValueError(
                    f"found {later_s:g} after {earlier_s:g}, expected start, end, start, end ... "
                    "of clips that follow one another"
                )
        return value

    @field_validator("hotwords", mode="before")
    @classmethod
    def _phrases_of_any_form(cls, value: object) -> object:
        return hotwords_from(value, files=True) or None

    @field_validator("initial_prompt", "prefix")
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
        """Return the settings as the engine's dataclass."""
        return DecodingSettings(
            **{setting.name: getattr(self, setting.name) for setting in fields(DecodingSettings)}
        )

    def _misfits(self) -> Iterator[str]:
        has_language = isinstance(self.language, str) and self.language != "auto"
        if has_language and self.language_mode != "recording":
            yield (
                f"language_mode: {self.language_mode} detects languages, but language names a "
                "single one; set language to auto or to a list"
            )
        if self.beam_size not in (1, "auto") and 0.0 not in self.temperature:
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
                "chunked; leave one of them out"
            )
        if self.hallucination_silence_threshold is not None and not self.word_timestamps:
            yield "hallucination_silence_threshold needs the times of words; set word_timestamps"
