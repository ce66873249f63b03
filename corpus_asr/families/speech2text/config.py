"""Speech2Text's config.json: reading, validation and writing, without torch.

Names, defaults and meanings are those of `transformers.Speech2TextConfig`, version 5.23.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from corpus_asr.families.model_config import (
    Count,
    EncoderDecoderConfig,
    MelBins,
    Positions,
    Probability,
    Size,
)
from corpus_asr.json_values import Bounds


@dataclass(kw_only=True, init=False)
class Speech2TextConfig(EncoderDecoderConfig):
    """Dimensions and settings of a Speech2Text network; defaults of s2t-small-librispeech-asr."""

    model_type: ClassVar[str] = "speech_to_text"

    vocab_size: Size = 10000
    encoder_layers: Count = 12
    encoder_attention_heads: Size = 4
    encoder_ffn_dim: Size = 2048
    decoder_layers: Count = 6
    decoder_attention_heads: Size = 4
    decoder_ffn_dim: Size = 2048
    d_model: Size = 256
    activation_function: str = "relu"
    dropout: Probability = 0.1
    scale_embedding: bool = True
    # Feature frames of an input, before the convolutions shorten it.
    max_source_positions: Positions = 6000
    max_target_positions: Positions = 1024
    decoder_start_token_id: int = 2
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    num_conv_layers: Annotated[int, Bounds(1, 20)] = 2
    """Number of convolutions before the encoder; each halves the number of frames."""
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    """Kernel size of each convolution in frames."""
    conv_channels: Size = 1024
    """Channels of every convolution but the last, before its gate halves them."""
    input_feat_per_channel: MelBins = 80
    """Mel bins of the features."""
    input_channels: MelBins = 1
    """Channels of the features, concatenated in each frame."""

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        self.require(self.d_model > 3, "d_model", "at least 4")  # sinusoids with at least two rates
        right = len(self.conv_kernel_sizes) == self.num_conv_layers
        expected = f"as many sizes as num_conv_layers: {self.num_conv_layers}"
        self.require(right, "conv_kernel_sizes", expected)
        # An even kernel, not centered on a frame, gives one position too many.
        odd = all(size > 0 and size % 2 == 1 for size in self.conv_kernel_sizes)
        self.require(odd, "conv_kernel_sizes", "odd numbers")
        halves = self.num_conv_layers == 1 or self.conv_channels % 2 == 0
        self.require(halves, "conv_channels", "an even number")
