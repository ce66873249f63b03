"""Generation settings of a checkpoint: generation_config.json.

Attributes correspond to those of `transformers.GenerationConfig`; None means unset. Names are those
of the file; if it is missing, config.json is read.
"""

from copy import deepcopy
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from corpus_asr.errors import CheckpointError
from corpus_asr.families.model_config import CONFIG_NAME
from corpus_asr.families.saved_files import (
    OpenSettings,
    finish_saving,
    made_folder,
    optional_object,
    plain_values,
    read_json_object,
    take_source,
    typed_values,
    write_json_object,
)
from corpus_asr.storage.model_files import fetch_checkpoint

GENERATION_NAME = "generation_config.json"

# Defaults of transformers' GenerationConfig, version 5.23: they apply if neither call nor
# checkpoint sets a value. Ours are None, to distinguish a file's own values.
DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": False,
}

_AT_LEAST = {
    "num_beams": 1, "top_k": 0, "no_repeat_ngram_size": 0, "temperature": 0, "top_p": 0,
}  # fmt: skip
# Defaults of transformers, which files often repeat without effect.
_SAMPLING_ONLY = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
_BEAMS_ONLY = {"early_stopping": False, "length_penalty": 1.0}


@dataclass(kw_only=True)
class GenerationConfig(OpenSettings):
    """Generation settings; unknown names are kept as attributes."""

    # The Trainer of transformers tests this for migration, which is never needed here.
    _from_model_config: ClassVar[bool] = False

    from_config: ClassVar[tuple[str, ...]] = (
        "max_length", "min_length", "max_new_tokens", "num_beams", "early_stopping",
        "length_penalty", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
        "do_sample", "temperature", "top_k", "top_p", "suppress_tokens", "begin_suppress_tokens",
        "forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "bos_token_id",
        "eos_token_id", "pad_token_id",
    )  # fmt: skip
    """Settings that early checkpoints have in config.json."""
    other_sources: ClassVar[tuple[str, ...]] = ()
    """Additional files with settings of a family."""

    decoder_start_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    suppress_tokens: tuple[int, ...] | None = None
    """Tokens never sampled."""
    begin_suppress_tokens: tuple[int, ...] | None = None
    """Tokens not sampled first."""

    max_length: int | None = None
    """Maximum number of tokens, prompt included."""
    max_new_tokens: int | None = None
    """Maximum number of new tokens; takes precedence over `max_length`."""

    do_sample: bool | None = None
    num_beams: int | None = None
    early_stopping: bool | str | None = None
    length_penalty: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    forced_bos_token_id: int | None = None
    num_assistant_tokens: int | None = None
    """Number of tokens that a draft model proposes per step."""

    use_cache: bool | None = None
    cache_implementation: str | None = None
    return_dict_in_generate: bool | None = None
    transformers_version: str | None = None

    extra: dict[str, Any] = field(default_factory=dict, repr=False, metadata={"in_file": False})
    """Unknown settings; each is an attribute too."""
    nulls: frozenset[str] = field(
        default=frozenset(), repr=False, compare=False, metadata={"in_file": False}
    )
    """Names that are null in the file."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | PathLike[str],
        config_file_name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Read generation_config.json; if it is missing, config.json.

        `kwargs` are `SOURCE_OPTIONS`, and settings that override those of the file, including
        unknown ones; with `return_unused_kwargs=True` an empty dictionary is returned with it, as
        in transformers. Raises CheckpointError, and ValueError for an invalid value of a keyword.
        """
        returned = kwargs.pop("return_unused_kwargs", False)
        source = take_source(kwargs)
        folder = fetch_checkpoint(str(pretrained_model_name), weights=False, expect=None, **source)
        path = folder / (config_file_name or GENERATION_NAME)
        content = optional_object(path)
        config_path = folder / CONFIG_NAME
        if not path.is_file() and config_path.is_file():
            config = read_json_object(config_path)
            path = config_path
            content = {key: config[key] for key in cls.from_config if key in config}
        derived = cls._derived(folder, content)
        if not (path.is_file() or derived):
            sources = " nor ".join((GENERATION_NAME, CONFIG_NAME, *cls.other_sources))
            raise CheckpointError(
                f"reading {folder}: found neither {sources}, expected one of them; name a "
                "checkpoint folder"
            )
        # A null in the file leaves a setting to the other files.
        file_values = {k: v for k, v in content.items() if not (v is None and k in derived)}
        values, unknown = typed_values(cls, derived | file_values, path=path)
        nulls = frozenset(key for key, value in file_values.items() if value is None)
        config_read = cls(**values, extra=unknown, nulls=nulls)
        try:
            config_read.validate()
        except ValueError as error:
            raise CheckpointError(f"reading {path}: {error}") from error
        config_read.update(**kwargs, allow_custom_entries=True)
        return (config_read, {}) if returned else config_read

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Create settings from a file's content; `kwargs` override it."""
        values, unknown = typed_values(cls, config_dict | kwargs, path=Path(GENERATION_NAME))
        return cls(**values, extra=unknown)

    @classmethod
    def from_model_config(cls, model_config: Any) -> Self:
        """Create settings from a model configuration: tokens, in early files."""
        values = {name: getattr(model_config, name, None) for name in cls.from_config}
        return cls.from_dict({name: value for name, value in values.items() if value is not None})

    @classmethod
    def _derived(cls, folder: Path, content: dict[str, Any]) -> dict[str, Any]:
        """Return settings implied by a checkpoint's other files and missing in `content`."""
        return {}

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        # The Trainer of transformers reads the maximum row length under this name.
        return dict(DEFAULTS)

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Set the settings in `kwargs`; return the other keywords.

        `defaults_only` sets only unset ones; `allow_custom_entries` accepts unknown names as
        settings too.
        """
        unused = {}
        for name, value in kwargs.items():
            is_known = hasattr(self, name) or allow_custom_entries
            if is_known and (not defaults_only or getattr(self, name, None) is None):
                setattr(self, name, value)
            else:
                unused[name] = value
        self.validate()
        return unused

    def validate(self, strict: bool = False) -> None:
        """Raise ValueError for invalid settings; with `strict` also for ineffective ones."""
        if problems := _problems(self) + (_idle_settings(self) if strict else []):
            raise ValueError(f"checking generation settings: {'; '.join(problems)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of generation_config.json: all set values, unknown names included."""
        # With nulls: null for Whisper's max_initial_timestamp_index is no limit, absence a default.
        field_values = {f.name: plain_values(getattr(self, f.name)) for f in fields(self)}
        extra, nulls = field_values.pop("extra"), field_values.pop("nulls")
        values = {
            name: value
            for name, value in field_values.items()
            if value is not None or name in nulls
        }
        return deepcopy({**extra, **values})

    def to_diff_dict(self) -> dict[str, Any]:
        """Return `to_dict()` without nulls, which are the defaults."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        config_file_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write generation_config.json; `kwargs` and errors are those of `push_to_hub`."""
        name = config_file_name or GENERATION_NAME
        folder = made_folder(save_directory)
        write_json_object(folder / name, self.to_dict())
        finish_saving(folder, [name], push_to_hub=push_to_hub, **kwargs)


