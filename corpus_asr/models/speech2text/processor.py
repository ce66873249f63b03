"""Speech2Text's processor: a feature extractor and a tokenizer as one.

In: audio, text or both. Out: features, ids, or features with the ids as labels; and text from ids.
Method and parameter names, defaults and results are those of `transformers.Speech2TextProcessor`,
version 5.23, and of its documents since 4.34. Knows nothing of its own: everything is passed on to
one of the two.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.models.speech2text.feature_extractor import Speech2TextFeatureExtractor
from corpus_asr.models.speech_processor import SpeechProcessor


class Speech2TextProcessor(SpeechProcessor):
    """Passes audio to its feature extractor, and text and ids to its tokenizer.

    Args:
        feature_extractor: turns samples into features.
        tokenizer: turns text into ids and back.

    Raises:
        TypeError: one of them is of another class.
    """

    feature_extractor_class: ClassVar[type] = Speech2TextFeatureExtractor
    tokenizer_class: ClassVar[type] = Speech2TextTokenizer

    feature_extractor: Speech2TextFeatureExtractor
    tokenizer: Speech2TextTokenizer

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        super().__init__(feature_extractor, tokenizer)
        self.current_processor: Any = feature_extractor

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepare audio, text or both; within `as_target_processor`, text alone.

        Args:
            args: the audio, and further arguments of the feature extractor's call.
            kwargs: `audio` (or `raw_speech`, its older name), `sampling_rate` and `text`; all
                others are passed on to whichever of the two is called.

        Returns:
            The features; or the ids of the text; or the features with the ids as `labels`.

        Raises:
            ValueError: there is neither audio nor text.
            TypeError: audio is given twice.
        """
        if self.current_processor is self.tokenizer:
            encode: Callable[..., BatchFeature] = self.tokenizer
            return encode(*args, **kwargs)
        if "raw_speech" in kwargs and "audio" not in kwargs:
            kwargs["audio"] = kwargs.pop("raw_speech")
        return super().__call__(*args, **kwargs)

    @contextmanager
    def as_target_processor(self) -> Iterator[None]:
        """Within it, a call encodes labels; outside, text= says the same.

        Source: transformers 4.34; version 5 has it no longer.
        """
        self.current_processor = self.tokenizer
        try:
            yield
        finally:
            self.current_processor = self.feature_extractor
