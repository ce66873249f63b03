"""What slot models have in common: tokens in, logits out, caches in numbered slots."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.protocols import Slots
from corpus_asr.families.layers.blocks import Hidden
from corpus_asr.families.layers.kv_cache import SlotCache, TokenView
from corpus_asr.families.layers.projection import Projection, smoothed

Tokens = Int[Tensor, "batch token"]


class TokenSlots(ABC):
    """A `decoding.protocols.SlotModel` except for the encoder and how prompts are read."""

    has_encoder = True

    float8_windows = False
    """Whether a GPU stores the keys and values of windows in 8 bits."""

    max_target_positions: int
    """Longest sequence of tokens."""

    _weight_bytes: int
    """Bytes of the weights of encoder and decoder."""
    _blocks: Sequence[Any]
    _heads: int
    """Heads of keys and values."""

    def __init__(
        self, tokens: nn.Embedding, norm: Any, projection: nn.Linear, *, positions: int, int8: bool
    ) -> None:
        """`norm` is the last one, before the `projection`; windows have `positions`."""
        self._tokens = tokens
        self._norm = norm
        self._int8 = int8
        # Its inputs have outlier channels: without smoothing, most of int8's error is from here.
        factors = smoothed(norm, [projection])[1] if int8 else None
        self._vocabulary_factors = factors
        self._vocabulary = Projection([projection], int8=int8, input_factors=factors)
        self._max_source_positions = positions
        self.vocab_size = projection.out_features

    @property
    def device(self) -> torch.device:
        return self._tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._tokens.weight.dtype

    @property
    def window_shape(self) -> tuple[int, int]:
        return self._max_source_positions, self._tokens.embedding_dim

    @abstractmethod
    def _new_cache(self, **sizes: Any) -> SlotCache:
        """Allocate the caches, of `sizes` and of what differs between models."""

    def new_state(self, slots: int, *, beams: int = 1) -> Any:
        if slots < 1:
            raise ValueError(f"allocating {slots} slots: expected at least 1")
        with torch.inference_mode():
            return self._new_cache(
                layers=len(self._blocks),
                slots=slots,
                beams=beams,
                heads=self._heads,
                tokens=self.max_target_positions,
                positions=self._max_source_positions,
                dtype=self.dtype,
                device=self.device,
            )

    def _check_encoded(self, slots: Slots, encoded: Float[Tensor, "batch pos width"]) -> None:
        if tuple(encoded.shape[1:]) != self.window_shape:
            raise ValueError(
                f"filling {len(slots)} slots: found windows of {tuple(encoded.shape[1:])} "
                f"(positions, width), expected {self.window_shape}; encode them with this model, "
                "or with one of the same shape"
            )

    @abstractmethod
    def _extend(self, state: Any, view: TokenView, tokens: Tokens, *, sharing: int) -> Hidden:
        """Run the next tokens of slots, of which `sharing` adjacent ones share a window."""

    @torch.inference_mode()
    def step(
        self,
        state: SlotCache,
        tokens: Int[Tensor, " slot"],
        positions: Int[Tensor, " slot"],
        *,
        reach: int | None = None,
    ) -> Float[Tensor, "slot vocab"]:
        if len(tokens) % state.beams:
            raise ValueError(
                f"advancing {len(tokens)} slots: each {state.beams} of them share a window, "
                "expected all or none of them; pass a token for each"
            )
        view = state.view_tokens(range(len(tokens)), positions.unsqueeze(1), reach=reach)
        hidden = self._extend(state, view, tokens.unsqueeze(1), sharing=state.beams)
        return self.logits(hidden.squeeze(1))

    @torch.inference_mode()
    def extend(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Tokens,
        positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch token vocab"]:
        following = torch.arange(tokens.shape[1], device=positions.device)
        view = state.view_tokens(slots, positions.unsqueeze(1) + following)
        return self.logits(self._extend(state, view, tokens, sharing=1))

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        if self._vocabulary_factors is not None:
            hidden = hidden / self._vocabulary_factors
        return self._vocabulary(hidden).float()

    @torch.inference_mode()
    def move(self, state: SlotCache, source: int, target: int) -> None:
        state.move(source, target)

    @torch.inference_mode()
    def reorder(
        self, state: SlotCache, slots: Sequence[int], sources: Int[Tensor, " slot"]
    ) -> None:
        state.reorder(slots, sources)


def check_prompts(tokens: Tokens, lengths: Sequence[int]) -> None:
    """Raise ValueError for lengths of prompts that their rows cannot have."""
    if not all(1 <= length <= tokens.shape[1] for length in lengths):
        raise ValueError(
            f"running prompts padded to {tokens.shape[1]} tokens: found lengths "
            f"{list(lengths)}, expected 1 to {tokens.shape[1]}"
        )
