"""Batch transcription of audio corpora: recordings in, tables of segments out.

Importing this package is fast: `Transcriber` and its dependencies, such as torch, load on use.

>>> import corpus_asr
>>> [name for name in dir(corpus_asr) if name.startswith("T")]
['Transcribe', 'Transcriber', 'Transcript', 'TranscriptionProgress']
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from corpus_asr.decoding.recognizer import Recognized, RecognizedWord, Recognizer
    from corpus_asr.export.speakers import read_segments, register_segments
    from corpus_asr.formats.transcript import Transcript
    from corpus_asr.runtime.batches import Transcribe
    from corpus_asr.runtime.in_flight import Cancellation, TranscriptionProgress
    from corpus_asr.runtime.transcriber import Transcriber
    from corpus_asr.segments import Segment, SpeakerTurn, Word
    from corpus_asr.storage.run_state.hook_rows import read_hook

    __version__: str

__all__ = [
    "Cancellation", "Recognized", "RecognizedWord", "Recognizer", "Segment", "SpeakerTurn",
    "Transcribe", "Transcriber", "Transcript", "TranscriptionProgress", "Word",
    "__version__", "read_hook", "read_segments", "register_segments",
]  # fmt: skip

_MODULES = {
    "Cancellation": "corpus_asr.runtime.in_flight",
    "Recognized": "corpus_asr.decoding.recognizer",
    "RecognizedWord": "corpus_asr.decoding.recognizer",
    "Recognizer": "corpus_asr.decoding.recognizer",
    "Segment": "corpus_asr.segments",
    "SpeakerTurn": "corpus_asr.segments",
    "Transcribe": "corpus_asr.runtime.batches",
    "Transcriber": "corpus_asr.runtime.transcriber",
    "Transcript": "corpus_asr.formats.transcript",
    "TranscriptionProgress": "corpus_asr.runtime.in_flight",
    "Word": "corpus_asr.segments",
    "read_hook": "corpus_asr.storage.run_state.hook_rows",
    "read_segments": "corpus_asr.export.speakers",
    "register_segments": "corpus_asr.export.speakers",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        # takes 0.03 s, which each child process would wait for
        from importlib.metadata import version

        return version("corpus-asr")
    if name in _MODULES:
        return getattr(_importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
