"""A decoder in the form that search runs: caches in numbered slots.

In: encoded windows, token ids and slots. Out: logits. Meets `decoding.protocols.SlotModel` but for
the encoder, which each family adds; knows no text, no features and no search.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.cache import SlotCache
from corpus_asr.families.layers.cached_decoder import CachedDecoder
from corpus_asr.families.layers.projection import Projection


class DecoderSlots(ABC):
    """A decoder and its projection to the vocabulary, with caches in numbered slots.

    Windows are filled in as they were encoded elsewhere. What a slot gives does not depend on what
    the others hold.

    Args:
        decoder: holds the caches' shape.
        projection: to the vocabulary; a copy is packed.
        int8: whether the projection is rounded to 8 bits.
    """

    def __init__(
        self, decoder: CachedDecoder, projection: nn.Linear, *, int8: bool = False
    ) -> None:
        self._decoder = decoder
        self._vocab_size = projection.out_features
        self._vocabulary = Projection([projection], int8=int8)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._decoder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and caches."""
        return self._decoder.weight.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def max_target_positions(self) -> int:
        """Longest token sequence a slot can hold."""
        return self._decoder.max_target_positions

    @property
    def window_shape(self) -> tuple[int, int]:
        """Positions and width of an encoded window."""
        return self._decoder.max_source_positions, self._decoder.weight.shape[1]

    @abstractmethod
    def positions_heard(self, num_frames: Sequence[int], *, windows: int) -> list[int]:
        """Return how many encoder positions so many frames of each of some windows make.

        Raises:
            ValueError: so many frames cannot be heard, or there is not one number for each window.
        """

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
            num_positions = self.positions_heard(num_frames, windows=len(encoded))
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
