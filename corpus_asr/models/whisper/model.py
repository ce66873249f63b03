"""`WhisperForConditionalGeneration`: the network with `generate` and `detect_language`."""

from corpus_asr.families.whisper.model import WhisperSeq2SeqLM
from corpus_asr.models.generation import generate as generation


class WhisperForConditionalGeneration(WhisperSeq2SeqLM):
    """Whisper with the arguments of `transformers`' `generate`."""

    generate = generation.generate
    detect_language = generation.detect_language
