"""Speech2Text in the form that search runs: caches in numbered slots.

In: features, token ids and slots. Out: logits. Meets `decoding.protocols.SlotModel`; knows no
text and no search.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.device import to_device
from corpus_asr.decoding.protocols import ModelSize
from corpus_asr.families.layers.decoder_slots import DecoderSlots
from corpus_asr.families.speech2text.cached_decoder import cached_speech2text_decoder
from corpus_asr.families.speech2text.encoder import (
    Speech2TextEncoder,
    check_heard,
    shortened,
    shorter,
    within,
)
from corpus_asr.families.speech2text.packed_encoder import PackedSpeech2TextEncoder

if TYPE_CHECKING:
    from corpus_asr.families.speech2text.model import Speech2TextSeq2SeqLM

# On a GPU rows are encoded together that are at least so long beside the longest of them.
_ALIKE = 0.8


class Speech2TextSlotModel(DecoderSlots):
    """A `Speech2TextSeq2SeqLM` with its decoder's caches in numbered slots.

    Windows are of `window_frames`, at first `max_source_positions`; of each as much is heard as is
    said. Shares the embeddings and norms of `model`; its linear maps are copies made here, on CPUs
    packed, so training it further, or moving it, needs new slots. What a slot gives does not depend
    on what the others hold.
    """

    frame_step = 1
    """Windows are heard up to any frame."""

    def __init__(self, model: "Speech2TextSeq2SeqLM", *, int8: bool = False) -> None:
        config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
        self._config = config
        self.window_frames = config.max_source_positions
        positions = shorter(self.window_frames, config.num_conv_layers)
        super().__init__(
            cached_speech2text_decoder(decoder, positions=positions, int8=int8),
            model.lm_head,
            int8=int8,
        )
        self._encoder: Speech2TextEncoder = encoder
        self._packed = (
            PackedSpeech2TextEncoder(encoder, int8=int8) if self.device.type == "cpu" else None
        )
        self._weight_bytes = sum(
            weight.nbytes for tower in (encoder, decoder) for weight in tower.parameters()
        )

    def for_windows(self, num_frames: int, *, max_tokens: int | None = None) -> Self:
        """Return this model for windows of `num_frames`; it shares all weights.

        Args:
            num_frames: at most `max_source_positions`.
            max_tokens: longest sequence a slot shall hold; default as here.

        Raises:
            ValueError: there are no frames or tokens, or more than the model was made for.
        """
        config = self._config
        max_tokens = self.max_target_positions if max_tokens is None else max_tokens
        for found, name in (
            (num_frames, "max_source_positions"),
            (max_tokens, "max_target_positions"),
        ):
            if not 1 <= found <= getattr(config, name):
                raise ValueError(
                    f"making slots for windows of {num_frames} frames and {max_tokens} tokens: "
                    f"expected 1 to {name}, which is {getattr(config, name)}; cut the audio into "
                    "shorter windows, or ask for fewer tokens"
                )
        other = copy.copy(self)
        other.window_frames = num_frames
        other._decoder = self._decoder.resized(
            source_positions=shorter(num_frames, config.num_conv_layers),
            target_positions=max_tokens,
        )
        return other

    @property
    def size(self) -> ModelSize:
        """Its shape and weights, for sizing the slots."""
        config = self._config
        return ModelSize(
            layers=config.decoder_layers,
            width=config.d_model,
            inner_width=config.encoder_ffn_dim,
            vocab_size=config.vocab_size,
            tokens=self.max_target_positions,
            positions=self.window_shape[0],
            window_values=self._encoder.num_mel_bins * self.window_frames,
            element_bytes=self.dtype.itemsize,
            weight_bytes=self._weight_bytes,
        )

    @property
    def has_encoder(self) -> bool:
        """Whether this model encodes windows itself."""
        return True

    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return how many encoder positions so many frames of each of some windows make.

        Raises:
            ValueError: so many frames cannot be heard, or there is not one number for each window.
        """
        check_heard(num_frames, rows=windows, longest=self.window_frames)
        return [shorter(number, self._config.num_conv_layers) for number in num_frames]

    @torch.inference_mode()
    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows.

        Args:
            features: whole windows.
            num_frames: of each window, the frames that are heard, as if there were no more; what
                is returned holds zeros after them. None hears whole windows.

        Raises:
            ValueError: the features are no whole windows, or no such part of them can be heard.
        """
        lengths = self._lengths(features, num_frames)
        if self._packed is not None:
            rows = [row[:, :end].t() for row, end in zip(features, lengths, strict=True)]
            return self._whole(enumerate(self._packed.encode(rows, lengths)), len(rows))
        return self._by_length(features, lengths, self._encode_alone, reach=0)

    @torch.inference_mode()
    def encode_padded(
        self, features: Float[Tensor, "batch mel frame"], *, num_frames: Sequence[int]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows as `transformers` does a padded batch: convolutions hear the padding.

        Equal to `encode` but for the last positions of each window that is not heard to its end.

        Args:
            features: whole windows.
            num_frames: of each window, the frames that are attended to.

        Raises:
            ValueError: as `encode`.
        """
        lengths = self._lengths(features, num_frames)
        # What is further off than the convolutions reach makes no difference.
        sizes = self._config.conv_kernel_sizes
        reach = sum(size // 2 * 2**layer for layer, size in enumerate(sizes)) + 2 ** len(sizes)
        if self._packed is not None:
            rows = [row[:, : end + reach].t() for row, end in zip(features, lengths, strict=True)]
            return self._whole(enumerate(self._packed.encode(rows, lengths)), len(rows))
        return self._by_length(features, lengths, self._encode_given, reach=reach)

    def _lengths(self, features: Tensor, num_frames: Sequence[int] | None) -> list[int]:
        whole = (self._encoder.num_mel_bins, self.window_frames)
        if features.ndim != 3 or tuple(features.shape[1:]) != whole or not len(features):
            raise ValueError(
                f"encoding windows: found shape {tuple(features.shape)}, expected one window or "
                f"more of {whole} (mel bins, frames); pad or cut the features to that, or take "
                "for_windows"
            )
        lengths = [self.window_frames] * len(features) if num_frames is None else list(num_frames)
        check_heard(lengths, rows=len(features), longest=self.window_frames)
        return lengths

    def _by_length(
        self,
        features: Float[Tensor, "batch mel frame"],
        lengths: Sequence[int],
        encode: Callable[[Tensor, list[int]], Tensor],
        *,
        reach: int,
    ) -> Float[Tensor, "batch pos width"]:
        """Encode windows in batches of similar lengths, each cut to its longest."""
        features = features.to(self.device, self.dtype)
        found: list[tuple[int, Tensor]] = []
        for rows in _alike(lengths):
            cut = features[:, :, : lengths[rows[0]] + reach]
            some = torch.stack([cut[row] for row in rows]).transpose(1, 2)
            found += zip(rows, encode(some, [lengths[row] for row in rows]), strict=True)
        return self._whole(found, len(features))

    def _encode_alone(
        self, rows: Float[Tensor, "batch frame mel"], lengths: list[int]
    ) -> Float[Tensor, "batch pos width"]:
        return self._encoder.encode(rows, num_frames=lengths)

    def _encode_given(
        self, rows: Float[Tensor, "batch frame mel"], lengths: list[int]
    ) -> Float[Tensor, "batch pos width"]:
        frames = to_device(torch.tensor(lengths), self.device)
        encoded: Tensor = self._encoder(
            rows, within(frames, rows.shape[1]).long(), return_dict=True
        ).last_hidden_state
        positions = shortened(frames, self._config.num_conv_layers)
        return encoded.masked_fill(~within(positions, encoded.shape[1])[:, :, None], 0.0)

    def _whole(
        self, rows: Iterable[tuple[int, Float[Tensor, "_ width"]]], count: int
    ) -> Float[Tensor, "batch pos width"]:
        """Put rows in their places, filled up with zeros to whole windows."""
        whole = torch.zeros(count, *self.window_shape, dtype=self.dtype, device=self.device)
        for row, encoded in rows:
            kept = min(len(encoded), whole.shape[1])
            whole[row, :kept] = encoded[:kept]
        return whole


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group rows of similar lengths, the longest first."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if group and lengths[row] < _ALIKE * lengths[group[0]]:
            yield group
            group = []
        group.append(row)
    yield group
