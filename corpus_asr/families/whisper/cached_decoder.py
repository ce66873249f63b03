"""Whisper's decoder, token by token in slots.

In: a loaded decoder. Out: a `CachedDecoder` made of it. Knows no text and no sampling.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.families.layers.cached_decoder import CachedDecoder
from corpus_asr.families.whisper.decoder import WhisperDecoder


class LearnedPositions:
    """Tokens and positions each have learned rows, which are added."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding) -> None:
        self._tokens = tokens
        self._positions = positions

    @property
    def weight(self) -> Float[Tensor, "vocab width"]:
        """Of the tokens."""
        return self._tokens.weight

    def start(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0."""
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + self._positions.weight[: tokens.shape[1]]

    def at(
        self, tokens: Int[Tensor, "*batch"], positions: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch width"]:
        """Embed tokens, each at its own position."""
        embedded = F.embedding(tokens, self._tokens.weight)
        return embedded + F.embedding(positions, self._positions.weight)


def cached_whisper_decoder(decoder: WhisperDecoder, *, int8: bool = False) -> CachedDecoder:
    """Make the form of a decoder that keeps the keys and values of many sequences in slots."""
    return CachedDecoder(
        LearnedPositions(decoder.embed_tokens, decoder.embed_positions),
        decoder.layers,
        decoder.layer_norm,
        heads=decoder.heads,
        max_source_positions=decoder.max_source_positions,
        max_target_positions=decoder.max_target_positions,
        int8=int8,
    )
