"""What shells offer when Tab is pressed: keys and values of `--set`, names of checkpoints."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin


def override(incomplete: str) -> list[str]:
    """Complete `key=value` of a job."""
    return _assignments(incomplete, _job())


def training_override(incomplete: str) -> list[str]:
    """Complete `key=value` of a training."""
    from corpus_asr.config.finetune import FinetuneConfig

    return _assignments(incomplete, dict(_keys(FinetuneConfig, "")))


def decoding_override(incomplete: str) -> list[str]:
    """Complete `key=value` of the decoding section."""
    section = "decoding."
    keys = {key[len(section) :]: kind for key, kind in _job().items() if key.startswith(section)}
    return _assignments(incomplete, keys)


def checkpoint(incomplete: str) -> list[str]:
    """Complete checkpoints of the package, short names, and well-known names of the hub."""
    from corpus_asr.storage.model_files import KNOWN_NAMES, PACKAGED, SHORT_NAMES

    return _beginning((*PACKAGED, *SHORT_NAMES, *KNOWN_NAMES), incomplete)


def device(incomplete: str) -> list[str]:
    """Complete devices."""
    return _beginning(("auto", "cpu", "cuda"), incomplete)


def task(incomplete: str) -> list[str]:
    """Complete tasks."""
    return _beginning(_job_values("decoding.task"), incomplete)


def strategy(incomplete: str) -> list[str]:
    """Complete strategies."""
    return _beginning(_job_values("decoding.strategy"), incomplete)


def language(incomplete: str) -> list[str]:
    """Complete the codes of Whisper's languages."""
    from corpus_asr.languages import LANGUAGES

    return _beginning(LANGUAGES, incomplete)


def _assignments(incomplete: str, keys: dict[str, Any]) -> list[str]:
    found = [f"{key}=" for key in keys if f"{key}=".startswith(incomplete)]
    if len(found) == 1 or "=" in incomplete:
        key = (found[0] if found else incomplete).partition("=")[0]
        # More than one word, so that no shell closes with a blank what is to go on; and bash, which
        # takes `=` for the beginning of another word, shows the values now or never.
        found = [f"{key}=", *(f"{key}={value}" for value in _values(keys.get(key)))]
    return _beginning(found, incomplete)


def _job() -> dict[str, Any]:
    from corpus_asr.config.run import PseudoLabelConfig, RunConfig

    # Of a key that both have, the general type says more: `pipeline`.
    return dict(_keys(PseudoLabelConfig, "")) | dict(_keys(RunConfig, ""))


def _keys(settings: Any, above: str) -> Iterator[tuple[str, Any]]:
    from corpus_asr.config.decoding import Settings

    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _keys(kind, f"{above}{name}.")
        else:
            yield f"{above}{name}", kind


def _job_values(key: str) -> list[str]:
    return _values(_job().get(key))


def _values(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [word for part in get_args(kind) for word in _values(part)]


def _beginning(words: Any, incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
