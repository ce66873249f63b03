"""Base of all families' config.json: reading, validation and writing, without torch.

Names and defaults are those of `transformers.PreTrainedConfig`, version 5.23.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    OpenSettings,
    finish_saving,
    made_folder,
    plain_values,
    read_json_object,
    take_source,
    typed_values,
    write_json_object,
)
from corpus_asr.json_values import Bounds, parsed
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.units import MOST_MEL_BINS, shortened

CONFIG_NAME = "config.json"

_PROBLEM_TYPES = (
    None, "regression", "single_label_classification", "multi_label_classification",
)  # fmt: skip
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
# Minimum similarity of a keyword to a field's name to be rejected as a typo: otherwise it would be
# saved without effect.
_ALIKE = 0.85


class TypeName(str):
    """Name of a data type, such as `float16`, that equals torch's type of that name.

    Programs for transformers compare with torch's; configurations are read without torch.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, str(other).removeprefix("torch."))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _numbered_labels(count: int) -> dict[int, str]:
    return {i: f"LABEL_{i}" for i in range(count)}


def _inverse(labels: dict[Any, Any]) -> dict[Any, Any]:
    return {value: key for key, value in labels.items()}


# Far above any network in use. A config.json is read before its weights are validated, and must not
# cost hours or all memory by then.
Size = Annotated[int, Bounds(1, 1_000_000)]
Positions = Annotated[int, Bounds(1, 100_000)]  # with the width, bounds a computed table
Count = Annotated[int, Bounds(0, 1_000)]
MelBins = Annotated[int, Bounds(1, MOST_MEL_BINS)]
MAX_LABELS = 100_000
Probability = Annotated[float, Bounds(0, 1)]


def _other_name(name: str) -> Any:
    def read(self: Any) -> Any:
        return getattr(self, name)

    def write(self: Any, value: Any) -> None:
        setattr(self, name, value)

    return property(read, write, doc=f"Another name of `{name}`.")


