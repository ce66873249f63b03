"""Read, check and write config.json of Whisper checkpoints, without torch.

Names, defaults and meanings are those of `transformers.WhisperConfig`, version 5.23.
"""

from dataclasses import dataclass
from typing import ClassVar

from corpus_asr.families.model_config import GeneralSettings, ModelConfig


@dataclass(kw_only=True)
class WhisperSettings(GeneralSettings):
    """The fields of `WhisperConfig` beside those of every family."""

    vocab_size: int = 51865
    """Rows of the token embedding: 51,864 English-only, 51,865 multilingual, 51,866 large-v3."""
    num_mel_bins: int = 80
    """Mel bins of the features: 80, or 128 since large-v3."""
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    encoder_ffn_dim: int = 1536
    encoder_layerdrop: float = 0.0
    """Probability of leaving out an encoder layer in training."""
    decoder_layerdrop: float = 0.0
    """Probability of leaving out a decoder layer in training."""
    decoder_start_token_id: int = 50257
    """The token that starts a transcript."""
    use_cache: bool = True
    """Whether the decoder returns its keys and values unless told otherwise."""
    is_encoder_decoder: bool = True
    activation_function: str = "gelu"
    d_model: int = 384
    """Width of both towers."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    """Standard deviation of freshly drawn weights."""
    scale_embedding: bool = False
    """Whether token embeddings are multiplied by sqrt(d_model)."""
    max_source_positions: int = 1500
    """Encoder positions of a window: half its feature frames."""
    max_target_positions: int = 448
    """Longest token sequence the decoder can hold."""
    pad_token_id: int | None = 50256
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    suppress_tokens: tuple[int, ...] | None = None
    """Tokens never sampled; generation_config.json wins where it has them."""
    begin_suppress_tokens: tuple[int, ...] | None = (220, 50256)
    """Tokens not sampled first: the blank and the end."""
    use_weighted_layer_sum: bool = False
    """Whether audio classification averages all layers with learned weights."""
    classifier_proj_size: int = 256
    """Width of the projection before pooling in audio classification."""
    apply_spec_augment: bool = False
    """Whether training masks the features; the six values below say how."""
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    median_filter_width: int = 7
    """Positions of the median filter over cross-attention in word timing; odd."""


class WhisperConfig(ModelConfig, WhisperSettings):
    """Sizes and settings of a Whisper network; the defaults are those of whisper-tiny."""

    model_type: ClassVar[str] = "whisper"
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "num_mel_bins", "encoder_attention_heads", "decoder_attention_heads",
        "encoder_ffn_dim", "decoder_ffn_dim", "d_model", "max_source_positions",
        "max_target_positions", "classifier_proj_size", "mask_time_length", "mask_feature_length",
        "median_filter_width",
    )  # fmt: skip
    counts: ClassVar[tuple[str, ...]] = (
        "encoder_layers", "decoder_layers", "mask_time_min_masks", "mask_feature_min_masks",
    )  # fmt: skip
    probabilities: ClassVar[tuple[str, ...]] = (
        "encoder_layerdrop", "decoder_layerdrop", "dropout", "attention_dropout",
        "activation_dropout", "mask_time_prob", "mask_feature_prob",
    )  # fmt: skip

    def validate(self) -> None:
        """Check that a network can have these sizes and settings."""
        super().validate()
        halves = self.d_model % 2 == 0 and self.d_model > 2
        self.require(halves, "d_model", "an even number above 2")
        odd = self.median_filter_width % 2 == 1
        self.require(odd, "median_filter_width", "an odd number")
