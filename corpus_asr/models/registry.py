"""Which model families there are, and which one a checkpoint folder belongs to.

In: a checkpoint folder. Out: its `Family`; its parts are imported only when resolved. A new family
is a folder under `models/` and one entry here. Knows nothing of what a family's parts do.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from corpus_asr.errors import CheckpointError
from corpus_asr.models.config_file import read_json_object
from corpus_asr.models.family import Family

_WHISPER = Family(
    model_type="whisper",
    config="corpus_asr.models.whisper.config:WhisperConfig",
    generation="corpus_asr.models.whisper.generation_config:GenerationConfig",
    tokenizer="corpus_asr.models.whisper.tokenizer:WhisperTokenizer",
    part_features="corpus_asr.models.whisper.features:WhisperPartFeatures",
    jobs="corpus_asr.transcription.part_job:WhisperJobs",
    slot_model="corpus_asr.models.whisper.model:WhisperForConditionalGeneration",
    feature_extractor="corpus_asr.models.whisper.feature_extractor:WhisperFeatureExtractor",
    processor="corpus_asr.models.whisper.processor:WhisperProcessor",
    speech_seq2seq="corpus_asr.models.whisper.model:WhisperForConditionalGeneration",
    audio_classifier="corpus_asr.models.whisper.classifier_slots:WhisperClassifierSlots",
)

_SPEECH2TEXT = Family(
    model_type="speech_to_text",
    config="corpus_asr.models.speech2text.config:Speech2TextConfig",
    generation="corpus_asr.models.generation_config:GenerationConfig",
    tokenizer="corpus_asr.models.speech2text.tokenizer:Speech2TextTokenizer",
    part_features="corpus_asr.models.speech2text.features:Speech2TextPartFeatures",
    jobs="corpus_asr.transcription.speech2text.part_job:Speech2TextJobs",
    slot_model="corpus_asr.models.speech2text.model:Speech2TextForConditionalGeneration",
    feature_extractor=(
        "corpus_asr.models.speech2text.feature_extractor:Speech2TextFeatureExtractor"
    ),
    processor="corpus_asr.models.speech2text.processor:Speech2TextProcessor",
    speech_seq2seq="corpus_asr.models.speech2text.model:Speech2TextForConditionalGeneration",
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.model_type: family for family in (_SPEECH2TEXT, _WHISPER)}
)
"""Every family by the `model_type` of its checkpoints."""


def family_of(folder: Path) -> Family:
    """Find the family of a checkpoint by the `model_type` in its config.json.

    Raises:
        CheckpointError: config.json is missing or unreadable, or names no known family.
    """
    path = folder / "config.json"
    model_type = read_json_object(path).get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"reading {path}: found model_type {model_type!r}, expected one of: {known}; "
            f"choose a checkpoint of a supported family"
        )
    return family


# Where a folder without config.json says which classes wrote it.
_CLASS_KEYS = (
    ("preprocessor_config.json", ("processor_class", "feature_extractor_type")),
    ("processor_config.json", ("processor_class",)),
    ("tokenizer_config.json", ("processor_class", "tokenizer_class")),
)


def family_of_files(folder: Path) -> Family:
    """Find the family of saved files that need not be a whole checkpoint.

    Raises:
        CheckpointError: no file names a known family or class.
    """
    if (folder / "config.json").is_file():
        return family_of(folder)
    found = []
    for name, keys in _CLASS_KEYS:
        content = read_json_object(folder / name) if (folder / name).is_file() else {}
        for key in keys:
            written = content.get(key)
            for family in FAMILIES.values():
                if written in _class_names(family):
                    return family
            if written is not None:
                found.append(f"{key} {written!r} in {name}")
    known = ", ".join(sorted(FAMILIES))
    raise CheckpointError(
        f"reading {folder}: found {', '.join(found) or 'no config.json and no class by name'}, "
        f"expected files of one of: {known}; choose a checkpoint of a supported family"
    )


def _class_names(family: Family) -> set[str]:
    references = (family.processor, family.feature_extractor, family.tokenizer)
    names = {reference.partition(":")[2] for reference in references if reference}
    # transformers writes its tokenizers under two names.
    return names | {f"{family.tokenizer.partition(':')[2]}Fast"}


def resolve(reference: str) -> Any:
    """Import what a `Family` reference names.

    Raises:
        ValueError: `reference` does not read `"module:Name"`.
    """
    module_name, separator, name = reference.partition(":")
    if not (module_name and separator and name.isidentifier()):
        raise ValueError(f'resolving {reference!r}: expected the form "module:Name"')
    return getattr(importlib.import_module(module_name), name)
