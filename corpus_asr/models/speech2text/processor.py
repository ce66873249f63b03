"""Speech2Text's feature extractor, and its processor, which combines it with the tokenizer.

Parameters, defaults and results are those of transformers 5.23, features within 1e-4 of its code
without torchaudio. Works without torch unless tensors are requested.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.features.fbank import (
    FRAME_SAMPLES,
    kaldi_fbank,
    kaldi_filters,
    mean_variance_normalized,
    num_frames,
)
from corpus_asr.models.feature_extraction import (
    FILE_NAME,
    SpeechFeatureExtractor,
    SpeechProcessor,
    as_asked,
    speech_rows,
)

# Derived from other settings or the class: in files, but never set.
_DERIVED = ("mel_filters", "window", "feature_extractor_type", "processor_class")


class Speech2TextFeatureExtractor(SpeechFeatureExtractor):
    """Converts samples to filter banks, with each mel bin normalized over its recording.

    Args:
        feature_size: stored and saved only; `num_mel_bins` is used.
        padding_value: value of padded frames, added after normalization.
        dither: standard deviation, in 16-bit steps, of noise added to every frame, from numpy's
            global generator.
        do_ceptral_normalize: normalize each mel bin over the recording.
        normalize_vars: to variance 1; a constant bin becomes 0 where the reference divides by zero.
        return_attention_mask: without effect, as in the reference: calls return it by default.
        kwargs: kept as attributes and saved with the others.
    """

    model_input_names: ClassVar[list[str]] = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        num_mel_bins: int = 80,
        padding_value: float = 0.0,
        dither: float = 0.0,
        do_ceptral_normalize: bool = True,
        normalize_means: bool = True,
        normalize_vars: bool = True,
        *,
        padding_side: str = "right",
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            if name not in _DERIVED:
                setattr(self, name, value)
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.padding_value = padding_value
        self.dither = dither
        self.do_ceptral_normalize = do_ceptral_normalize
        self.normalize_means = normalize_means
        self.normalize_vars = normalize_vars
        self.padding_side = padding_side
        self.return_attention_mask = True  # the reference overrides the argument as well
        kaldi_filters(num_mel_bins, sample_rate_hz=sampling_rate)  # validates the sizes
        if not dither >= 0.0:
            raise ValueError(
                f"making a feature extractor: found dither {dither}, expected 0 (none) or more; "
                f"correct {FILE_NAME}"
            )

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute the features of one recording, or of several.

        Args:
            raw_speech: samples in [-1, 1]: a list or array of one dimension, or several of them.
            padding: `longest` or True, `max_length`, `do_not_pad` or False.
            max_length, pad_to_multiple_of: in frames; truncation precedes normalization.
            sampling_rate: of `raw_speech`, compared with the extractor's.
            kwargs: ignored, so that a processor may pass its tokenizer's keywords.

        Returns:
            `input_features` of shape (batch, frame, mel), in float32, and `attention_mask` with 1
            for every frame with content.
        """
        self._check_rate(sampling_rate)
        fit = self._fit(padding, max_length, truncation, pad_to_multiple_of)
        values, masks = fit.apply(self._filter_banks(speech_rows(raw_speech)))
        if self.do_ceptral_normalize:
            values = self.normalize(values, masks)
        batch = BatchFeature({"input_features": values})
        if self._wants_mask(return_attention_mask):
            batch["attention_mask"] = masks
        return as_asked(batch, return_tensors)

    def normalize(
        self,
        input_features: Sequence[np.ndarray],
        attention_mask: Sequence[np.ndarray] | np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Normalize each recording over the frames in its mask."""
        if attention_mask is None:
            attention_mask = [np.ones(len(values), dtype=np.int32) for values in input_features]
        recordings = []
        for values, mask in zip(input_features, attention_mask, strict=True):
            # Content may be at either end: the reference assumes the start, and normalizes padding
            # if `padding_side` is `left`.
            content = np.asarray(mask) == 1
            normed = np.full(values.shape, self.padding_value, dtype=np.float32)
            normed[content] = mean_variance_normalized(
                values[content].astype(np.float32, copy=False),
                means=self.normalize_means,
                variances=self.normalize_vars,
            )
            recordings.append(normed)
        return recordings

    def _filter_banks(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        for i, row in enumerate(rows):
            if num_frames(row.size) == 0:
                raise ValueError(
                    f"extracting features of recording {i}: found {row.size} samples, expected at "
                    f"least a frame of {FRAME_SAMPLES}; remove it, or pad it with zeros"
                )
        return [
            kaldi_fbank(
                row,
                num_mel_bins=self.num_mel_bins,
                sample_rate_hz=self.sampling_rate,
                dither=self.dither,
            )
            for row in rows
        ]


class Speech2TextProcessor(SpeechProcessor):
    """Passes audio to its feature extractor, and text and IDs to its tokenizer."""

    feature_extractor_class: ClassVar[type] = Speech2TextFeatureExtractor
    tokenizer_class: ClassVar[type] = Speech2TextTokenizer

    feature_extractor: Speech2TextFeatureExtractor
    tokenizer: Speech2TextTokenizer
