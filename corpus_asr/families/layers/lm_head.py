"""What the networks with a vocabulary share: token tables, the projection to it, and the loss.

In: a network with a decoder. Out: its tables, replaced or resized; the loss of logits. Knows no
text and not what is decoded.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corpus_asr.families.layers.decoder import check_tokens
from corpus_asr.families.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from corpus_asr.families.pretrained import PreTrainedModel

IGNORED_LABEL = -100
"""Label of a token that the loss leaves out."""


class TokenTables(PreTrainedModel):
    """A network whose decoder has a table of token embeddings."""

    _decoder: ClassVar[str] = "decoder"
    """Where the decoder is in the network."""

    def get_decoder(self) -> Any:
        """Return the decoder."""
        return self.get_submodule(self._decoder)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table of token embeddings."""
        table: nn.Embedding = self.get_decoder().embed_tokens
        return table

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


class Vocabulary(TokenTables):
    """A network that also projects to the vocabulary, tied to the token embedding or not."""

    _projection: ClassVar[str]
    """Where the projection is in the network."""

    def get_output_embeddings(self) -> nn.Linear:
        """Return the projection to the vocabulary."""
        projection: nn.Linear = getattr(self, self._projection)
        return projection

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
        setattr(self, self._projection, new_embeddings)

    def _add_projection(self) -> None:
        config = self.config
        projection = nn.Linear(config.d_model, config.vocab_size, bias=False)
        setattr(self, self._projection, projection)
        self._draw(f"{self._projection}.weight", projection.weight)
        self.tie_weights()

    def _scored(
        self, outputs: Seq2SeqModelOutput, labels: Tensor | None, return_dict: bool | None
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Score the vocabulary after each token, and tell how far labels are."""
        logits = self.get_output_embeddings()(outputs.last_hidden_state)
        found = {name: outputs[name] for name in outputs if name != "last_hidden_state"}
        output = Seq2SeqLMOutput(loss=token_loss(logits, labels), logits=logits, **found)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _check_labels(self, labels: Tensor) -> None:
        size = self.config.vocab_size
        check_tokens(labels, size, doing="training", what="labels", ignored=IGNORED_LABEL)

    def _shifted(self, labels: Tensor) -> Tensor:
        """Return what the decoder is given for `labels`: each token one place later."""
        if self.config.pad_token_id is None:
            raise ValueError(
                "training: config.pad_token_id is None, expected the token that stands for "
                "ignored labels; set it, or pass decoder_input_ids"
            )
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        shifted = F.pad(labels, (1, -1))
        shifted = shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)
        shifted[:, :1] = start
        return shifted


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
