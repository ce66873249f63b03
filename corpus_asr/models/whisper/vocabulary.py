"""What the networks with a vocabulary share: token tables, the projection to it, and the loss.

In: a network with a decoder. Out: its tables, replaced or resized; the loss of logits. Knows no
text and not what is decoded.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.models.whisper.config import WhisperConfig
from corpus_asr.models.whisper.decoder import WhisperDecoder, check_tokens
from corpus_asr.models.whisper.pretrained import WhisperPreTrainedModel

IGNORED_LABEL = -100
"""Label of a token that the loss leaves out."""


class WhisperWithTokens(WhisperPreTrainedModel):
    """A decoder with its table of token embeddings."""

    _decoder: ClassVar[str] = "decoder"
    """Where it is in the network."""

    def get_decoder(self) -> WhisperDecoder:
        """Return the decoder."""
        decoder = self.get_submodule(self._decoder)
        assert isinstance(decoder, WhisperDecoder)
        return decoder

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table of token embeddings."""
        return self.get_decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of token embeddings."""
        self.get_decoder().embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the projection to the vocabulary; None where there is none."""
        return None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Change how many tokens there are; rows of tokens that stay are kept.

        Args:
            new_num_tokens: None keeps the number, up to `pad_to_multiple_of`.
            pad_to_multiple_of: rounds the number up.
            mean_resizing: whether new rows are the mean of the old; else they are drawn.

        Raises:
            ValueError: there would be no token.
        """
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size < 1:
            raise ValueError(f"resizing the vocabulary: found {size} tokens, expected at least 1")
        embedding, projection = self.get_input_embeddings(), self.get_output_embeddings()
        tied = all(self._shares(*names) for names in self._tied.items())
        for table in (embedding,) if tied or projection is None else (embedding, projection):
            table.weight = nn.Parameter(self._resized(table.weight, size, mean=mean_resizing))
        embedding.num_embeddings = self.config.vocab_size = size
        if projection is not None:
            projection.out_features = size
            projection.weight = embedding.weight if tied else projection.weight
        return embedding

    @torch.no_grad()
    def _resized(
        self, table: Float[Tensor, "vocab width"], size: int, *, mean: bool
    ) -> Float[Tensor, "_ width"]:
        more = max(0, size - len(table))
        if mean:
            rows = table.mean(dim=0, keepdim=True).expand(more, -1)
        else:
            rows = table.new_empty(more, table.shape[1]).normal_(std=self.config.init_std)
        return torch.cat([table[:size], rows])


class WhisperWithVocabulary(WhisperWithTokens):
    """A decoder, and the projection to the vocabulary, tied to the token embedding."""

    proj_out: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    _generates: ClassVar[bool] = True
    _decoder: ClassVar[str] = "model.decoder"

    def _add_projection(self, config: WhisperConfig) -> None:
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self._draw("proj_out.weight", self.proj_out.weight)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the projection to the vocabulary."""
        return self.proj_out

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
        self.proj_out = new_embeddings

    def _check_labels(self, labels: Tensor) -> None:
        size = self.config.vocab_size
        check_tokens(labels, size, doing="training", what="labels", ignored=IGNORED_LABEL)
        if labels.shape[1] > self.max_target_positions:
            raise ValueError(
                f"training: found labels of {labels.shape[1]} tokens, expected at most the "
                f"model's {self.max_target_positions} positions; cut or drop the example"
            )


def token_loss(
    logits: Float[Tensor, "batch token vocab"], labels: Tensor | None
) -> Float[Tensor, ""] | None:
    """Return the mean cross entropy of (batch, token) labels; None without labels.

    Raises:
        ValueError: there is not one label for each token.
    """
    if labels is None:
        return None
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"training: found labels of shape {tuple(labels.shape)}, expected "
            f"{tuple(logits.shape[:2])}, one for each decoder token"
        )
    targets = labels.to(logits.device, torch.long).flatten()
    return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED_LABEL)
