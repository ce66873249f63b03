"""The engine of a run with `model.by_language`, as the transcribe stage loads it.

In: the settings. Out: an engine that meets `stages.transcribe.TranscribingEngine`. Knows no
network.
"""

from collections.abc import Mapping

from corpus_asr.config.base import Auto
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.stages.transcribe import TranscribingEngine, load_engine
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.threads import spin_briefly


def load_routed_engine(
    checkpoint: str,
    *,
    revision: str | None,
    decoding: DecodingSettings,
    device: str,
    dtype: str,
    slots: int | Auto,
    num_threads: int | None,
    by_language: Mapping[str, str],
) -> TranscribingEngine:
    """Fetch the weights to this machine, once, and load an engine of several models.

    In a given language that is only the one for it. All but the last argument are those of an
    `EngineFactory`.
    """
    spin_briefly()
    # Imports torch: in the worker only.
    from corpus_asr.transcription.routing import RoutedEngine, only_language

    only = only_language(decoding)
    if only is not None:
        return load_engine(
            by_language.get(only, checkpoint),
            revision=None if only in by_language else revision,
            decoding=decoding,
            device=device,
            dtype=dtype,
            slots=slots,
            num_threads=num_threads,
        )
    return RoutedEngine.from_folders(
        fetch_checkpoint(checkpoint, revision=revision),
        {code: fetch_checkpoint(other) for code, other in by_language.items()},
        decoding=decoding,
        device=device,
        dtype=dtype,
        slots=slots,
        num_threads=num_threads,
    )
