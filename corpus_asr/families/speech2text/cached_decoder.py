"""Speech2Text's decoder, token by token in slots.

In: a loaded decoder. Out: a `CachedDecoder` made of it. Knows no text and no sampling.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.cached_decoder import CachedDecoder
from corpus_asr.families.speech2text.decoder import Speech2TextDecoder
from corpus_asr.families.speech2text.positions import Speech2TextPositions


class SinusoidalPositions:
    """Scaled rows of the tokens, to which those of their positions are added."""

    def __init__(
        self, tokens: nn.Embedding, positions: Speech2TextPositions, *, scale: float, length: int
    ) -> None:
        self._tokens = tokens
        self._scale = scale
        self._padding_row = positions.padding_row
        self._positions = positions.rows(length, like=tokens.weight)

    @property
    def weight(self) -> Float[Tensor, "vocab width"]:
        """Of the tokens."""
        return self._tokens.weight

    def start(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0; padding among them takes no position."""
        counted = tokens != self._padding_row
        return self._embed(tokens, counted.cumsum(dim=1) * counted + self._padding_row)

    def at(
        self, tokens: Int[Tensor, "*batch"], positions: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch width"]:
        """Embed tokens, each at its own position; padding has none."""
        places = positions + (self._padding_row + 1)
        return self._embed(
            tokens, places.masked_fill_(tokens == self._padding_row, self._padding_row)
        )

    def _embed(
        self, tokens: Int[Tensor, "*batch"], places: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch width"]:
        embedded = F.embedding(tokens, self._tokens.weight)
        return torch.add(F.embedding(places, self._positions), embedded, alpha=self._scale)


def cached_speech2text_decoder(
    decoder: Speech2TextDecoder, *, positions: int, int8: bool = False
) -> CachedDecoder:
    """Make the form of a decoder that keeps the keys and values of many sequences in slots.

    Args:
        decoder: loaded.
        positions: of the encoder in a window.
        int8: whether linear maps are rounded to 8 bits.
    """
    length = decoder.max_target_positions
    return CachedDecoder(
        SinusoidalPositions(
            decoder.embed_tokens,
            decoder.embed_positions,
            scale=decoder.embed_scale,
            length=length,
        ),
        decoder.layers,
        decoder.layer_norm,
        heads=decoder.heads,
        max_source_positions=positions,
        max_target_positions=length,
        int8=int8,
    )
