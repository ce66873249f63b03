"""Speech2Text under the class names of `transformers`, imported on demand.

A name goes in; its class comes out. Importing this package imports nothing else, so the half that
needs no torch stays without it.
"""

from typing import TYPE_CHECKING

from corpus_asr.models.lazy import lazy_names

if TYPE_CHECKING:
    from corpus_asr.models.auto import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModelForSpeechSeq2Seq,
        AutoProcessor,
        AutoTokenizer,
    )
    from corpus_asr.models.generation_config import GenerationConfig
    from corpus_asr.models.speech2text.config import Speech2TextConfig
    from corpus_asr.models.speech2text.feature_extractor import Speech2TextFeatureExtractor
    from corpus_asr.models.speech2text.model import (
        Speech2TextForConditionalGeneration,
        Speech2TextModel,
    )
    from corpus_asr.models.speech2text.processor import Speech2TextProcessor
    from corpus_asr.models.speech2text.tokenizer import Speech2TextTokenizer

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

_HERE = "corpus_asr.models.speech2text"
_HOMES = {
    "AutoConfig": "corpus_asr.models.auto:AutoConfig",
    "AutoFeatureExtractor": "corpus_asr.models.auto:AutoFeatureExtractor",
    "AutoModelForSpeechSeq2Seq": "corpus_asr.models.auto:AutoModelForSpeechSeq2Seq",
    "AutoProcessor": "corpus_asr.models.auto:AutoProcessor",
    "AutoTokenizer": "corpus_asr.models.auto:AutoTokenizer",
    "GenerationConfig": "corpus_asr.models.generation_config:GenerationConfig",
    "Speech2TextConfig": f"{_HERE}.config:Speech2TextConfig",
    "Speech2TextFeatureExtractor": f"{_HERE}.feature_extractor:Speech2TextFeatureExtractor",
    "Speech2TextForConditionalGeneration": f"{_HERE}.model:Speech2TextForConditionalGeneration",
    "Speech2TextModel": f"{_HERE}.model:Speech2TextModel",
    "Speech2TextProcessor": f"{_HERE}.processor:Speech2TextProcessor",
    "Speech2TextTokenizer": f"{_HERE}.tokenizer:Speech2TextTokenizer",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
