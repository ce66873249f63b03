"""Whisper under the class names of `transformers`, imported on demand.

A name goes in; its class comes out. Importing this package imports nothing else, so the half that
needs no torch stays without it. What runs the engine lies in a higher layer and is reached by name
only, so that the reference documents' imports work from here.
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
    from corpus_asr.models.whisper.causal_lm import WhisperForCausalLM
    from corpus_asr.models.whisper.classifier import WhisperForAudioClassification
    from corpus_asr.models.whisper.config import WhisperConfig
    from corpus_asr.models.whisper.feature_extractor import WhisperFeatureExtractor
    from corpus_asr.models.whisper.generation_config import GenerationConfig
    from corpus_asr.models.whisper.model import WhisperForConditionalGeneration, WhisperModel
    from corpus_asr.models.whisper.processor import WhisperProcessor
    from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
    from corpus_asr.models.whisper.tokenizer import WhisperTokenizer as WhisperTokenizerFast

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
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

_HERE = "corpus_asr.models.whisper"
_HOMES = {
    "AutoConfig": "corpus_asr.models.auto:AutoConfig",
    "AutoFeatureExtractor": "corpus_asr.models.auto:AutoFeatureExtractor",
    "AutoModelForSpeechSeq2Seq": "corpus_asr.models.auto:AutoModelForSpeechSeq2Seq",
    "AutoProcessor": "corpus_asr.models.auto:AutoProcessor",
    "AutoTokenizer": "corpus_asr.models.auto:AutoTokenizer",
    "GenerationConfig": f"{_HERE}.generation_config:GenerationConfig",
    "WhisperConfig": f"{_HERE}.config:WhisperConfig",
    "WhisperFeatureExtractor": f"{_HERE}.feature_extractor:WhisperFeatureExtractor",
    "WhisperForAudioClassification": f"{_HERE}.classifier:WhisperForAudioClassification",
    "WhisperForCausalLM": f"{_HERE}.causal_lm:WhisperForCausalLM",
    "WhisperForConditionalGeneration": f"{_HERE}.model:WhisperForConditionalGeneration",
    "WhisperModel": f"{_HERE}.model:WhisperModel",
    "WhisperProcessor": f"{_HERE}.processor:WhisperProcessor",
    "WhisperTokenizer": f"{_HERE}.tokenizer:WhisperTokenizer",
    "WhisperTokenizerFast": f"{_HERE}.tokenizer:WhisperTokenizer",
    "pipeline": "corpus_asr.transcription.speech_pipeline:pipeline",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
