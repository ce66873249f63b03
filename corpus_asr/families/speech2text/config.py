"""Read, check and write config.json of Speech2Text checkpoints, without torch.

Names, defaults and meanings are those of `transformers.Speech2TextConfig`, version 5.23.
"""

from dataclasses import dataclass
from typing import ClassVar

from corpus_asr.families.model_config import GeneralSettings, ModelConfig


@dataclass(kw_only=True)
class Speech2TextSettings(GeneralSettings):
    """The fields of `Speech2TextConfig` beside those of every family."""

    vocab_size: int = 10000
    """Rows of the token embedding."""
    encoder_layers: int = 12
    encoder_ffn_dim: int = 2048
    encoder_attention_heads: int = 4
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 4
    encoder_layerdrop: float = 0.0
    """Probability of leaving out an encoder layer in training."""
    decoder_layerdrop: float = 0.0
    """Probability of leaving out a decoder layer in training."""
    use_cache: bool = True
    """Whether the decoder returns its keys and values unless told otherwise."""
    is_encoder_decoder: bool = True
    activation_function: str = "relu"
    d_model: int = 256
    """Width of both towers."""
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    """Standard deviation of freshly drawn weights."""
    decoder_start_token_id: int = 2
    """The token that starts a transcript: the end token."""
    scale_embedding: bool = True
    """Whether token embeddings are multiplied by sqrt(d_model)."""
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    max_source_positions: int = 6000
    """Most feature frames of an input (before the convolutions shorten it)."""
    max_target_positions: int = 1024
    """Longest token sequence the decoder can hold."""
    num_conv_layers: int = 2
    """Convolutions before the encoder; each halves the number of frames."""
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    """Frames that each convolution sees."""
    conv_channels: int = 1024
    """Channels of every convolution but the last, before its gate halves them."""
    input_feat_per_channel: int = 80
    """Mel bins of the features."""
    input_channels: int = 1
    """Channels of the features, one after the other in each frame."""


class Speech2TextConfig(ModelConfig, Speech2TextSettings):
    """Sizes and settings of a Speech2Text network; the defaults are s2t-small-librispeech-asr's."""

    model_type: ClassVar[str] = "speech_to_text"
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim",
        "decoder_ffn_dim", "d_model", "max_source_positions", "max_target_positions",
        "num_conv_layers", "conv_channels", "input_feat_per_channel", "input_channels",
    )  # fmt: skip
    counts: ClassVar[tuple[str, ...]] = ("encoder_layers", "decoder_layers")
    probabilities: ClassVar[tuple[str, ...]] = (
        "encoder_layerdrop", "decoder_layerdrop", "dropout", "attention_dropout",
        "activation_dropout",
    )  # fmt: skip

    def validate(self) -> None:
        """Check that a network can have these sizes and settings."""
        super().validate()
        self.require(self.d_model > 3, "d_model", "at least 4")  # sines of two or more rates
        right = len(self.conv_kernel_sizes) == self.num_conv_layers
        expected = f"as many sizes as num_conv_layers says: {self.num_conv_layers}"
        self.require(right, "conv_kernel_sizes", expected)
        # An even kernel, centred on no frame, makes one position too many.
        odd = all(size > 0 and size % 2 == 1 for size in self.conv_kernel_sizes)
        self.require(odd, "conv_kernel_sizes", "odd numbers")
        halves = self.num_conv_layers == 1 or self.conv_channels % 2 == 0
        self.require(halves, "conv_channels", "an even number")