@dataclass(kw_only=True, init=False)
class ModelConfig(OpenSettings):
    """The fields of every family's configuration; a family adds its own in a dataclass.

    `num_labels` creates that many unnamed classes; unknown keywords are kept in `extra`.
    """

    model_type: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    """Outputs that evaluation loops do not collect."""
    other_names: ClassVar[dict[str, str]] = {
        "torch_dtype": "dtype",
        "_attn_implementation": "attn_implementation",
    }
    """Aliases of fields in config.json and arguments."""
    # Not a field, since it is not in the file: the source of the checkpoint.
    _name_or_path = ""

    tie_word_embeddings: bool = True
    """Whether the output projection shares the token embedding's weights."""
    id2label: dict[int, str] = field(default_factory=lambda: _numbered_labels(2))
    """Class names of an audio classifier."""
    label2id: dict[str, int] | dict[str, str] = field(
        default_factory=lambda: _inverse(_numbered_labels(2))
    )
    problem_type: str | None = None
    """Loss of audio classification; None means regression for one class, else single label."""
    return_dict: bool = True
    """Whether networks return named outputs instead of plain tuples by default."""
    output_attentions: bool = False
    """Whether networks return attention weights by default."""
    output_hidden_states: bool = False
    """Whether networks return the states after every layer by default."""
    architectures: list[str] | None = None
    """Class that saved the checkpoint."""
    dtype: str | None = None
    """Data type of the stored weights, such as `float16`."""
    attn_implementation: str = field(default="sdpa", metadata={"in_file": False})
    """`sdpa`, `eager` (plain products), or `flash_attention_2`, an alias of `sdpa`, for which torch
    selects its flash kernel if device and type allow it."""
    extra: dict[str, Any] = field(default_factory=dict, repr=False, metadata={"in_file": False})
    """Unknown keys, kept for saving."""

    def __init__(self, *, num_labels: int | None = None, **settings: Any) -> None:
        extra = settings.pop("extra", {})
        # Not in the file: the attention implementation is the caller's choice.
        attention = settings.pop("attn_implementation", None)
        attention = settings.pop("_attn_implementation", None) or attention or "sdpa"
        names = [f.name for f in fields(self)]
        for name in [name for name in settings if name not in {*names, *self.other_names}]:
            if alike := difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE):
                raise TypeError(
                    f"making a {type(self).__name__}: found the keyword {name!r}, expected "
                    f"{alike[0]!r}; correct it, or pass it in `extra` to save it"
                )
        try:
            field_values, unknown = typed_values(
                type(self),
                self._canonical(settings, num_labels),
                path=Path(f"{type(self).__name__}(...)"),
            )
        except CheckpointError as error:
            raise TypeError(str(error).replace("reading ", "making ", 1)) from error
        unknown.pop("model_type", None)
        values = field_values | {"attn_implementation": attention, "extra": {**extra, **unknown}}
        if values.get("dtype") is not None:
            values["dtype"] = TypeName(values["dtype"])
        vars(self).update({f.name: _default(f) for f in fields(self)} | values)
        self.validate()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Any:
        """Read config.json of a folder, a URI or a hub ID.

        Keywords are `SOURCE_OPTIONS`; all others override the file. With
        `return_unused_kwargs=True`, keywords that are no settings are returned as well. Raises
        CheckpointError, also for values that no network can have.
        """
        name = str(pretrained_model_name_or_path)
        folder = fetch_checkpoint(name, weights=False, **take_source(kwargs))
        unused: dict[str, Any] = {}
        if returned := kwargs.pop("return_unused_kwargs", False):
            file_config = cls.from_json_file(folder / CONFIG_NAME)
            unused = {key: value for key, value in kwargs.items() if not hasattr(file_config, key)}
            kwargs = {key: value for key, value in kwargs.items() if key not in unused}
        config = cls.from_json_file(folder / CONFIG_NAME, **kwargs)
        config._name_or_path = name
        return (config, unused) if returned else config

    @classmethod
    def from_json_file(cls, json_file: str | PathLike[str], **kwargs: Any) -> Self:
        """Read a file like config.json; keywords override it."""
        path = Path(json_file)
        content = read_json_object(path)
        model_type = content.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CheckpointError(
                f"reading {path}: found model_type {model_type!r}, expected {cls.model_type!r}; "
                f"choose a checkpoint of that type, or AutoConfig"
            )
        try:
            config = cls._from_content(content)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"reading {path}: {error}") from error
        return cls.from_dict(config.to_dict(), **kwargs) if kwargs else config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Create a configuration from `to_dict()`; keywords override it."""
        return cls._from_content(cls._replaced(config_dict, kwargs))

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Self:
        # Unknown keys are not checked for typos: a file may be newer than this class.
        known_keys = {f.name for f in fields(cls)} | cls.other_names.keys() | {"num_labels"}
        extra = {k: v for k, v in content.items() if k not in known_keys and k != "model_type"}
        return cls(**{k: v for k, v in content.items() if k in known_keys}, extra=extra)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dtype" and value is not None:
            value = TypeName(str(value).removeprefix("torch."))
        super().__setattr__(name, value)

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        # Bounds are taken from the annotations of the fields.
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for bound in getattr(hint, "__metadata__", ()):
                value = getattr(self, name)
                self.require(bound.least <= value <= bound.most, name, str(bound))
        self.require(
            self.problem_type in _PROBLEM_TYPES, "problem_type", f"one of {_PROBLEM_TYPES}"
        )
        is_supported = self.attn_implementation in _ATTENTIONS
        self.require(is_supported, "attn_implementation", f"one of {_ATTENTIONS}")

    def require(self, right: bool, name: str, expected: str) -> None:
        """Raise ValueError with the `expected` value of a field unless `right`."""
        if not right:
            description = f"{name} is {shortened(repr(getattr(self, name)), 60)}"
            raise ValueError(
                f"making a {type(self).__name__}: {description}, expected {expected}; correct it"
            )

    @property
    def num_labels(self) -> int:
        """Number of audio classes."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != len(self.id2label):
            self.id2label = _numbered_labels(value)
            self.label2id = _inverse(self.id2label)

    torch_dtype = _other_name("dtype")
    use_return_dict = _other_name("return_dict")
    name_or_path = _other_name("_name_or_path")
    _attn_implementation = _other_name("attn_implementation")

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the settings, including unknown ones."""
        return iter(self.to_dict())

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Return this configuration, as there is no separate one for text."""
        return self

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set fields by name."""
        changed = self.from_dict(self.to_dict(), **config_dict)
        changed.attn_implementation = self.attn_implementation
        vars(self).update(vars(changed))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json: every field, unknown keys and the model type."""
        field_values = {f.name: _plain(getattr(self, f.name)) for f in self._in_file()}
        return {**plain_values(self.extra), **field_values, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return `to_dict()` without fields that have their defaults."""
        plain = {f.name: _plain(_default(f)) for f in self._in_file()}
        return {k: v for k, v in self.to_dict().items() if k not in plain or v != plain[k]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return `to_diff_dict()`, or all fields, as JSON."""
        content = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json to a folder; keywords are those of `push_to_hub`."""
        folder = made_folder(save_directory)
        write_json_object(folder / CONFIG_NAME, self.to_dict())
        finish_saving(folder, [CONFIG_NAME], push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def _in_file(cls) -> list[Any]:
        return [f for f in fields(cls) if f.metadata.get("in_file", True)]

    @classmethod
    def _canonical(cls, content: dict[str, Any], num_labels: int | None) -> dict[str, Any]:
        # Names, labels and the data type may have several forms; fields have one.
        content = cls._renamed(content)
        if content.get("dtype") is not None:
            content["dtype"] = str(content["dtype"]).removeprefix("torch.")
        for name, kind in get_type_hints(cls).items():
            if isinstance(kind, type) and issubclass(kind, ModelConfig) and name in content:
                content[name] = cls._inner(kind, name, content[name])
        for name in ("id2label", "label2id"):
            if content.get(name) is None:
                content.pop(name, None)
        stored = content.pop("num_labels", None)
        num_labels = stored if num_labels is None else num_labels
        parsed(Annotated[int, Bounds(0, MAX_LABELS)] | None, num_labels, "num_labels")
        if "id2label" in content:
            # JSON has no integer keys.
            if isinstance(labels := content["id2label"], dict):
                content["id2label"] = {
                    int(k) if str(k).isdigit() else k: v for k, v in labels.items()
                }
        elif "label2id" in content:
            content["id2label"] = _inverse(content["label2id"])
        elif num_labels is not None:
            content["id2label"] = _numbered_labels(num_labels)
        if "id2label" not in content:
            return content
        if isinstance(content["id2label"], dict) and len(content["id2label"]) > MAX_LABELS:
            raise ValueError(
                f"making a {cls.__name__}: id2label names {len(content['id2label']):,} classes, "
                f"expected at most {MAX_LABELS:,}; correct it"
            )
        if num_labels is not None and num_labels != len(content["id2label"]):
            raise ValueError(
                f"making a {cls.__name__}: num_labels is {num_labels}, but id2label names "
                f"{len(content['id2label'])} classes; remove one of them"
            )
        if "label2id" not in content and isinstance(content["id2label"], dict):
            content["label2id"] = _inverse(content["id2label"])
        return content

    @classmethod
    def _inner(cls, kind: type["ModelConfig"], name: str, content: Any) -> Any:
        """Return the configuration inside this one, from the content under its name."""
        if not isinstance(content, dict | None):
            return content  # a configuration, or rejected by its type
        model_type = (content or {}).get("model_type", kind.model_type)
        if model_type != kind.model_type:
            raise ValueError(
                f"making a {cls.__name__}: {name} has the model_type {model_type!r}, expected "
                f"{kind.model_type!r}; choose another checkpoint"
            )
        return kind.from_dict(content or {})

    @classmethod
    def _renamed(cls, content: dict[str, Any]) -> dict[str, Any]:
        # If a field is given under two names, its own takes precedence.
        renamed = {cls.other_names.get(key, key): value for key, value in content.items()}
        return renamed | {key: content[key] for key in content.keys() - cls.other_names.keys()}

    @classmethod
    def _replaced(cls, content: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
        content, by = cls._renamed(content), cls._renamed(by)
        # Labels in any form replace those in all forms: together they could conflict.
        labels = {"num_labels", "id2label", "label2id"}
        if labels & by.keys():
            content = {key: value for key, value in content.items() if key not in labels}
        return content | by


@dataclass(kw_only=True, init=False)
class EncoderDecoderConfig(ModelConfig):
    """The fields shared by configurations of encoder-decoders."""

    other_names: ClassVar[dict[str, str]] = {
        **ModelConfig.other_names,
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_key_value_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    encoder_layerdrop: Probability = 0.0
    """Probability of skipping an encoder layer in training."""
    decoder_layerdrop: Probability = 0.0
    use_cache: bool = True
    """Whether the decoder returns keys and values by default."""
    is_encoder_decoder: bool = True
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    init_std: float = 0.02
    """Standard deviation of randomly initialized weights."""

    hidden_size = _other_name("d_model")
    num_attention_heads = _other_name("encoder_attention_heads")
    num_hidden_layers = _other_name("encoder_layers")

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            heads = getattr(self, name)
            if self.d_model % heads:
                raise ValueError(
                    f"making a {type(self).__name__}: d_model is {self.d_model}, and {name} is "
                    f"{heads}, expected a divisor; set both"
                )


def _default(of: Any) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ModelConfig) else plain_values(value)
