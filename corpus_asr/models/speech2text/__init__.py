"""Speech2Text under the class names of `transformers`; importing the package imports no torch."""

from typing import TYPE_CHECKING

from corpus_asr.models import lazy_names

if TYPE_CHECKING:
    from corpus_asr.families.generation_config import GenerationConfig
    from corpus_asr.families.speech2text.config import Speech2TextConfig
    from corpus_asr.families.speech2text.model import Speech2TextModel
    from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
    from corpus_asr.models.auto import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModelForSpeechSeq2Seq,
        AutoProcessor,
        AutoTokenizer,
    )
    from corpus_asr.models.generation.speech2text import Speech2TextForConditionalGeneration
    from corpus_asr.models.speech2text.processor import (
        Speech2TextFeatureExtractor,
        Speech2TextProcessor,
    )

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoModelForSpeechSeq2Seq",
    "AutoProcessor",
    "AutoTokenizer",
    "GenerationConfig",
    "Speech2TextConfig",
    "Speech2TextFeatureExtractor",
    "Speech2TextForConditionalGeneration",
    "Speech2TextModel",
    "Speech2TextProcessor",
    "Speech2TextTokenizer",
]

# Modules that import torch come last.
_MODULES = (
    "corpus_asr.families.generation_config",
    "corpus_asr.families.speech2text.config",
    "corpus_asr.families.speech2text.tokenizer",
    "corpus_asr.models.auto",
    "corpus_asr.models.speech2text.processor",
    "corpus_asr.families.speech2text.model",
    "corpus_asr.models.generation.speech2text",
)

__getattr__, __dir__ = lazy_names(__name__, __all__, _MODULES)
