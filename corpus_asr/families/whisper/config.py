"""Whisper's config.json and generation_config.json: reading, validation and writing, without torch.

Names, defaults and meanings are those of `transformers.WhisperConfig`, version 5.23. Generation
settings written before 2023, or by tools without Whisper support, lack token IDs: these are taken
from the tokenizer, and suppressed tokens from config.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.families import generation_config
from corpus_asr.families.library_tokenizer import TOKENIZER_NAME, VOCAB_NAME
from corpus_asr.families.model_config import (
    Count,
    EncoderDecoderConfig,
    MelBins,
    Positions,
    Probability,
    Size,
)
from corpus_asr.families.whisper.tokenizer import TASKS, WhisperTokenizer
from corpus_asr.units import FRAMES_PER_POSITION, FRAMES_PER_SECOND


@dataclass(kw_only=True, init=False)
class WhisperConfig(EncoderDecoderConfig):
    """Dimensions and settings of a Whisper network; defaults of whisper-tiny."""

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
    """Tokens never sampled; generation_config.json takes precedence."""
    begin_suppress_tokens: tuple[int, ...] | None = (220, 50256)
    """Tokens not sampled first: the space and the end."""
    use_weighted_layer_sum: bool = False
    """Whether audio classification uses a learned weighted mean of all layers."""
    classifier_proj_size: Size = 256
    """Width of the projection before pooling in audio classification."""
    apply_spec_augment: bool = False
    """Whether training masks the features, by the six settings below."""
    mask_time_prob: Probability = 0.05
    mask_time_length: Size = 10
    mask_time_min_masks: Count = 2
    mask_feature_prob: Probability = 0.0
    mask_feature_length: Size = 10
    mask_feature_min_masks: Count = 0
    median_filter_width: Size = 7
    """Positions of the median filter over cross-attention in word timing; odd."""

    def validate(self) -> None:
        """Raise for sizes and settings that a network cannot have."""
        super().validate()
        # Half sines, half cosines, with at least two rates.
        halves = self.d_model % 2 == 0 and self.d_model > 2
        self.require(halves, "d_model", "an even number above 2")
        # An even window has no middle position, and would shift words in time.
        odd = self.median_filter_width % 2 == 1
        self.require(odd, "median_filter_width", "an odd number")


_POSITIONS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_POSITION  # 50

# Required for prompts and for parsing transcripts; None equals absence here.
_NEEDED = (
    "decoder_start_token_id",
    "eos_token_id",
    "is_multilingual",
    "no_timestamps_token_id",
    "prev_sot_token_id",
)
_NEEDED_MULTILINGUAL = ("lang_to_id", "task_to_id")


@dataclass(kw_only=True)
class GenerationConfig(generation_config.GenerationConfig):
    """Generation settings; unknown names are kept as attributes."""

    from_config: ClassVar[tuple[str, ...]] = (
        "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "max_length",
        "decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    other_sources: ClassVar[tuple[str, ...]] = ("tokenizer.json",)

    no_timestamps_token_id: int | None = None
    """Token that requests text without timestamps; timestamps follow it in the vocabulary."""
    prev_sot_token_id: int | None = None
    """The token before the text of earlier windows."""
    is_multilingual: bool | None = None
    """Whether prompts include language and task."""
    lang_to_id: dict[str, int] | None = None
    """Token of each language by its text, `<|en|>`; None for an English-only model."""
    task_to_id: dict[str, int] | None = None
    """Token of `transcribe` and `translate`; None for an English-only model."""
    language: str | tuple[str, ...] | None = None
    """Language of the speech, or one per recording; None to detect it."""
    task: str | None = None
    """`transcribe` or `translate`."""
    return_timestamps: bool | None = None
    """Whether `generate` predicts timestamps by default."""
    max_initial_timestamp_index: int | None = None
    """Largest first timestamp in steps of 0.02 s; None for no limit."""
    alignment_heads: tuple[tuple[int, int], ...] | None = None
    """Decoder layers and heads whose cross-attention follows the audio in time."""
    forced_decoder_ids: tuple[tuple[int, int | None], ...] | None = None
    """Tokens forced at positions, in old files; replaced by language and task."""

    condition_on_prev_tokens: bool | None = None
    """Whether a window's prompt includes the text before it."""
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    force_unique_generate_call: bool | None = None

    @property
    def initial_timestamp_bound(self) -> int | None:
        """`max_initial_timestamp_index`; 1 s if the file lacks it, as in openai-whisper."""
        bound = self.max_initial_timestamp_index
        if bound is None and "max_initial_timestamp_index" not in self.nulls:
            return _POSITIONS_PER_SECOND
        return bound

    @classmethod
    def _derived(cls, folder: Path, content: dict[str, Any]) -> dict[str, Any]:
        english = content.get("is_multilingual") is False
        needed = _NEEDED if english else _NEEDED + _NEEDED_MULTILINGUAL
        if all(content.get(key) is not None for key in needed):
            return {}
        # If only weights are loaded, files missing in their folder are ignored.
        if not any((folder / name).is_file() for name in (TOKENIZER_NAME, VOCAB_NAME)):
            return {}
        return _tokens_to_decode(WhisperTokenizer.from_pretrained(folder))


def _tokens_to_decode(tokenizer: WhisperTokenizer) -> dict[str, Any]:
    ids: dict[str, Any] = {
        "decoder_start_token_id": tokenizer.sot,
        "eos_token_id": tokenizer.eot,
        "is_multilingual": tokenizer.is_multilingual,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.start_of_prev,
    }
    if tokenizer.is_multilingual:
        ids["lang_to_id"] = {f"<|{code}|>": i for code, i in tokenizer.language_ids.items()}
        ids["task_to_id"] = {task: getattr(tokenizer, task) for task in TASKS}
    return ids
