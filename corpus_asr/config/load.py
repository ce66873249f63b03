"""Loads settings from a YAML file, overrides and the environment; reports all errors at once.

`written` does the reverse, from a pipeline and chosen values to commented YAML. `name_hint`
suggests the known name for an unknown one, such as another program's.
"""

import difflib
import itertools
import json
import re
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from corpus_asr.config.document import (
    Document,
    KeyPath,
    Problem,
    hide_secrets,
    read_document,
    read_pairs,
)
from corpus_asr.config.run import CLASSIFY_AUDIO, PSEUDO_LABEL, PseudoLabelConfig, RunConfig
from corpus_asr.config.settings import (
    Settings,
    described,
    keys_of,
    section_of,
)
from corpus_asr.config.storage_options import StorageOptions, parsed
from corpus_asr.errors import ConfigError
from corpus_asr.units import shortened

if TYPE_CHECKING:
    from corpus_asr.config.finetune import FinetuneConfig

_Config = TypeVar("_Config", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One resolved value, as `corpus-asr plan` shows it."""

    key: str
    value: Any
    """Plain data with secrets hidden."""
    is_default: bool


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, lists_source: bool = True
) -> RunConfig:
    """Read and validate a job, with overrides `a.b=c` whose values are YAML.

    `source` is optional unless it is listed.
    """
    document = read_document(path, overrides)
    if not lists_source:
        document.values.setdefault("source", {"uri": "nowhere"})
    labels = document.values.get("pipeline") == PSEUDO_LABEL
    return _checked(document, PseudoLabelConfig if labels else RunConfig)


def load_finetune(path: str | Path, overrides: Sequence[str] = ()) -> "FinetuneConfig":
    """Read and validate a fine-tuning configuration; see `load_config`."""
    # Local import, which takes 0.03 s.
    from corpus_asr.config.finetune import FinetuneConfig

    return _checked(read_document(path, overrides), FinetuneConfig)


def _checked(document: Document, model: type[_Config]) -> _Config:
    # A section with only commented keys is null in YAML.
    sections = {name for name, field in model.model_fields.items() if section_of(field)}
    values = {
        name: {} if value is None and name in sections else value
        for name, value in document.values.items()
    }
    config, problems = _validated(values, model)
    if document.problems or config is None:
        raise document.error([*document.problems, *problems])
    return config


def _validated(
    values: Mapping[str, Any], model: type[_Config]
) -> tuple[_Config | None, list[Problem]]:
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, problems_in(error, model=model, values=values)


def checked_options(options: Mapping[str, Any], *models: type[Settings]) -> tuple[Any, ...]:
    """Validate keywords and return one instance of each model, by its keys.

    Raises:
        ConfigError: names each wrong key or value.
    """
    values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items()
    }
    # transformers and openai-whisper use None for detection.
    if values.get("language", "") is None:
        values["language"] = "auto"
    if isinstance(values.get("hotwords"), str):
        # A caller's text, possibly from a request, must not read a local file by `@`.
        values["hotwords"] = f",{values['hotwords']}"
    # Unknown keywords go to the first model, which rejects them.
    home = {key: model for model in models for key in model.model_fields}
    shares: dict[Any, dict[str, Any]] = {model: {} for model in models}
    for key, value in values.items():
        shares[home.get(key, models[0])][key] = value
    validations = [_validated(share, model) for model, share in shares.items()]
    problems = [problem for _, model_problems in validations for problem in model_problems]
    if problems:
        messages = "; ".join(
            f"{problem.dotted}: {problem.message}" if problem.key else problem.message
            for problem in problems
        )
        raise ConfigError(f"reading the options: {messages}")
    return tuple(settings for settings, _ in validations)


def options_of_store(pairs: Sequence[str], uris: Sequence[str], *, name: str) -> StorageOptions:
    """Return the storage options of a command line.

    Args:
        pairs: NAME=VALUE, as in `storage_options`.
        uris: URIs of the store; empty if they are not known yet.
        name: command-line option of the pairs.

    Raises:
        ConfigError: names each wrong option.
    """
    document = read_pairs(pairs, name)
    options = parsed(document.values)
    problems = [f"{problem.dotted}: {problem.message}" for problem in document.problems]
    problems += options.problems(uris, lists_others=True)
    if problems:
        raise ConfigError(f"reading {name}: {'; '.join(problems)}")
    return options.bound(uris)


def resolved(config: Settings) -> dict[str, Any]:
    """Return all values, including defaults, as plain data with secrets hidden."""
    return {name: _hidden(value) for name, value in config.model_dump(mode="json").items()}


def settings_of(settings: Settings, above: KeyPath = ()) -> Iterator[Setting]:
    """Yield all values in file order, marking those that are defaults."""
    plain = resolved(settings)
    for name in plain:  # a preset is shown as the keys it sets
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from settings_of(value, (*above, name))
            continue
        yield Setting(
            key=".".join((*above, name)),
            value=plain[name],
            is_default=name not in settings.model_fields_set,
        )


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_hidden(child) for child in value]
    return hide_secrets(value) if isinstance(value, str) else value


WIDTH = 88
# Common keys, written by default.
USUAL_KEYS = frozenset(
    {
        "source.uri", "source.storage_options", "model.checkpoint", "decoding.language",
        "decoding.word_timestamps", "classification.task", "classification.languages",
        "output.uri", "output.storage_options", "selection.min_confidence",
        "dataset.uri", "dataset.format",
    }
)  # fmt: skip

_UNREAD = {CLASSIFY_AUDIO: {"decoding", "align"}}
# ASCII without leading digit or sign, which YAML 1.1 and 1.2 both parse as text.
_PLAIN_WORD = re.compile(r"[A-Za-z/][\w/.@+-]*(?::[\w/.@+-]+)*", re.ASCII)
_NOT_TEXT = {"true", "false", "null"}


def written(pipeline: str, chosen: Mapping[str, Any], *, full: bool) -> str:
    """Return the YAML of a job.

    Keys in `chosen`, such as `source.uri`, have these values. Others are comments with their
    defaults: all keys if `full`, else the common ones.
    """
    model = PseudoLabelConfig if pipeline == PSEUDO_LABEL else RunConfig
    unread = _UNREAD.get(pipeline, {"classification"})
    lines = [*_comment("What is done.", ""), f"pipeline: {pipeline}"]
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None or name in unread:
            continue
        keys = list(_keys(name, section, chosen, None if full else USUAL_KEYS))
        if keys:
            lines += ["", *_comment(section.__doc__ or "", ""), f"{name}:", *keys]
    return "\n".join(lines) + "\n"


def yaml_value(value: object) -> str:
    """Return a value in YAML: JSON, a subset of YAML, with plain words unquoted."""
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)


def _keys(
    section: str, model: type[Settings], chosen: Mapping[str, Any], wanted: Collection[str] | None
) -> Iterator[str]:
    for name, field in described(model).items():
        key = f"{section}.{name}"
        if key not in chosen and wanted is not None and key not in wanted:
            continue
        yield from _comment(field.description or "", "  ")
        if key in chosen:
            yield f"  {name}: {yaml_value(chosen[key])}"
        else:
            yield f"  # {name}: {_default(field)}"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, StorageOptions):
        return yaml_value(default.shown())
    return yaml_value(list(default) if isinstance(default, tuple) else default)


def _comment(text: str, indent: str) -> Iterator[str]:
    start = f"{indent}# "
    return iter(textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start))


# Length of a terminal line; a signed URL or a list in the wrong key is far longer.
_LONGEST_VALUE = 80


@dataclass(slots=True, kw_only=True)
class _Place:
    """Place in a document to which pydantic's location refers."""

    level: type[Settings]
    """Section of the key, or of a key in a list of sections."""
    value: Any
    key: KeyPath = ()
    field: FieldInfo | None = None
    inside: str = ""
    """Item and key below a key that is no section."""


def problems_in(
    error: ValidationError, *, model: type[Settings], values: Mapping[str, Any]
) -> list[Problem]:
    """Convert pydantic's errors to one problem per key."""
    problems: dict[KeyPath, Problem] = {}
    # A union has an error for each of its types; that of an item says more than that of its list.
    for detail in sorted(error.errors(include_url=False), key=lambda detail: -len(detail["loc"])):
        place = _located(model, values, detail["loc"])
        if place.key in problems:
            continue
        kind = detail["type"]
        if kind == "extra_forbidden":
            message = _unknown_key(model, place.level, place.key, str(detail["loc"][-1]))
        elif kind == "missing":
            message = f"missing; {_description(place.field)}"
        elif kind == "value_error":
            message = str(detail["ctx"]["error"])
        else:
            message = _mismatch(place)
        problems[place.key] = Problem(key=place.key, message=place.inside + message)
    return list(problems.values())


def _unknown_key(model: type[Settings], level: type[Settings], key: KeyPath, name: str) -> str:
    """Return the known key most similar to an unknown one, or all known keys."""
    level_keys = [".".join((*key[:-1], field)) for field in level.model_fields]
    known_keys = [".".join(path) for path, _ in keys_of(model)]
    hint = _ELSEWHERE.get(".".join(key)) or name_hint(name, level_keys, known_keys)
    return f"unknown key; {hint or 'expected one of: ' + ', '.join(level.model_fields)}"


def expected(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Return a description of the values that a type accepts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *extra = arguments
        # A Field within Annotated has its bounds one level deeper.
        lists = [item.metadata if isinstance(item, FieldInfo) else [item] for item in extra]
        return expected(base, (*metadata, *itertools.chain.from_iterable(lists)))
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        kinds = [expected(argument, metadata) for argument in arguments]
        # A list of text also takes a text.
        return " or ".join(kind for kind in kinds if f"{kind} or a list of {kind}" not in kinds)
    if origin is tuple:
        # Every list setting also accepts a single value.
        item = expected(arguments[0])
        return "text or a list of text" if item.startswith("text") else f"{item}, or a list of such"
    if origin is dict:
        return f"keys below it, each with {expected(arguments[1])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if annotation is type(None):
        return "null"
    if _is_section(annotation):
        return f"keys below it: {', '.join(annotation.model_fields)}"
    return words.get(annotation, "a value") + _bounds(annotation, metadata)


def _bounds(annotation: Any, metadata: tuple[Any, ...]) -> str:
    if annotation not in (int, float):
        return ""
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    bounds = [
        f"{word} {getattr(item, name):g}"
        for item in metadata
        for name, word in words
        if getattr(item, name, None) is not None
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _located(
    model: type[Settings], values: Mapping[str, Any], location: tuple[int | str, ...]
) -> _Place:
    place = _Place(level=model, value=values)
    section: type[Settings] | None = model
    for item in location:
        if section is not None:
            if place.inside:
                place.inside += f"{item}: "
            else:
                place.key = (*place.key, str(item))
            place.level, place.field = section, described(section).get(str(item))
            section = section_of(place.field) if place.field is not None else None
            place.value = place.value.get(item) if isinstance(place.value, Mapping) else None
        elif isinstance(item, int) and isinstance(place.value, list):
            place.inside += f"item {item + 1}: "
            place.value = place.value[item]
            kinds = get_args(place.field.annotation) if place.field is not None else ()
            section = next((kind for kind in kinds if _is_section(kind)), None)
        elif isinstance(place.value, Mapping) and item in place.value and place.field is not None:
            place.inside += f"{item}: "
            place.value = place.value[item]
            place.field = FieldInfo(annotation=get_args(place.field.annotation)[-1])
        # Others are the branches of a union.
    return place


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _description(field: FieldInfo | None) -> str:
    if field is None:
        return "expected here"
    section = section_of(field)
    if section is not None:
        return f"a section with {', '.join(section.model_fields)}"
    return field.description or expected(field.annotation, tuple(field.metadata))


def _mismatch(place: _Place) -> str:
    value, field = place.value, place.field
    if field is None:
        return f"found {_found(value)}, expected keys such as source and model"
    if any(getattr(item, "pattern", None) for item in field.metadata):
        wanted = f"text such as: {field.description}"
    else:
        wanted = expected(field.annotation, tuple(field.metadata))
    return f"found {_found(value)}, expected {wanted}{_advice(value, field)}"


def _advice(value: Any, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        # Below difflib's 0.6, as there are few values: `classify` means `classify_audio`.
        choices = [str(argument) for argument in get_args(field.annotation)]
        near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.5)
        return f"; did you mean {near[0]}?" if near else ""
    if value is None and not field.is_required() and section_of(field) is None:
        return f"; remove the key for its default, {shortened(_default(field), _LONGEST_VALUE)}"
    takes_text = "text" in expected(field.annotation)
    if takes_text and isinstance(value, bool | int | float):
        return "; quote it if it is text"
    return ""


def _found(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"keys below it ({', '.join(map(str, value))})" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, int | float):
        return str(value)
    return f'the text "{shortened(hide_secrets(str(value)), _LONGEST_VALUE)}"'


# Our names for those of openai-whisper, faster-whisper, whisperX, whisper.cpp, whisper-ctranslate2,
# NeMo and transformers.
_FOREIGN_NAMES = {
    "beam_size": "num_beams beams beam_width beamsize",
    "channels": "channel audio_channels",
    "checkpoint": "model_size_or_path model_size model_name model_path model_dir model_id",
    "clip_timestamps": "offset_t offset_ms duration",
    "compression_ratio_threshold": "entropy_thold",
    "compute_type": "dtype torch_dtype data_type precision quantization fp16 half",
    "condition_on_prev_tokens": "condition_on_previous_text use_context",
    "cpus_per_worker": "threads cpu_threads intra_threads",
    "device": "device_index device_map use_gpu gpu",
    "hotwords": "hotword keywords key_terms",
    "initial_prompt": "prompt prompt_ids",
    "language": "lang source_lang",
    "language_mode": "multilingual",
    "logprob_threshold": "log_prob_threshold logprob_thold",
    "no_speech_threshold": "no_speech_thold",
    "num_threads": "threads cpu_threads intra_threads",
    "slots": "batch_size",
    "target_language": "target_lang",
    "task": "translate",
    "track": "audio_track audio_stream stream stream_index audio_index",
    "temperature": "temperatures temperature_increment_on_fallback temperature_inc no_fallback",
    "vad_filter": "vad vad_method speech_detection",
    "vad_min_silence_s": "min_silence_duration_ms vad_min_silence_duration_ms min_silence_ms",
    "vad_min_speech_s": "min_speech_duration_ms vad_min_speech_duration_ms min_speech_ms",
    "vad_pad_s": "speech_pad_ms vad_speech_pad_ms speech_pad_s",
    "vad_threshold": "vad_parameters vad_onset vad_thold threshold",
    "window_s": "chunk_length chunk_length_s chunk_size",
    "word_timestamps": "word_level word_timestamp return_timestamps return_token_timestamps "
    "token_timestamps split_on_word",
}
# The same for options and keys of `corpus-asr` that are no settings, or differ there.
_OPTIONS = {
    "format": "output_format",
    "max_line_width": "max_len",
    "model": f"checkpoint {_FOREIGN_NAMES['checkpoint']}",
    "threads": f"num_threads {_FOREIGN_NAMES['num_threads']}",
}
# Options of other programs without a counterpart, with the reason or an alternative.
_ABSENT = {
    "append_punctuations": "the marks that belong to a word are fixed; leave it out",
    "best_of": "one sample is drawn at each temperature; leave it out",
    "carry_initial_prompt": "it stands before the first window of each part; leave it out",
    "hf_token": "set the environment variable HF_TOKEN",
    "language_detection_segments": "several windows are averaged; leave it out",
    "language_detection_threshold": "the likeliest language is taken; leave it out",
    "log_progress": "give on_progress, a function that is called with the progress",
    "max_initial_timestamp": "it is 1 s, as in training; leave it out",
    "max_new_tokens": "a window ends where its text ends; leave it out",
    "patience": "beam search ends as in transformers, which has none; leave it out",
    "prepend_punctuations": "the marks that belong to a word are fixed; leave it out",
    "prompt_reset_on_temperature": "the text of a window above 0.5 is never a prompt; leave it out",
    "suppress_blank": "the checkpoint's generation_config.json decides; leave it out",
    "suppress_numerals": "numbers are written as the model writes them; leave it out",
    "suppress_tokens": "the checkpoint's generation_config.json lists them; leave it out",
    "without_timestamps": "segments always have times; leave it out",
}

# Our names in places where they would have another meaning.
_ELSEWHERE = {
    "extract.device": "features and speech detection are computed on CPUs; where GPUs wait for "
    "them, raise extract.workers or add CPU nodes",
}


def name_hint(name: str, here: Collection[str], elsewhere: Collection[str] = ()) -> str:
    """Return the suggested name for an unknown one, or an empty string.

    `here` are known names in this place, with or without sections, and `elsewhere` those of other
    places, which match only exactly or by a foreign name. Dashes equal underscores, and case is
    ignored.
    """
    wanted = _plain(name)
    places = [{_plain(key): key for key in reversed(list(keys))} for keys in (here, elsewhere)]
    tables = (*_FOREIGN_NAMES.items(), *_OPTIONS.items())
    synonyms = [key for key, names in tables if wanted in names.split()]
    for candidate in (wanted, *synonyms):
        for place in places:
            if candidate in place:
                return f"did you mean {place[candidate]}?"
    if wanted in _ABSENT:
        return f"there is none here: {_ABSENT[wanted]}"
    # 0.6 is difflib's default cutoff: one or two typos in a name of usual length.
    near = difflib.get_close_matches(wanted, places[0], n=1, cutoff=0.6)
    return f"did you mean {places[0][near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.strip("-").lower().replace("-", "_").rpartition(".")[2]
