"""What a Whisper checkpoint says about itself: config.json.

In: a checkpoint folder, or settings by keyword. Out: a typed value that may be changed; keys it
does not know are kept for saving. Knows no weights and imports no torch. Names and defaults are
those of `transformers.WhisperConfig`, version 5.23, and so is the meaning of every key.
"""

from typing import ClassVar

from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.whisper.config_fields import WhisperSettings


class WhisperConfig(ModelConfig, WhisperSettings):
    """Sizes and settings of a Whisper network; the defaults are those of whisper-tiny.

    Args:
        num_labels: makes that many classes of audio classification, without names of their own.
        settings: fields by name; other keywords are kept in `extra`.

    Raises:
        TypeError: a setting is of the wrong type, or its name is one letter off.
        ValueError: a setting has a value that no network can have.
    """

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
        """Check that a network can have these sizes and settings.

        Raises:
            ValueError: it cannot; the message names the key.
        """
        super().validate()
        halves = self.d_model % 2 == 0 and self.d_model > 2
        self.require(halves, "d_model", "an even number above 2")
        odd = self.median_filter_width % 2 == 1
        self.require(odd, "median_filter_width", "an odd number")
