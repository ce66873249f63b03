"""Whisper under the class names of `transformers`, imported on demand.

A name goes in; its class comes out. Importing this package imports nothing else, so the half that
needs no torch stays without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus_asr.models.whisper.config import WhisperConfig
    from corpus_asr.models.whisper.model import WhisperForConditionalGeneration, WhisperModel
    from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
    from corpus_asr.models.whisper.tokenizer import WhisperTokenizer as WhisperTokenizerFast

__all__ = [
    "WhisperConfig",
    "WhisperForConditionalGeneration",
    "WhisperModel",
    "WhisperTokenizer",
    "WhisperTokenizerFast",
]

_HOMES = {
    "WhisperConfig": "config:WhisperConfig",
    "WhisperForConditionalGeneration": "model:WhisperForConditionalGeneration",
    "WhisperModel": "model:WhisperModel",
    "WhisperTokenizer": "tokenizer:WhisperTokenizer",
    "WhisperTokenizerFast": "tokenizer:WhisperTokenizer",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
