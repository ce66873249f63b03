"""What the networks with a projection to the vocabulary share: token tables and the loss.

In: a network with a decoder and a projection. Out: its tables, replaced or resized; the loss of
logits. Knows no text and not what is decoded.
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


class WhisperWithVocabulary(WhisperPreTrainedModel):
    """A decoder, and the projection to the vocabulary, tied to the token embedding."""

    proj_out: nn.Linear

    _tied: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    _generates: ClassVar[bool] = True

    def _add_projection(self, config: WhisperConfig) -> None:
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self._draw("proj_out.weight", self.proj_out.weight)
        self.tie_weights()

    def get_decoder(self) -> WhisperDecoder:
        """Return the decoder."""
        decoder = self.get_submodule("model.decoder")
        assert isinstance(decoder, WhisperDecoder)
        return decoder

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table of token embeddings."""
        return self.get_decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of token embeddings."""
        self.get_decoder().embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """Return the projection to the vocabulary."""
        return self.proj_out

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
        self.proj_out = new_embeddings

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
        embedding, tied = self.get_input_embeddings(), self._shares(*next(iter(self._tied.items())))
        for table in (embedding,) if tied else (embedding, self.proj_out):
            table.weight = nn.Parameter(self._resized(table.weight, size, mean=mean_resizing))
        embedding.num_embeddings = self.proj_out.out_features = self.config.vocab_size = size
        if tied:
            self.proj_out.weight = embedding.weight
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
