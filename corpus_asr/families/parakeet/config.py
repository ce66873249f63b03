"""Read, check and write what a Parakeet checkpoint says of its network, torch-free.

Names, defaults and meanings are those of `transformers.models.parakeet`, version 5.23.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from corpus_asr.families.model_config import (
    Count,
    MelBins,
    ModelConfig,
    Positions,
    Size,
)
from corpus_asr.json_values import Bounds


@dataclass(kw_only=True, init=False)
class ParakeetEncoderConfig(ModelConfig):
    """Sizes and settings of a FastConformer encoder; the defaults are parakeet-ctc-1.1b's."""

    model_type: ClassVar[str] = "parakeet_encoder"
    other_names: ClassVar[dict[str, str]] = {
        **ModelConfig.other_names,
        "num_key_value_heads": "num_attention_heads",
    }

    hidden_size: Size = 1024
    num_hidden_layers: Count = 24
    num_attention_heads: Size = 8
    intermediate_size: Size = 4096
    hidden_act: str = "silu"
    attention_bias: bool = True
    """Whether attention and the linear layers have biases."""
    convolution_bias: bool = True
    conv_kernel_size: Size = 9
    """Positions that the depthwise convolution of a block sees; odd."""
    subsampling_factor: Annotated[int, Bounds(2, 64)] = 8
    """Feature frames of a position; a power of two."""
    subsampling_conv_channels: Size = 256
    num_mel_bins: MelBins = 80
    subsampling_conv_kernel_size: Annotated[int, Bounds(1, 31)] = 3
    subsampling_conv_stride: Annotated[int, Bounds(2, 2)] = 2
    max_position_embeddings: Positions = 5000
    """Most positions of an input: 400 s of 80 ms."""
    scale_input: bool = True
    """Whether what the convolutions give is multiplied by the root of the width."""
    initializer_range: float = 0.02
    """Standard deviation of freshly drawn weights."""

    def validate(self) -> None:
        """Check that a network can have these sizes and settings."""
        super().validate()
        heads = self.num_attention_heads
        fits = self.hidden_size % 2 == 0 and self.hidden_size % heads == 0
        self.require(fits, "hidden_size", f"an even multiple of {heads} heads")
        for name in ("conv_kernel_size", "subsampling_conv_kernel_size"):
            # An even kernel, centered on no position, makes one too many.
            self.require(getattr(self, name) % 2 == 1, name, "an odd number")
        factor = self.subsampling_factor
        self.require(factor & (factor - 1) == 0, "subsampling_factor", "a power of two")
        self.require(
            self.num_mel_bins % factor == 0, "num_mel_bins", f"a multiple of {factor}: convolutions"
            " shorten this axis, too",
        )  # fmt: skip

    @property
    def num_convolutions(self) -> int:
        """Number of convolutions before the blocks, each of which halves the number of frames."""
        return self.subsampling_factor.bit_length() - 1


@dataclass(kw_only=True, init=False)
class ParakeetConfig(ModelConfig):
    """Config shared by all heads: the encoder's, which is one of its own."""

    encoder_config: ParakeetEncoderConfig = field(default_factory=ParakeetEncoderConfig)
    vocab_size: Size = 1025
    """Tokens, blank among them."""
    pad_token_id: int | None = None

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        self._require_token("pad_token_id", optional=True)

    def _require_token(self, name: str, *, optional: bool = False) -> None:
        token = getattr(self, name)
        fits = (token is None and optional) or (token is not None and 0 <= token < self.vocab_size)
        self.require(fits, name, f"a token of 0 to {self.vocab_size - 1}")


@dataclass(kw_only=True, init=False)
class ParakeetCTCConfig(ParakeetConfig):
    """Sizes and settings of an encoder with a CTC head; its blank is the padding token."""

    model_type: ClassVar[str] = "parakeet_ctc"

    vocab_size: Size = 1025
    pad_token_id: int | None = 1024

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        self._require_token("pad_token_id")


@dataclass(kw_only=True, init=False)
class ParakeetRNNTConfig(ParakeetConfig):
    """Sizes and settings of an encoder with an RNN-T head."""

    model_type: ClassVar[str] = "parakeet_rnnt"

    vocab_size: Size = 8193
    pad_token_id: int | None = 2
    blank_token_id: int = 8192
    decoder_hidden_size: Size = 640
    """Width of the prediction network and of the joint network."""
    num_decoder_layers: Annotated[int, Bounds(1, 100)] = 2
    hidden_act: str = "relu"
    """Activation of the joint network."""
    max_symbols_per_step: Annotated[int, Bounds(1, 100)] = 10
    """Most tokens that greedy search takes from one position."""

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        self._require_token("blank_token_id")


@dataclass(kw_only=True, init=False)
class ParakeetTDTConfig(ParakeetRNNTConfig):
    """Sizes and settings of an encoder with a TDT head, which says how long a token lasts."""

    model_type: ClassVar[str] = "parakeet_tdt"

    durations: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Positions that a token or blank may last, by the number of its score."""

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        right = any(duration > 0 for duration in self.durations) and min(self.durations) >= 0
        self.require(right, "durations", "numbers from 0, one above 0 among them")
