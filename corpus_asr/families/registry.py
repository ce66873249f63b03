"""Registry of model families, and detection of a checkpoint folder's family."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from corpus_asr.array_types import Float16, Float32
from corpus_asr.decoding.recognizer import Recognizer
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.saved_files import checked, optional_object, read_json_object
from corpus_asr.units import HOP_SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """References to the classes of one model family, each in the form `"module:Name"`."""

    model_type: str
    """`model_type` in a checkpoint's config.json."""
    class_prefix: str
    """Prefix of its class names in files written by `transformers`."""
    config: str | None = None
    """Class with `from_pretrained(folder)`: the fields of config.json."""
    generation: str | None = None
    """Class with `from_pretrained(folder)`: a checkpoint's generation settings."""
    tokenizer: str | None = None
    """Class with `from_pretrained(folder)`: the tokenizer."""
    part_features: str
    """Class with `from_folder(folder)`: samples of one part to `PartFeatures`; torch-free.

    Its `kind` names its features, equal for checkpoints that can share them; `num_mel_bins` is the
    number of values per row; `language_window_frames` the length of windows for language detection,
    None without it. For a `recognizer` or `prompts` it also has `window(features, start, end)`, the
    model input, and for a `recognizer` `loudness(features)`."""
    slot_model: str | None = None
    """Class with `from_pretrained(folder, dtype=, device=)` and `slot_model(int8=, consume=)`;
    imports torch. None for models that process a window once."""
    wide: bool = False
    """Whether hidden states may exceed the range of float16: `auto` is then bfloat16 on a GPU."""
    prompts: str | None = None
    """`AudioPrompts` class of slot models that are decoder-only."""
    recognizer: str | None = None
    """`Recognizer` class of models that process a window once; may import torch."""
    word_aligner: str | None = None
    """Class with `from_folder(folder, device=, dtype=)` that aligns the words of a text: by CTC, or
    by markers of an aligner of the family. None for families without one; imports torch."""
    audio_classifier: str | None = None
    """Class with `from_pretrained(folder, dtype=, device=)` that implements `OnePassModel`, scores
    the classes of windows, and has their `check`; None if there is none; imports torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFeatures:
    """Model features of one part of a recording."""

    values: Float16[np.ndarray, "frame mel"]
    """One row per 10 ms; trailing rows that are constantly `pad_value` are omitted."""
    pad_value: float
    """The value of every frame after the last one."""


class SamplePartFeatures:
    """Raw samples, 10 ms per row, in float16, whose rounding error is 66 dB below each sample."""

    kind = "samples"
    num_mel_bins = HOP_SAMPLES
    language_window_frames = None

    @classmethod
    def from_folder(cls, folder: Path) -> "SamplePartFeatures":
        """Return the features; no file is read."""
        return cls()

    def __call__(self, samples: Float32[np.ndarray, " sample"]) -> PartFeatures:
        """Reshape samples to rows; the last one is padded with silence."""
        rows = -(-samples.size // HOP_SAMPLES)
        values = np.zeros(rows * HOP_SAMPLES, dtype=np.float16)
        values[: samples.size] = samples
        return PartFeatures(values=values.reshape(rows, HOP_SAMPLES), pad_value=0.0)

    def window(
        self, features: Float16[np.ndarray, "frame hop"], start: int, end: int
    ) -> Float32[np.ndarray, " sample"]:
        """Return the concatenated samples between two hops."""
        return features[start:end].astype(np.float32).reshape(-1)

    def loudness(self, features: Float16[np.ndarray, "frame hop"]) -> Float32[np.ndarray, " frame"]:
        """Return a loudness measure per row; larger is louder."""
        means: Float32[np.ndarray, " frame"] = np.abs(features.astype(np.float32)).mean(axis=1)
        return means


SETTINGS_FILES = {"preprocessor_config.json": None, "processor_config.json": "feature_extractor"}
"""Files with settings of feature extraction, and the key in each."""


def check_computed(
    settings: Mapping[str, Any], computed: Mapping[str, Any], *, path: Path, front_end: str
) -> None:
    """Raise CheckpointError for feature settings that differ from `computed`; absent ones match."""
    wrong = [
        f"{name} {settings[name]!r} (expected {value!r})"
        for name, value in computed.items()
        if settings.get(name, value) != value
    ]
    if wrong:
        raise CheckpointError(
            f"reading {path}: found {', '.join(wrong)}, expected {front_end} with the bins of "
            "config.json; use such a checkpoint, or correct the file"
        )


def check_front_end(folder: Path, computed: Mapping[str, Any], *, front_end: str) -> None:
    """Raise CheckpointError if a folder's files of feature settings differ from `computed`."""
    for name, key in SETTINGS_FILES.items():
        path = folder / name
        settings = optional_object(path)
        if key is not None:
            settings = checked(dict, settings.get(key, {}), key, path=path)
        check_computed(settings, computed, path=path, front_end=front_end)


