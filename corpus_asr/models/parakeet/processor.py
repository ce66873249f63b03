"""Parakeet's feature extractor, and its processor: that and the tokenizer as one.

Parameters, defaults and results are those of transformers 5.23, features within 2e-3. Works without
torch unless tensors are requested.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from corpus_asr.families.saved_files import optional_object
from corpus_asr.families.tensors import BatchFeature, as_lists
from corpus_asr.features.mel import mel_filters
from corpus_asr.features.nemo_mel import NemoAnalysis, log_mel, normalized
from corpus_asr.models.feature_extraction import (
    SpeechFeatureExtractor,
    SpeechProcessor,
    joined,
    speech_rows,
)
from corpus_asr.units import SAMPLE_RATE_HZ

DECODER_TYPES = ("ctc", "rnnt", "tdt")
SUBSAMPLING = 8

# They follow from the class: files have them, but they are never set.
_DERIVED = ("feature_extractor_type", "processor_class")
# Tokens that end where the one before them ends.
# Source: transformers 5.23, `ParakeetProcessor._refine_timestamps`, after NeMo.
_PUNCTUATION = ("?", "'", "¡", "¿", "-", ":", ",", "%", "/", ".", "!")


class ParakeetFeatureExtractor(SpeechFeatureExtractor):
    """Turns samples into NeMo's log-mel, each mel bin normalized over its recording.

    Args:
        feature_size: mel bins.
        preemphasis: share of a sample that is subtracted from the next one; None for none.
        padding_value: what samples are filled up with.
        return_attention_mask: without effect, as in the reference: calls always return it.
        kwargs: kept as attributes and saved with the others.
    """

    model_input_names: ClassVar[list[str]] = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = SAMPLE_RATE_HZ,
        hop_length: int = 160,
        n_fft: int = 512,
        win_length: int = 400,
        preemphasis: float | None = 0.97,
        padding_value: float = 0.0,
        *,
        padding_side: str = "right",
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value in kwargs.items():
            if name not in _DERIVED:
                setattr(self, name, value)
        if sampling_rate != SAMPLE_RATE_HZ:
            raise ValueError(
                f"making a feature extractor: found sampling_rate {sampling_rate}, expected "
                f"{SAMPLE_RATE_HZ}, which all these checkpoints were trained on; resample the audio"
            )
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.win_length = win_length
        self.preemphasis = preemphasis
        self.padding_value = padding_value
        self.padding_side = padding_side
        self.return_attention_mask = return_attention_mask
        mel_filters(feature_size, fft_samples=self._analysis().fft_samples)  # refuses sizes

    def _analysis(self) -> NemoAnalysis:
        return NemoAnalysis(
            num_mel_bins=self.feature_size,
            fft_samples=self.n_fft,
            window_samples=self.win_length,
            hop_samples=self.hop_length,
            preemphasis=self.preemphasis or 0.0,
        )

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: bool | str | None = "longest",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute the features of one recording, or of several.

        Args:
            raw_speech: samples in [-1, 1]: a list or array of one dimension, or several of them.
            padding: `longest` or True, `max_length`, `do_not_pad` or False.
            max_length, pad_to_multiple_of: in samples.
            sampling_rate: of `raw_speech`, to be checked against the extractor's.
            kwargs: ignored, so that a processor may pass what is meant for its tokenizer.

        Returns:
            `input_features` of shape (batch, frame, mel), in float32, zeros after a recording's
            own frames, and `attention_mask`, true for these.
        """
        self._check_rate(sampling_rate)
        fit = self._fit(padding or False, max_length, truncation, pad_to_multiple_of)
        padded, masks = fit.apply(speech_rows(raw_speech))
        analysis = self._analysis()
        features, valid = [], []
        for row, mask in zip(padded, masks, strict=True):
            values = normalized(log_mel(row[mask == 1], analysis))
            # The frame at the end of the samples is of no whole hop: it counts as padding.
            frames = 1 + analysis.num_frames(row.size)
            features.append(np.pad(values, ((0, frames - len(values)), (0, 0))))
            valid.append(np.arange(frames) < len(values))
        batch = {"input_features": joined(features), "attention_mask": joined(valid)}
        return BatchFeature(batch, return_tensors)


