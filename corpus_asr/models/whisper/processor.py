"""Whisper's feature extractor, and its processor, which combines it with the tokenizer.

Parameters, defaults and results are those of transformers 5.23, features within 1e-5 of its numpy
code. Works without torch unless tensors or a GPU are requested.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from corpus_asr.families.registry import resolve
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.features.mel import Analysis, log_mel
from corpus_asr.models.feature_extraction import (
    FILE_NAME,
    SpeechFeatureExtractor,
    SpeechProcessor,
    joined,
    speech_rows,
)
from corpus_asr.units import MOST_MEL_BINS

# Derived from other settings or the class: in files, but never set.
_DERIVED = ("mel_filters", "n_samples", "nb_max_frames", "feature_extractor_type")

# Far above values in use, so that a file's filters or padding cannot exhaust memory.
_MOST_FFT_SAMPLES, _MOST_SAMPLES = 20_000, 100_000_000

_ON_DEVICE = "corpus_asr.families.whisper.encoder:log_mel_on_device"


class WhisperFeatureExtractor(SpeechFeatureExtractor):
    """Converts samples to padded log-mel features.

    Args:
        feature_size: mel bins: 80, or 128 for large-v3.
        hop_length, n_fft: samples between frames, and per frame.
        chunk_length: seconds of the window that shorter recordings are padded to.
        dither: standard deviation of noise added to every frame, from numpy's global generator.
        kwargs: kept as attributes and saved with the others.
    """

    model_input_names: ClassVar[list[str]] = ["input_features"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        chunk_length: int = 30,
        n_fft: int = 400,
        padding_value: float = 0.0,
        dither: float = 0.0,
        return_attention_mask: bool = False,
        *,
        padding_side: str = "right",
        **kwargs: Any,
    ) -> None:
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.padding_side = padding_side
        self.return_attention_mask = return_attention_mask
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.chunk_length = chunk_length
        self.dither = dither
        self._analysis()  # validates the sizes
        self.n_samples = chunk_length * sampling_rate
        self.nb_max_frames = self.n_samples // hop_length
        for name, value in kwargs.items():
            if name not in (*_DERIVED, "processor_class"):
                setattr(self, name, value)
        for setting, size, most in (
            ("feature_size", feature_size, MOST_MEL_BINS),
            ("n_fft", n_fft, _MOST_FFT_SAMPLES),
            ("chunk_length", self.n_samples, _MOST_SAMPLES),
        ):
            if not 1 <= size <= most:
                raise ValueError(
                    f"making a feature extractor: found {setting} {getattr(self, setting)} at "
                    f"{sampling_rate} Hz, expected 1 to {most} (of chunk_length, in samples); "
                    f"correct {FILE_NAME}"
                )

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: str | bool | None = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: Any = "cpu",
        return_token_timestamps: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute the features of one recording, or of several.

        Args:
            raw_speech: samples in [-1, 1]: a list or array of one dimension, or several of them.
            pad_to_multiple_of, max_length: in samples; no length means the window.
            padding: `max_length`, `longest` or True, `do_not_pad` or False.
            sampling_rate: of `raw_speech`, compared with the extractor's.
            do_normalize: scale every recording to zero mean and unit variance first.
            device: `cpu`, or the GPU to compute on.
            return_token_timestamps: also return `num_frames`, frames before truncation.
            kwargs: ignored, so that a processor may pass its tokenizer's keywords.

        Returns:
            `input_features` of shape (batch, mel, frame), in float32, a list of arrays if
            recordings have different lengths; `attention_mask` has 1 for every frame with content.
        """
        self._check_rate(sampling_rate)
        rows = speech_rows(raw_speech)
        fit = self._fit(
            padding or False, max_length or self.n_samples, truncation, pad_to_multiple_of
        )
        padded, masks = fit.apply(rows)
        if do_normalize:
            padded = [
                self._normalized(row, int(mask.sum()))
                for row, mask in zip(padded, masks, strict=True)
            ]
        batch = BatchFeature({"input_features": self._features(padded, device)})
        if self._wants_mask(return_attention_mask):
            # Frames that start within it are content.
            starts, frames = slice(None, None, self.hop_length), self._analysis().num_frames
            batch["attention_mask"] = joined([mask[starts][: frames(mask.size)] for mask in masks])
        if return_token_timestamps:
            batch["num_frames"] = [row.size // self.hop_length for row in rows]
        return batch.convert_to_tensors(return_tensors)

    def _normalized(self, row: np.ndarray, num_samples: int) -> np.ndarray:
        # As in the reference, content is assumed at the start of the row.
        content = row[:num_samples]
        scaled: np.ndarray = (row - content.mean()) / np.sqrt(content.var() + 1e-7)
        scaled[num_samples:] = self.padding_value
        return scaled

    def _analysis(self) -> Analysis:
        return Analysis(
            fft_samples=self.n_fft,
            hop_samples=self.hop_length,
            sample_rate_hz=self.sampling_rate,
            dither=self.dither,
            dtype=np.float64,  # as in the reference's numpy code; float32 differs by up to 1e-4
        )

    def _features(self, rows: Sequence[np.ndarray], device: Any) -> Any:
        analysis = self._analysis()
        if str(device) == "cpu":
            mels = (log_mel(r, num_mel_bins=self.feature_size, analysis=analysis) for r in rows)
            return joined([np.ascontiguousarray(mel) for mel in mels])
        on_device = resolve(_ON_DEVICE)
        # One transform for all rows, if padding made their lengths equal.
        alike = len({len(row) for row in rows}) == 1
        batches = [np.stack(rows)] if alike else [row[np.newaxis] for row in rows]
        features = [
            on_device(batch, num_mel_bins=self.feature_size, analysis=analysis, device=device)
            for batch in batches
        ]
        return features[0] if alike else [row for (row,) in features]


class WhisperProcessor(SpeechProcessor):
    """Passes audio to its feature extractor, and text and IDs to its tokenizer."""

    feature_extractor_class: ClassVar[type] = WhisperFeatureExtractor
    tokenizer_class: ClassVar[type] = WhisperTokenizer
    _for_audio_alone: ClassVar[tuple[str, ...]] = (
        "do_normalize",
        "device",
        "return_token_timestamps",
    )

    feature_extractor: WhisperFeatureExtractor
    tokenizer: WhisperTokenizer

    def get_prompt_ids(self, text: str, return_tensors: Any = "np") -> Any:
        """Return the IDs of a text to continue from, as the tokenizer does."""
        return self.tokenizer.get_prompt_ids(text, return_tensors=return_tensors)
