"""What a Whisper checkpoint says about itself: config.json.

In: a checkpoint folder. Out: a frozen, typed value; keys it does not know are kept for saving.
Knows no weights and imports no torch. Names and defaults are those of
`transformers.WhisperConfig`, version 5.23, and so is the meaning of every key.
"""

from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from corpus_asr.errors import CheckpointError
from corpus_asr.models.config_file import (
    plain_values,
    read_json_object,
    typed_values,
    write_json_object,
)

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Sizes and settings of a Whisper network; the defaults are those of whisper-tiny."""

    model_type: ClassVar[str] = "whisper"

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
    tie_word_embeddings: bool = True
    """Whether the output projection shares the token embedding's weights."""
    extra: dict[str, Any] = field(
        default_factory=dict, hash=False, repr=False, metadata={"in_file": False}
    )
    """Keys of the file that this class does not know, kept for saving."""

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read config.json of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing or broken, is of another model type, or a key
                holds a value of the wrong type.
        """
        path = Path(folder) / CONFIG_NAME
        content = read_json_object(path)
        model_type = content.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CheckpointError(
                f"reading {path}: found model_type {model_type!r}, expected {cls.model_type!r}; "
                f"choose a Whisper checkpoint"
            )
        known, unknown = typed_values(cls, content, path=path)
        return cls(**known, extra=unknown)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds: every field, the unknown keys and the model type."""
        own = {f.name: plain_values(getattr(self, f.name)) for f in fields(self)}
        extra = own.pop("extra")
        return {**extra, **own, "model_type": self.model_type}

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write config.json into `folder`, which is made if needed."""
        write_json_object(Path(folder) / CONFIG_NAME, self.to_dict())