_WHISPER = Family(
    model_type="whisper",
    class_prefix="Whisper",
    config="corpus_asr.families.whisper.config:WhisperConfig",
    generation="corpus_asr.families.whisper.config:GenerationConfig",
    tokenizer="corpus_asr.families.whisper.tokenizer:WhisperTokenizer",
    part_features="corpus_asr.families.whisper.features:WhisperPartFeatures",
    slot_model="corpus_asr.families.whisper.model:WhisperSeq2SeqLM",
    audio_classifier="corpus_asr.families.whisper.classifier:WhisperWindowClassifier",
)

_SPEECH2TEXT = Family(
    model_type="speech_to_text",
    class_prefix="Speech2Text",
    config="corpus_asr.families.speech2text.config:Speech2TextConfig",
    generation="corpus_asr.families.generation_config:GenerationConfig",
    tokenizer="corpus_asr.families.speech2text.tokenizer:Speech2TextTokenizer",
    part_features="corpus_asr.families.speech2text.features:Speech2TextPartFeatures",
    slot_model="corpus_asr.families.speech2text.model:Speech2TextSeq2SeqLM",
)

_PARAKEET = tuple(
    Family(
        model_type=f"parakeet_{head.lower()}",
        class_prefix="Parakeet",
        config=f"corpus_asr.families.parakeet.config:Parakeet{head}Config",
        part_features="corpus_asr.families.parakeet.features:ParakeetPartFeatures",
        recognizer="corpus_asr.families.parakeet.recognizer:ParakeetRecognizer",
        word_aligner="corpus_asr.families.parakeet.alignment:WordAligner"
        if head == "CTC"
        else None,
    )
    for head in ("CTC", "RNNT", "TDT")
)

_QWEN3_ASR = Family(
    model_type="qwen3_asr",
    class_prefix="Qwen3ASR",
    wide=True,  # text models trained in bfloat16
    config="corpus_asr.families.qwen3_asr.config:Qwen3ASRConfig",
    part_features="corpus_asr.families.qwen3_asr.features:Qwen3ASRPartFeatures",
    slot_model="corpus_asr.families.qwen3_asr.model:Qwen3ASRSeq2SeqLM",
    prompts="corpus_asr.families.qwen3_asr.tokenizer:Qwen3ASRPrompts",
    word_aligner="corpus_asr.families.qwen3_asr.alignment:Qwen3Aligner",
)

# Names, not classes: workers that extract features must not import torch.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in (_SPEECH2TEXT, _WHISPER, *_PARAKEET, _QWEN3_ASR)}
)
"""Every family by the `model_type` of its checkpoints."""


def family_of(folder: Path) -> Family:
    """Return a checkpoint's family by `model_type` in its config.json; raises CheckpointError."""
    path = folder / "config.json"
    model_type = read_json_object(path).get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        families = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"reading {path}: found model_type {model_type!r}, expected one of: {families}; "
            f"choose a checkpoint of a supported family"
        )
    return family


def part_features(folder: Path) -> Any:
    """Return the feature extractor of parts for a checkpoint; raises CheckpointError."""
    return resolve(family_of(folder).part_features).from_folder(folder)