class ParakeetProcessor(SpeechProcessor):
    """Passes audio to its feature extractor, and text and ids to its tokenizer.

    `decoder_type` says how ids are read: of `ctc`, runs are joined; of `rnnt` and `tdt`, times
    follow from durations. None, of older files, means `tdt` where there is a blank token.
    """

    feature_extractor_class: ClassVar[type] = ParakeetFeatureExtractor
    tokenizer_class: ClassVar[type] = ParakeetTokenizer
    _for_audio_alone: ClassVar[tuple[str, ...]] = ("max_length", "truncation", "pad_to_multiple_of")

    feature_extractor: ParakeetFeatureExtractor
    tokenizer: ParakeetTokenizer

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        blank_token: str = "<blank>",
        decoder_type: str | None = None,
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        if decoder_type not in (None, *DECODER_TYPES):
            raise ValueError(
                f"making a processor: found decoder_type {decoder_type!r}, expected one of "
                f"{', '.join(DECODER_TYPES)}, or None; correct it"
            )
        self.blank_token = blank_token
        self.decoder_type = decoder_type
        known = blank_token in tokenizer.get_vocab()
        self._reads = decoder_type or ("tdt" if known else "ctc")
        self.blank_token_id: int | None = tokenizer.convert_tokens_to_ids(blank_token)

    @classmethod
    def _saved_arguments(cls, folder: Path) -> dict[str, Any]:
        path = folder / "processor_config.json"
        content = optional_object(path)
        names = ("blank_token", "decoder_type")
        found = {name: content[name] for name in names if content.get(name) is not None}
        if wrong := [name for name, value in found.items() if not isinstance(value, str)]:
            raise CheckpointError(
                f"reading {path}: {wrong[0]} is {found[wrong[0]]!r}, expected a text; correct it"
            )
        return found

    def _own_settings(self) -> dict[str, Any]:
        return {"blank_token": self.blank_token, "decoder_type": self.decoder_type}

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns that a model takes."""
        return [*self.feature_extractor.model_input_names, "labels", "decoder_input_ids"]

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prepare audio, and texts as `labels` and, after a blank, as `decoder_input_ids`.

        Without `return_tensors` and `padding`, tensors of rows of one length.
        """
        for name, value in (("return_tensors", "pt"), ("padding", True)):
            kwargs.setdefault(name, value)
        text = kwargs.get("text")
        inputs = super().__call__(*args, **kwargs)
        if text is None or "labels" not in inputs:
            return inputs
        texts = [text] if isinstance(text, str) else text
        read = [self.blank_token + one for one in texts]
        encoded = self.tokenizer(
            read, padding=kwargs["padding"], return_tensors=kwargs["return_tensors"]
        )
        inputs["decoder_input_ids"] = encoded["input_ids"]
        return inputs

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """Turn ids into texts, as the tokenizer's `batch_decode` does; of CTC, runs are joined."""
        kwargs.setdefault("group_tokens", self._reads == "ctc")
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, token_ids: Any, *args: Any, durations: Any = None, **kwargs: Any) -> Any:
        """Turn ids into text, as the tokenizer's `decode` does; of CTC, runs are joined.

        With the `durations` that a transducer's `generate` returned with the ids, also return
        when each piece of each text begins and ends, in seconds.
        """
        kwargs.setdefault("group_tokens", self._reads == "ctc")
        texts = self.tokenizer.decode(token_ids, *args, **kwargs)
        if durations is None:
            return texts
        rows = zip(as_lists(token_ids), as_lists(durations), strict=True)
        return texts, [self._timed(ids, lasting) for ids, lasting in rows]

    def _timed(self, ids: Sequence[int], durations: Sequence[int]) -> list[dict[str, Any]]:
        extractor = self.feature_extractor
        seconds = extractor.hop_length * SUBSAMPLING / extractor.sampling_rate
        skipped = {self.tokenizer.pad_token_id, self.blank_token_id}
        spoken, frame = [], 0
        for token, duration in zip(ids, durations, strict=True):
            if token not in skipped:
                # RNN-T's moves say nothing of a token's length.
                spoken.append((token, frame, frame + (duration if self._reads == "tdt" else 1)))
            frame += duration
        timed: list[dict[str, Any]] = []
        pieces = self.tokenizer.pieces([token for token, _, _ in spoken])
        for piece, (_, start, end) in zip(pieces, spoken, strict=True):
            if piece is None:
                continue
            times = {"start": start * seconds, "end": end * seconds}
            if self._reads == "tdt" and piece in _PUNCTUATION and timed:
                times = dict.fromkeys(times, timed[-1]["end"])
            timed.append({"token": piece, **times})
        return timed
