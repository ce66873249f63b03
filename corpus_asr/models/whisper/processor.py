"""Whisper's processor: a feature extractor and a tokenizer as one.

In: audio, text or both. Out: features, ids, or features with the ids as labels; and text from ids.
Method and parameter names, defaults and results are those of `transformers.WhisperProcessor`,
version 5.23. Knows nothing of its own: everything is passed on to one of the two.
"""

from typing import Any, ClassVar

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.speech_processor import SpeechProcessor
from corpus_asr.models.whisper.feature_extractor import WhisperFeatureExtractor


class WhisperProcessor(SpeechProcessor):
    """Passes audio to its feature extractor, and text and ids to its tokenizer.

    Args:
        feature_extractor: turns samples into features.
        tokenizer: turns text into ids and back.

    Raises:
        TypeError: one of them is of another class.
    """

    feature_extractor_class: ClassVar[type] = WhisperFeatureExtractor
    tokenizer_class: ClassVar[type] = WhisperTokenizer
    _for_audio_alone: ClassVar[tuple[str, ...]] = (
        "do_normalize",
        "device",
        "return_token_timestamps",
    )

    feature_extractor: WhisperFeatureExtractor
    tokenizer: WhisperTokenizer

    def get_decoder_prompt_ids(
        self, task: str | None = None, language: str | None = None, no_timestamps: bool = True
    ) -> Any:
        """Return the positions and ids that a decoder begins with, as the tokenizer does."""
        return self.tokenizer.get_decoder_prompt_ids(
            task=task, language=language, no_timestamps=no_timestamps
        )

    def get_prompt_ids(self, text: str, return_tensors: Any = "np") -> Any:
        """Return the ids of a text to continue from, as the tokenizer does."""
        return self.tokenizer.get_prompt_ids(text, return_tensors=return_tensors)
