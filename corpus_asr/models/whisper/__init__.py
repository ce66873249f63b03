"""Whisper under the class names of `transformers`; importing the package imports no torch."""

from typing import TYPE_CHECKING

from corpus_asr.models import lazy_names

if TYPE_CHECKING:
    from corpus_asr.families.whisper.classifier import WhisperForAudioClassification
    from corpus_asr.families.whisper.config import GenerationConfig, WhisperConfig
    from corpus_asr.families.whisper.model import WhisperModel
    from corpus_asr.families.whisper.tokenizer import WhisperTokenizer, WhisperTokenizerFast
    from corpus_asr.models.auto import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModelForCausalLM,
        AutoModelForSpeechSeq2Seq,
        AutoProcessor,
        AutoTokenizer,
    )
    from corpus_asr.models.generation.whisper import (
        WhisperForCausalLM,
        WhisperForConditionalGeneration,
    )
    from corpus_asr.models.speech_pipeline import pipeline
    from corpus_asr.models.whisper.processor import WhisperFeatureExtractor, WhisperProcessor

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoProcessor",
    "AutoTokenizer",
    "GenerationConfig",
    "WhisperConfig",
    "WhisperFeatureExtractor",
    "WhisperForAudioClassification",
    "WhisperForCausalLM",
    "WhisperForConditionalGeneration",
    "WhisperModel",
    "WhisperProcessor",
    "WhisperTokenizer",
    "WhisperTokenizerFast",
    "pipeline",
]

# Modules that import torch come last.
_MODULES = (
    "corpus_asr.families.whisper.config",
    "corpus_asr.families.whisper.config",
    "corpus_asr.families.whisper.tokenizer",
    "corpus_asr.models.auto",
    "corpus_asr.models.whisper.processor",
    "corpus_asr.models.generation.whisper",
    "corpus_asr.families.whisper.model",
    "corpus_asr.families.whisper.classifier",
    "corpus_asr.models.speech_pipeline",
)

__getattr__, __dir__ = lazy_names(__name__, __all__, _MODULES)
