"""Parakeet under the class names of `transformers`; importing the package imports no torch."""

from typing import TYPE_CHECKING

from corpus_asr.models.lazy import lazy_names

if TYPE_CHECKING:
    from corpus_asr.families.parakeet.config import (
        ParakeetCTCConfig,
        ParakeetEncoderConfig,
        ParakeetRNNTConfig,
        ParakeetTDTConfig,
    )
    from corpus_asr.families.parakeet.encoder import ParakeetEncoder
    from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
    from corpus_asr.models.generation.parakeet import (
        ParakeetForCTC,
        ParakeetForRNNT,
        ParakeetForTDT,
    )
    from corpus_asr.models.parakeet.processor import ParakeetFeatureExtractor, ParakeetProcessor

__all__ = [
    "ParakeetCTCConfig",
    "ParakeetEncoder",
    "ParakeetEncoderConfig",
    "ParakeetFeatureExtractor",
    "ParakeetForCTC",
    "ParakeetForRNNT",
    "ParakeetForTDT",
    "ParakeetProcessor",
    "ParakeetRNNTConfig",
    "ParakeetTDTConfig",
    "ParakeetTokenizer",
]

# Those that import torch come last.
_MODULES = (
    "corpus_asr.families.parakeet.config",
    "corpus_asr.families.parakeet.tokenizer",
    "corpus_asr.models.parakeet.processor",
    "corpus_asr.families.parakeet.encoder",
    "corpus_asr.models.generation.parakeet",
)

__getattr__, __dir__ = lazy_names(__name__, __all__, _MODULES)
