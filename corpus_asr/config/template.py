"""From the settings' models to a commented YAML file.

In: a pipeline, and the values that a user chose. Out: text that `load_config` reads, in which every
key stands below its description. Written from the models themselves, so that it has the keys that
there are. Knows nothing of files.
"""

import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from corpus_asr.config.base import Settings
from corpus_asr.config.labelling import PseudoLabelConfig
from corpus_asr.config.run import CLASSIFY_AUDIO, PSEUDO_LABEL, RunConfig

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