def _problems(config: GenerationConfig) -> list[str]:
    problems = []
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int | float) and value >= least):
            problems.append(f"{name} is {value!r}, expected a number of at least {least}")
    if config.top_p is not None and config.top_p > 1:
        problems.append(f"top_p is {config.top_p!r}, expected a number at most 1")
    penalty = config.repetition_penalty
    if penalty is not None and not penalty > 0:
        problems.append(f"repetition_penalty is {penalty!r}, expected a number above 0")
    # The following checks compare values validated so far.
    if problems:
        return problems
    if config.early_stopping not in (None, True, False, "never"):
        problems.append(f"early_stopping is {config.early_stopping!r}, expected a bool or 'never'")
    if config.max_new_tokens is not None and config.max_new_tokens <= 0:
        problems.append(f"max_new_tokens is {config.max_new_tokens}, expected at least 1")
    forced = config.forced_bos_token_id
    if forced is not None and forced in (config.suppress_tokens or ()):
        problems.append(
            f"forced_bos_token_id is {forced}, which suppress_tokens forbids; drop one of the two"
        )
    return problems


def _idle_settings(config: GenerationConfig) -> list[str]:
    idle_settings = []
    sampling = {} if config.do_sample else _SAMPLING_ONLY
    beams = _BEAMS_ONLY if (config.num_beams or 1) == 1 else {}
    for settings, reason in ((sampling, "do_sample is not True"), (beams, "num_beams is 1")):
        for name, neutral in settings.items():
            if getattr(config, name) not in (None, neutral):
                idle_settings.append(f"{name} is set, but {reason}")
    return idle_settings
