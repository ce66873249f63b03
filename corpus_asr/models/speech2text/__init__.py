"""Speech2Text under the class names of `transformers`, imported on demand.

Importing this package imports no torch, so what needs none stays without it.
"""

from typing import TYPE_CHECKING

from corpus_asr.models.lazy import lazy_names

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
    from corpus_asr.models.speech2text.model import Speech2TextForConditionalGeneration
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

_MODULES = {
    "corpus_asr.families.generation_config": ("GenerationConfig",),
    "corpus_asr.families.speech2text.config": ("Speech2TextConfig",),
    "corpus_asr.families.speech2text.model": ("Speech2TextModel",),
    "corpus_asr.families.speech2text.tokenizer": ("Speech2TextTokenizer",),
    "corpus_asr.models.auto": (
        "AutoConfig",
        "AutoFeatureExtractor",
        "AutoModelForSpeechSeq2Seq",
        "AutoProcessor",
        "AutoTokenizer",
    ),
    "corpus_asr.models.speech2text.model": ("Speech2TextForConditionalGeneration",),
    "corpus_asr.models.speech2text.processor": (
        "Speech2TextFeatureExtractor",
        "Speech2TextProcessor",
    ),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
