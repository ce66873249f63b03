"""Batch transcription of audio corpora: recordings in, tables of segments out.

Importing this costs nothing: `Transcriber` and what it needs, torch among it, load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus_asr.runtime.transcriber import Transcriber

__all__ = ["Transcriber"]


def __getattr__(name: str) -> Any:
    if name == "Transcriber":
        return importlib.import_module("corpus_asr.runtime.transcriber").Transcriber
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
