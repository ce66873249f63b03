"""Whisper's decoder: over whole token sequences, and token by token in slots.

In: token ids and the encoder's hidden states. Out: hidden states, one per token. Knows no text,
no sampling, and not the projection to the vocabulary.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.models.layers.blocks import DecoderBlock
from corpus_asr.models.whisper.config import WhisperConfig


class WhisperDecoder(nn.Module):
    """Token and learned position embeddings, pre-norm blocks and a last norm.

    Token embeddings are never scaled: transformers reads `scale_embedding` but does not apply it,
    and every released checkpoint has it false.

    Source: Radford et al. 2022, section 2.2; parameter names of
    transformers/models/whisper/modeling_whisper.py, equal to it within 1e-5 in float32.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        width = config.d_model
        self.heads = config.decoder_attention_heads
        self.max_target_positions = config.max_target_positions
        self.max_source_positions = config.max_source_positions
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        self.layers = nn.ModuleList(
            DecoderBlock(
                width,
                heads=config.decoder_attention_heads,
                ffn_dim=config.decoder_ffn_dim,
                activation_name=config.activation_function,
                key_bias=False,
            )
            for _ in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        encoder_hidden_states: Float[Tensor, "batch pos width"],
    ) -> Float[Tensor, "batch token width"]:
        """Run whole sequences; each token sees itself and those before it.

        Raises:
            ValueError: the sequences are longer than `max_target_positions`.
        """
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, encoder_hidden_states)
        normed: Tensor = self.layer_norm(hidden)
        return normed

    def embed(self, input_ids: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        """Embed sequences that start at position 0.

        Raises:
            ValueError: the sequences are longer than `max_target_positions`.
        """
        length = input_ids.shape[1]
        if length > self.max_target_positions:
            raise ValueError(
                f"decoding {length} tokens: the model has {self.max_target_positions} positions; "
                f"cut the prompt or the sequence"
            )
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded + self.embed_positions.weight[:length]
