"""What the decoder keeps between calls: `past_key_values`.

In: what the blocks compute. Out: keys and values of all tokens so far, and of the window. Passed
back in, it is continued in place, as transformers' `EncoderDecoderCache` is. Knows no network.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self

from jaxtyping import Int
from torch import Tensor

from corpus_asr.families.layers.past import LayerPast

_PARTS = 4


class DecoderCache:
    """Keys and values of every decoder layer.

    `cache[i]` are the keys and values of the tokens and those of the window, each
    (batch, head, token or pos, head_dim): the four of a layer in the form of old releases.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerPast() for _ in range(num_layers)]

    @classmethod
    def from_legacy_cache(cls, past_key_values: Sequence[Sequence[Tensor]]) -> Self:
        """Make one of a tuple per layer: self keys, self values, cross keys, cross values.

        Raises:
            ValueError: a layer has another number of tensors than 2 or 4.
        """
        cache = cls(len(past_key_values))
        for layer, kept in zip(cache.layers, past_key_values, strict=True):
            if len(kept) not in (2, _PARTS):
                raise ValueError(
                    f"reading past_key_values: found {len(kept)} tensors for a layer, expected "
                    f"keys and values of self-attention and of cross-attention"
                )
            layer.own.pair = kept[0], kept[1]
            layer.cross.pair = (kept[2], kept[3]) if len(kept) == _PARTS else None
        return cache

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        own, cross = self.layers[layer].own.pair, self.layers[layer].cross.pair
        return (*(own or ()), *(cross or ()))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[i] for i in range(len(self)))

    def to_legacy_cache(self) -> tuple[tuple[Tensor, ...], ...]:
        """Return what `from_legacy_cache` takes."""
        return tuple(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens are kept."""
        return self.layers[layer_idx].own.length if self.layers else 0

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Let row i continue what row `beam_idx[i]` was."""
        for layer in self.layers:
            for kept in (layer.own, layer.cross):
                kept.change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def crop(self, max_length: int) -> None:
        """Forget all tokens from `max_length` on; negative: that many of the last."""
        length = self.get_seq_length()
        keep = max(0, length + max_length) if max_length < 0 else min(max_length, length)
        for layer in self.layers:
            layer.own.change(lambda tensor: tensor[:, :, :keep])


def taken(past_key_values: Any, *, num_layers: int) -> DecoderCache | None:
    """Take what a caller gives as `past_key_values`; None stays None.

    Raises:
        ValueError: it is of another kind, or of another number of layers.
    """
    if past_key_values is None:
        return None
    if isinstance(past_key_values, tuple | list):
        past_key_values = DecoderCache.from_legacy_cache(past_key_values)
    if isinstance(past_key_values, DecoderCache) and len(past_key_values) == num_layers:
        return past_key_values
    found = f"a {type(past_key_values).__name__}"
    if isinstance(past_key_values, DecoderCache):
        found += f" of {len(past_key_values)} layers"
    raise ValueError(
        f"continuing with past_key_values: found {found}, expected what a model of {num_layers} "
        f"decoder layers returned"
    )