def further_folders(
    main: Path, others: Iterable[Path], *, family: Family | None = None
) -> dict[str, Path]:
    """Return a folder for each kind of features that others need and the main checkpoint does not.

    `family` is that of the main checkpoint, if its folder does not define it.

    Raises:
        CheckpointError: a folder is of no known family, or needs unsupported features.
    """
    family = family or family_of(main)
    usual = resolve(family.part_features).from_folder(main).kind
    kinds = ((part_features(folder).kind, folder) for folder in others)
    return {kind: folder for kind, folder in kinds if kind != usual}


# Files of a folder without config.json that name its classes. transformers uses two names for
# tokenizers.
_CLASS_KEYS = (
    ("preprocessor_config.json", ("processor_class", "feature_extractor_type")),
    ("processor_config.json", ("processor_class",)),
    ("tokenizer_config.json", ("processor_class", "tokenizer_class")),
)
_CLASS_KINDS = ("Processor", "FeatureExtractor", "Tokenizer", "TokenizerFast")


def family_of_files(folder: Path) -> Family:
    """Return the family of saved files that may be incomplete; raises CheckpointError."""
    if (folder / "config.json").is_file():
        return family_of(folder)
    names = []
    for name, keys in _CLASS_KEYS:
        content = optional_object(folder / name)
        for key in keys:
            written = content.get(key)
            for family in FAMILIES.values():
                if written in [f"{family.class_prefix}{kind}" for kind in _CLASS_KINDS]:
                    return family
            if written is not None:
                names.append(f"{key} {written!r} in {name}")
    families = ", ".join(sorted(FAMILIES))
    raise CheckpointError(
        f"reading {folder}: found {', '.join(names) or 'no config.json and no class by name'}, "
        f"expected files of one of: {families}; choose a checkpoint of a supported family"
    )


RECOGNIZERS = "corpus_asr.recognizers"
"""Entry point group of recognizers in installed packages."""


USERS_FEATURES = "corpus_asr.families.registry:SamplePartFeatures"


def users_family(recognizer: str) -> Family:
    """Return the family of a custom model, by its class or the name of an entry point.

    Raises:
        ConfigError: neither of the form `package.module:Class` nor an installed name.
    """
    reference = recognizer
    if ":" not in recognizer:
        offered = {point.name: point.value for point in entry_points(group=RECOGNIZERS)}
        if recognizer not in offered:
            names = ", ".join(sorted(offered)) or "none is installed"
            raise ConfigError(
                f"reading model.recognizer: found {recognizer!r}, expected package.module:Class, "
                f"or a recognizer of an installed package ({names}); correct it"
            )
        reference = offered[recognizer]
    return Family(
        model_type=recognizer,
        class_prefix="",
        part_features=USERS_FEATURES,
        recognizer=reference,
    )


def recognizer_class(family: Family) -> type[Recognizer]:
    """Import the class that loads a family's models.

    Raises:
        ConfigError: it cannot be imported, or is not a `Recognizer`.
    """
    assert family.recognizer is not None, "the family's models read a window once"
    try:
        kind = resolve(family.recognizer)
    except Exception as error:  # of a custom module
        raise ConfigError(
            f"importing the recognizer {family.recognizer}: {type(error).__name__}: {error}; "
            "install its package on every machine, or correct model.recognizer"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Recognizer)):
        raise ConfigError(
            f"importing the recognizer {family.recognizer}: found {kind!r}, expected a subclass "
            "of corpus_asr.Recognizer; correct model.recognizer"
        )
    if missing := sorted(kind.__abstractmethods__):
        raise ConfigError(
            f"importing the recognizer {family.recognizer}: found no {', '.join(missing)}, "
            "expected all methods of corpus_asr.Recognizer; write them"
        )
    return kind


def resolve(reference: str | None) -> Any:
    """Import a `Family` reference; None raises ValueError."""
    module_name, separator, name = (reference or "").partition(":")
    if not (module_name and separator and name.isidentifier()):
        raise ValueError(f'resolving {reference!r}: expected the form "module:Name"')
    return getattr(importlib.import_module(module_name), name)
