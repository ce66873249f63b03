"""From a YAML file, overrides and the environment to settings, or to one message with all problems.

In: a path and `--set a.b=c` overrides; for a transcriber in a script, the options it was called
with. Out: frozen settings. Every problem is told at once, with its line, the nearest known key
and what was expected. Knows nothing of what the settings mean: whether a store can be reached or
a language exists is found out by those who use them.

Addresses without a scheme are local paths. Relative ones (`source.uri`, `source.manifest`,
`model.checkpoint`, `output.uri`) are relative to the current directory, not to the YAML file.
"""

import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from corpus_asr.config.base import Settings, hide_secrets
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.document import Document, KeyPath, override_value, read_document
from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.problems import booleans_in_the_wrong_place, problems_in
from corpus_asr.config.run import CLASSIFY_AUDIO, PSEUDO_LABEL, PseudoLabelConfig, RunConfig
from corpus_asr.errors import ConfigError

_Config = TypeVar("_Config", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One resolved value, as `corpus-asr plan` shows it."""

    key: str
    value: Any
    """Plain data with secrets hidden."""
    is_default: bool
    description: str


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a job.

    Args:
        path: a YAML file.
        overrides: `a.b=c` each, applied in order; the value is read as YAML.

    Raises:
        ConfigError: the file cannot be read, or anything in it is unknown, missing or mistyped.
    """
    document = read_document(path, overrides)
    labels = document.values.get("pipeline") == PSEUDO_LABEL
    return _checked(document, PseudoLabelConfig if labels else RunConfig)


def load_finetune(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read and check a fine-tuning configuration; see `load_config`."""
    return _checked(read_document(path, overrides), FinetuneConfig)


def _checked(document: Document, model: type[_Config]) -> _Config:
    values = _without_empty_sections(document.values, model)
    problems = list(document.problems)
    problems += booleans_in_the_wrong_place(values, model=model)
    config: _Config | None = None
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        known = {problem.key for problem in problems}
        found = problems_in(error, model=model, values=values)
        problems += [problem for problem in found if problem.key not in known]
    if problems or config is None:
        raise document.error(problems)
    return config


def decoding_from(options: Mapping[str, Any]) -> DecodingSettings:
    """Turn keyword options of a transcriber into settings.

    Args:
        options: keys of the `decoding` section. `language=None` is the way libraries ask for
            detection, so it is taken as `auto`.

    Raises:
        ConfigError: an option is unknown or its value is not admitted; all such are named.
    """
    values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items()
    }
    if values.get("language", "") is None:
        values["language"] = "auto"
    problems = list(booleans_in_the_wrong_place(values, model=DecodingSettings))
    settings: DecodingSettings | None = None
    try:
        settings = DecodingSettings.model_validate(values)
    except ValidationError as error:
        known = {problem.key for problem in problems}
        found = problems_in(error, model=DecodingSettings, values=values)
        problems += [problem for problem in found if problem.key not in known]
    if problems or settings is None:
        told = "; ".join(
            f"{problem.dotted}: {problem.message}" if problem.key else problem.message
            for problem in problems
        )
        raise ConfigError(f"reading the decoding options: {told}")
    return settings


def decoding_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` decoding options of a command line, `decoding.` before the key or not.

    Raises:
        ConfigError: an option has no `=`, or a value that is not YAML.
    """
    options: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"reading --set {override}: expected key=value, such as language=en")
        options[key.strip().removeprefix("decoding.")] = override_value(text, f"--set {key}")
    return options


def resolved(config: Settings) -> dict[str, Any]:
    """Return every value, defaults included, as plain data with secrets hidden."""
    plain = _hidden(config.model_dump(mode="json"))
    assert isinstance(plain, dict)
    return plain


def settings_of(config: RunConfig) -> Iterator[Setting]:
    """Yield every value in the order of the file, saying which the user left out."""
    yield from _settings(config, ())


def _settings(settings: Settings, above: KeyPath) -> Iterator[Setting]:
    plain = resolved(settings)
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _settings(value, (*above, name))
            continue
        yield Setting(
            key=".".join((*above, name)),
            value=plain[name],
            is_default=name not in settings.model_fields_set,
            description=field.description or "",
        )


def _without_empty_sections(values: Mapping[str, Any], model: type[Settings]) -> dict[str, Any]:
    """Read a section whose keys are all commented out, which YAML makes null, as a section."""
    sections = {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }
    return {
        name: {} if value is None and name in sections else value for name, value in values.items()
    }


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_hidden(child) for child in value]
    return hide_secrets(value) if isinstance(value, str) else value


WIDTH = 88
USUAL_KEYS = frozenset(
    {
        "source.uri", "source.endpoint_url", "model.checkpoint", "decoding.language",
        "decoding.word_timestamps", "classification.task", "classification.languages",
        "output.uri", "output.endpoint_url", "cluster.address", "selection.min_confidence",
        "dataset.uri", "dataset.format",
    }
)  # fmt: skip
"""What most people set; a file has these, or all keys."""

_UNREAD = {CLASSIFY_AUDIO: {"decoding"}}
_PLAIN_WORD = re.compile(r"[A-Za-z/][\w/.@+-]*(?::[\w/.@+-]+)*", re.ASCII)
_NOT_TEXT = {"true", "false", "null"}


def written(pipeline: str, chosen: Mapping[str, Any], *, full: bool) -> str:
    """Return the YAML of a job.

    Args:
        pipeline: one of `RunConfig.pipeline`.
        chosen: values by key, as `source.uri`. All other keys are there as comments that show
            their defaults; what has none must be chosen.
        full: whether every key is there, or those that most people set.
    """
    model = PseudoLabelConfig if pipeline == PSEUDO_LABEL else RunConfig
    unread = _UNREAD.get(pipeline, {"classification"})
    lines = [*_comment("What is done.", ""), f"pipeline: {pipeline}"]
    for name, field in model.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Settings)) or name in unread:
            continue
        keys = list(_keys(name, section, chosen, None if full else USUAL_KEYS))
        if keys:
            lines += ["", *_comment(_first_sentence(section), ""), f"{name}:", *keys]
    return "\n".join(lines) + "\n"


def yaml_value(value: object) -> str:
    """Write a value in YAML: JSON, which YAML includes, but plain words without quotes."""
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)


def _keys(
    section: str, model: type[Settings], chosen: Mapping[str, Any], wanted: Collection[str] | None
) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{section}.{name}"
        if key not in chosen and wanted is not None and key not in wanted:
            continue
        yield from _comment(field.description or "", "  ")
        if key in chosen:
            yield f"  {name}: {yaml_value(chosen[key])}"
        else:
            yield f"  # {name}: {_default(field)}"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    plain = list(default) if isinstance(default, tuple) else default
    return yaml_value(plain)


def _comment(text: str, indent: str) -> Iterator[str]:
    start = f"{indent}# "
    return iter(textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start))


def _first_sentence(model: type[Settings]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())
