"""Whisper in the form that search runs: caches in numbered slots.

In: features, token ids and slots. Out: logits. Meets `decoding.protocols.SlotModel`; knows no
text and no search.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.decoding.sizes import ModelSize
from corpus_asr.models.layers.cache import SlotCache
from corpus_asr.models.layers.projection import Projection
from corpus_asr.models.whisper.cached_decoder import CachedWhisperDecoder
from corpus_asr.models.whisper.encoder import check_heard
from corpus_asr.models.whisper.packed_encoder import PackedWhisperEncoder
from corpus_asr.units import FRAMES_PER_POSITION

if TYPE_CHECKING:
    from corpus_asr.models.whisper.causal_lm import WhisperForCausalLM
    from corpus_asr.models.whisper.config import WhisperConfig
    from corpus_asr.models.whisper.decoder import WhisperDecoder
    from corpus_asr.models.whisper.model import WhisperForConditionalGeneration


class WhisperDecoderSlots:
    """A Whisper decoder alone, with its caches in numbered slots.

    Meets `decoding.protocols.SlotModel` but for the encoder: windows are filled in as another
    model has encoded them. Shares the embeddings and norms of `decoder`; its linear maps are fused
    copies made here, so training it further, or moving it, needs new slots. What a slot gives does
    not depend on what the others hold.
    """

    def __init__(
        self,
        config: "WhisperConfig",
        decoder: "WhisperDecoder",
        projection: nn.Linear,
        *,
        int8: bool = False,
    ) -> None:
        self._config = config
        self._embedding = decoder.embed_tokens
        self._decoder = CachedWhisperDecoder(decoder, int8=int8)
        self._vocabulary = Projection([projection], int8=int8)
        self._weight_bytes = sum(weight.nbytes for weight in decoder.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and caches."""
        return self._embedding.weight.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._config.vocab_size

    @property
    def max_target_positions(self) -> int:
        """Longest token sequence a slot can hold."""
        return self._config.max_target_positions

    @property
    def size(self) -> ModelSize:
        """Its shape and weights, for sizing the slots."""
        config = self._config
        return ModelSize(
            layers=config.decoder_layers,
            width=config.d_model,
            inner_width=config.encoder_ffn_dim,
            vocab_size=config.vocab_size,
            tokens=config.max_target_positions,
            positions=config.max_source_positions,
            window_values=config.num_mel_bins * config.max_source_positions * FRAMES_PER_POSITION,
            element_bytes=self.dtype.itemsize,
            weight_bytes=self._weight_bytes,
        )

    @property
    def has_encoder(self) -> bool:
        """Whether this model encodes windows itself."""
        return False

    @property
    def window_shape(self) -> tuple[int, int]:
        """Positions and width of an encoded window."""
        return self._config.max_source_positions, self._config.d_model

    def encode(
        self,
        features: Float[Tensor, "batch mel frame"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch pos width"]:
        """Refuse: there is no encoder.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"encoding {len(features)} windows with a decoder alone: expected encoded windows; "
            "encode them with the model it assists"
        )

    def new_state(self, slots: int, *, beams: int = 1) -> SlotCache:
        """Allocate caches for `slots` sequences, of which each `beams` adjacent share a window.

        Raises:
            ValueError: `slots` is not positive, or no multiple of `beams`.
        """
        if slots < 1:
            raise ValueError(f"allocating {slots} slots: expected at least 1")
        with torch.inference_mode():
            return self._decoder.new_cache(slots, beams=beams)

    @torch.inference_mode()
    def fill(
        self,
        state: SlotCache,
        slots: Sequence[int],
        encoded: Float[Tensor, "batch pos width"],
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        """Write the cross-attention keys and values of `encoded` into `slots`.

        Args:
            state: holds the slots.
            slots: one per window.
            encoded: whole windows, or such as were encoded with the same `num_frames`.
            num_frames: of each window, the frames that were heard; None for all.

        Raises:
            ValueError: the windows are not of this model's shape, or have no such frames.
        """
        if tuple(encoded.shape[1:]) != self.window_shape:
            raise ValueError(
                f"filling {len(slots)} slots: found windows of {tuple(encoded.shape[1:])} "
                f"(positions, width), expected {self.window_shape}; encode them with this model, "
                "or with one of the same shape"
            )
        num_positions: list[int] | None = None
        if num_frames is not None:
            whole = self._config.max_source_positions * FRAMES_PER_POSITION
            check_heard(num_frames, windows=len(encoded), whole=whole)
            num_positions = [number // FRAMES_PER_POSITION for number in num_frames]
        self._decoder.fill(state, slots, encoded, num_positions=num_positions)

    @torch.inference_mode()
    def prefill(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts padded on the right from position 0, starting `slots` anew.

        Raises:
            ValueError: the prompts are longer than the model's positions, or a length is not
                within its row.
        """
        if not all(1 <= length <= tokens.shape[1] for length in lengths):
            raise ValueError(
                f"running prompts padded to {tokens.shape[1]} tokens: found lengths "
                f"{list(lengths)}, expected 1 to {tokens.shape[1]}"
            )
        return self._decoder.prefill(state, slots, tokens)

    @torch.inference_mode()
    def step(
        self, state: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot vocab"]:
        """Advance the first `len(tokens)` slots by one token each, at its own position.

        Raises:
            ValueError: a position is outside the model's. On a GPU it is not checked: the host
                would have to wait for it.
        """
        return self.logits(self._decoder.step(state, tokens, positions))

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Project hidden states to the vocabulary, in float32."""
        return self._vocabulary(hidden).float()

    @torch.inference_mode()
    def move(self, state: SlotCache, source: int, target: int) -> None:
        """Copy everything slot `source` holds into slot `target`."""
        state.move(source, target)

    @torch.inference_mode()
    def extend(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        """Run several tokens of each of `slots`, the first at `positions`; all are cached.

        A later call may start at an earlier position again: what lies after it is overwritten
        before it can be seen.

        Raises:
            ValueError: a position is outside the model's. On a GPU it is not checked.
        """
        return self.logits(self._decoder.extend(state, slots, tokens, positions))

    @torch.inference_mode()
    def align(
        self,
        state: SlotCache,
        slot: int,
        tokens: Int[Tensor, " token"],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Float[Tensor, "head token pos"], Float[Tensor, "token vocab"]]:
        """Cross-attention, after the softmax, of these (layer, head) while `tokens` are read.

        Also returns the raw logits after each token. Uses the window in `slot`; leaves the slot's
        self-attention cache as it is. Both are float32. Nothing past the frames that were heard
        is attended to.

        Raises:
            ValueError: the model has no such head, or not as many positions as tokens.
        """
        hidden, weights = self._decoder.align(state, slot, tokens, heads)
        return weights, self.logits(hidden)

    @torch.inference_mode()
    def reorder(
        self, state: SlotCache, slots: Sequence[int], sources: Int[Tensor, " slot"]
    ) -> None:
        """Give `slots` the self-attention caches of `sources`; windows stay.

        Raises:
            ValueError: there are not as many sources as slots.
        """
        state.reorder(slots, sources)

    @torch.inference_mode()
    def share(self, state: SlotCache, source: int, targets: Sequence[int]) -> None:
        """Give `targets` the window and the self-attention cache of `source`."""
        state.share(source, targets)


class WhisperSlotModel(WhisperDecoderSlots):
    """A `WhisperForConditionalGeneration` whose decoder keeps its caches in numbered slots.

    Meets `decoding.protocols.SlotModel`. Shares of the decoder of `model` what
    `WhisperDecoderSlots` shares, and its encoder; but on CPUs, in bfloat16 and with `int8`, its
    encoder is a packed copy.
    """

    def __init__(self, model: "WhisperForConditionalGeneration", *, int8: bool = False) -> None:
        super().__init__(model.config, model.model.decoder, model.proj_out, int8=int8)
        encoder = model.model.encoder
        low = self.device.type == "cpu" and (int8 or self.dtype == torch.bfloat16)
        self._encoder = PackedWhisperEncoder(encoder, int8=int8) if low else encoder
        self._weight_bytes += sum(weight.nbytes for weight in encoder.parameters())

    @property
    def has_encoder(self) -> bool:
        """Whether this model encodes windows itself."""
        return True

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
            ValueError: the features are no whole window, or no such part of it can be heard.
        """
        return self._encoder.encode(features.to(self.device, self.dtype), num_frames=num_frames)


def causal_slot_model(model: "WhisperForCausalLM") -> WhisperDecoderSlots:
    """Make an assistant of a decoder that reads the windows its main model encodes."""
    return WhisperDecoderSlots(model.config, model.model.decoder, model.proj_out)
