"""Read, check and write config.json of Whisper checkpoints, without torch.

Names, defaults and meanings are those of `transformers.WhisperConfig`, version 5.23.
"""

from dataclasses import dataclass
from typing import ClassVar

from corpus_asr.families.model_config import (
    Count,
    EncoderDecoderConfig,
    MelBins,
    Positions,
    Probability,
    Size,
)


@dataclass(kw_only=True, init=False)
class WhisperConfig(EncoderDecoderConfig):
    """Sizes and settings of a Whisper network; the defaults are those of whisper-tiny."""

    model_type: ClassVar[str] = "whisper"

    # 51,864 English-only, 51,865 multilingual, 51,866 large-v3.
    vocab_size: Size = 51865
    num_mel_bins: MelBins = 80
    """Mel bins of the features: 80, or 128 since large-v3."""
    encoder_layers: Count = 4
    encoder_attention_heads: Size = 6
    encoder_ffn_dim: Size = 1536
    decoder_layers: Count = 4
    decoder_attention_heads: Size = 6
    decoder_ffn_dim: Size = 1536
    d_model: Size = 384
    activation_function: str = "gelu"
    dropout: Probability = 0.0
    scale_embedding: bool = False
    # Encoder positions of a window: half its feature frames.
    max_source_positions: Positions = 1500
    max_target_positions: Positions = 448
    decoder_start_token_id: int = 50257
    pad_token_id: int | None = 50256
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    suppress_tokens: tuple[int, ...] | None = None
    """Tokens never sampled; generation_config.json wins where it has them."""
    begin_suppress_tokens: tuple[int, ...] | None = (220, 50256)
    """Tokens not sampled first: the blank and the end."""
    use_weighted_layer_sum: bool = False
    """Whether audio classification averages all layers with learned weights."""
    classifier_proj_size: Size = 256
    """Width of the projection before pooling in audio classification."""
    apply_spec_augment: bool = False
    """Whether training masks the features; the six values below say how."""
    mask_time_prob: Probability = 0.05
    mask_time_length: Size = 10
    mask_time_min_masks: Count = 2
    mask_feature_prob: Probability = 0.0
    mask_feature_length: Size = 10
    mask_feature_min_masks: Count = 0
    median_filter_width: Size = 7
    """Positions of the median filter over cross-attention in word timing; odd."""

    def validate(self) -> None:
        """Check that a network can have these sizes and settings."""
        super().validate()
        # Half of the position's values are sines, half cosines, of two or more rates.
        halves = self.d_model % 2 == 0 and self.d_model > 2
        self.require(halves, "d_model", "an even number above 2")
        # An even window has no middle position, and would move words in time.
        odd = self.median_filter_width % 2 == 1
        self.require(odd, "median_filter_width", "an odd number")
