"""`Speech2TextForConditionalGeneration`: the network with `generate`."""

from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM
from corpus_asr.models.generation import speech2text as generation


class Speech2TextForConditionalGeneration(Speech2TextSeq2SeqLM):
    """Speech2Text with the arguments of `transformers`' `generate`."""

    generate = generation.generate
