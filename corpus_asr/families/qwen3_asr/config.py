"""Read and check the config.json of a Qwen3-ASR checkpoint, torch-free.

Names, defaults and meanings are those of `transformers.models.qwen3_asr`, version 5.23.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from corpus_asr.families.model_config import Count, MelBins, ModelConfig, Probability, Size
from corpus_asr.families.text_config import TextConfig

# Three convolutions of stride 2.
STRIDE = 8


@dataclass(kw_only=True, init=False)
class Qwen3ASREncoderConfig(ModelConfig):
    """Sizes of the audio encoder; the defaults are Qwen3-ASR-1.7B's."""

    model_type: ClassVar[str] = "qwen3_asr_encoder"
    other_names: ClassVar[dict[str, str]] = {
        **ModelConfig.other_names,
        "num_hidden_layers": "encoder_layers",
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
    }

    num_mel_bins: MelBins = 128
    encoder_layers: Count = 24
    encoder_attention_heads: Size = 16
    encoder_ffn_dim: Size = 4096
    d_model: Size = 1024
    dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    activation_dropout: Probability = 0.0
    activation_function: str = "gelu"
    n_window: Size = 50
    """Half the frames of a chunk, which the convolutions read alone."""
    n_window_infer: Size = 800
    """Frames that attend to one another; a multiple of a chunk."""
    output_dim: Size = 2048
    downsample_hidden_size: Size = 480
    max_position_embeddings: Size = 13

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        heads = self.encoder_attention_heads
        fits = self.d_model % (2 * heads) == 0 and self.d_model > 3
        self.require(fits, "d_model", f"an even multiple of {heads} heads")
        whole = self.n_window_infer % self.chunk_frames == 0
        self.require(whole, "n_window_infer", f"a multiple of {self.chunk_frames} frames")
        least = self.max_position_embeddings >= self.chunk_positions
        self.require(least, "max_position_embeddings", f"at least {self.chunk_positions}")

    @property
    def chunk_frames(self) -> int:
        """Number of feature frames of a chunk."""
        return 2 * self.n_window

    @property
    def chunk_positions(self) -> int:
        """Number of positions of a whole chunk."""
        return -(-self.chunk_frames // STRIDE)

    def positions(self, num_frames: int) -> int:
        """Return the number of encoder positions for a window of so many frames."""
        chunks, rest = divmod(num_frames, self.chunk_frames)
        # Each convolution halves a chunk, rounding up.
        return chunks * self.chunk_positions + -(-rest // STRIDE)


@dataclass(kw_only=True, init=False)
class Qwen3ASRConfig(ModelConfig):
    """Sizes and tokens of a Qwen3-ASR checkpoint in the layout of transformers."""

    model_type: ClassVar[str] = "qwen3_asr"

    audio_config: Qwen3ASREncoderConfig = field(default_factory=Qwen3ASREncoderConfig)
    text_config: TextConfig = field(default_factory=lambda: TextConfig(hidden_size=2048))
    audio_token_id: int = 151676
    """Token in whose place a prompt has an encoder position."""
    timestamp_token_id: int = 151705
    """Of an aligner: the token before and after each word, at which its times are read."""
    token_classification_bias: bool = False
    """Whether an aligner's scores have biases."""
    eos_token_id: int | tuple[int, ...] = (151643, 151645)
    """Tokens that end a text."""

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        if "thinker_config" in self.extra:
            raise ValueError(
                f"making a {type(self).__name__}: found thinker_config, the publisher's first "
                "layout, expected audio_config and text_config; choose the checkpoint of the same "
                "name that ends in -hf"
            )
        width, size = self.text_config.hidden_size, self.text_config.vocab_size
        if self.audio_config.output_dim != width:
            raise ValueError(
                f"making a {type(self).__name__}: audio_config has the output_dim "
                f"{self.audio_config.output_dim}, expected {width}, the hidden_size of "
                "text_config; choose another checkpoint"
            )
        tokens = self.audio_token_id, *self.end_tokens
        fits = all(0 <= token < size for token in tokens)
        self.require(fits, "audio_token_id", f"as eos_token_id, a token of 0 to {size - 1}")
        self.require(bool(self.end_tokens), "eos_token_id", "one token or more")

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        tokens = self.eos_token_id
        return (tokens,) if isinstance(tokens, int) else tuple(tokens)
