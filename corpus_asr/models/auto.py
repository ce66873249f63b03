"""Auto classes that load a checkpoint by its family, with transformers' names."""

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import FAMILIES, Family, family_of, family_of_files, resolve
from corpus_asr.families.saved_files import SOURCE_OPTIONS, take_source
from corpus_asr.storage.model_files import fetch_checkpoint

# Classes of this layer by role and family; all others are in `Family`. They are referenced by name,
# so that classes without torch load without it.
_WHISPER, _SPEECH2TEXT = "corpus_asr.models.whisper", "corpus_asr.models.speech2text"
_GENERATION = "corpus_asr.models.generation"

_CLASSES = {
    "feature_extractor": {
        "whisper": f"{_WHISPER}.processor:WhisperFeatureExtractor",
        "speech_to_text": f"{_SPEECH2TEXT}.processor:Speech2TextFeatureExtractor",
    },
    "processor": {
        "whisper": f"{_WHISPER}.processor:WhisperProcessor",
        "speech_to_text": f"{_SPEECH2TEXT}.processor:Speech2TextProcessor",
    },
    "speech_seq2seq": {
        "whisper": f"{_GENERATION}.whisper:WhisperForConditionalGeneration",
        "speech_to_text": f"{_GENERATION}.speech2text:Speech2TextForConditionalGeneration",
    },
    "causal_lm": {"whisper": f"{_GENERATION}.whisper:WhisperForCausalLM"},
}


def _class_of(family: Family, role: str) -> str | None:
    if role in _CLASSES:
        return _CLASSES[role].get(family.model_type)
    reference: str | None = getattr(family, role)
    return reference


class _AutoClass:
    """Base of classes that only load and are never instantiated."""

    _role: ClassVar[str]  # a key of `_CLASSES` or a field of `Family`

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        raise TypeError(
            f"making {name}: found a constructor call, expected {name}.from_pretrained(...); call "
            "that"
        )

    @classmethod
    def _load(cls, name: str | PathLike[str], family: Family, options: dict[str, Any]) -> Any:
        reference = _class_of(family, cls._role)
        if reference is None:
            raise CheckpointError(
                f"loading {name} by {cls.__name__}: found the family {family.model_type}, "
                "expected one with such a class; choose another checkpoint"
            )
        return resolve(reference).from_pretrained(name, **options)


class _AutoFiles(_AutoClass):
    """Loads classes without weights; the folder need not be a complete checkpoint."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Any:
        """Load from a folder, a URI, a hub ID, or a saved file.

        `SOURCE_OPTIONS` select the source, and a `config` the family of the files; all other
        keywords are passed on.
        """
        options = dict(kwargs)
        source, config = take_source(options), options.pop("config", None)
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            family = _family_of_config(config) or family_of_files(path.parent)
            return cls._load(path, family, options)
        name = str(pretrained_model_name_or_path)
        folder = fetch_checkpoint(name, weights=False, expect=None, **source)
        return cls._load(folder, _family_of_config(config) or family_of_files(folder), options)


class AutoConfig(_AutoFiles):
    """Loads a checkpoint's configuration."""

    _role = "config"


class AutoTokenizer(_AutoFiles):
    """Loads a checkpoint's tokenizer."""

    _role = "tokenizer"


class AutoFeatureExtractor(_AutoFiles):
    """Loads a checkpoint's feature extractor."""

    _role = "feature_extractor"


class AutoProcessor(_AutoFiles):
    """Loads a checkpoint's feature extractor and tokenizer as one."""

    _role = "processor"


class _AutoModel(_AutoClass):
    """Loads a checkpoint's model with one kind of head."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Any:
        """Load the model from a folder, a URI or a hub ID with the class of its family."""
        options = dict(kwargs)
        source = take_source({name: options[name] for name in SOURCE_OPTIONS if name in options})
        folder = fetch_checkpoint(str(pretrained_model_name_or_path), weights=False, **source)
        family = _family_of_config(options.get("config")) or family_of(folder)
        return cls._load(pretrained_model_name_or_path, family, options)


class AutoModelForSpeechSeq2Seq(_AutoModel):
    """Loads a checkpoint's speech recognition encoder-decoder."""

    _role = "speech_seq2seq"


class AutoModelForCausalLM(_AutoModel):
    """Loads a checkpoint's decoder, such as for an assistant."""

    _role = "causal_lm"


def _family_of_config(config: Any) -> Family | None:
    return FAMILIES.get(getattr(config, "model_type", ""))
