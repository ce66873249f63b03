"""The engine of `classify_audio`, as the transcribe stage loads it.

In: the settings. Out: an engine that meets `stages.transcribe.TranscribingEngine`. The stage
itself, with its threads, failures and counts, is the one that transcribes. Knows no network.
"""

from corpus_asr.config.base import Auto
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.run import ClassificationSettings
from corpus_asr.stages.transcribe import TranscribingEngine
from corpus_asr.storage.model_files import fetch_checkpoint
from corpus_asr.threads import spin_briefly


def load_label_engine(
    checkpoint: str,
    *,
    revision: str | None,
    decoding: DecodingSettings,
    device: str,
    dtype: str,
    slots: int | Auto,
    num_threads: int | None,
    classification: ClassificationSettings,
) -> TranscribingEngine:
    """Fetch the weights to this machine, once, and load an engine that labels parts.

    All but the last are those of an `EngineFactory`; `decoding` means nothing here.
    """
    spin_briefly()
    from corpus_asr.transcription.labels import label_engine  # imports torch: in the worker only

    return label_engine(
        fetch_checkpoint(checkpoint, revision=revision),
        classification=classification,
        device=device,
        dtype=dtype,
        slots=slots,
        num_threads=num_threads,
    )
