"""What becomes training data: the `selection` and `dataset` sections, read by `pseudo_label` alone.

Where a bound has a source its default is that of the source; null turns a rule off.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.base import Auto, Settings
from corpus_asr.config.run import PSEUDO_LABEL, RunConfig

WINDOWS: Final = "windows"
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SelectionSettings(Settings):
    """Which segments are kept: all that no rule drops. Nothing here needs a new transcription."""

    min_duration_s: Rate = Field(default=0.3, description="Shorter segments are dropped.")
    max_duration_s: Annotated[float, Field(gt=0, le=30)] = Field(
        default=30.0, description="Longer segments are dropped."
    )
    languages: tuple[str, ...] = Field(
        default=(),
        description="Codes; segments in other languages are dropped, and without any those not in "
        "the language that the existing transcript names.",
    )
    min_language_probability: Share | None = Field(
        default=None, description="Where the language was detected: how sure, at least."
    )
    max_no_speech_prob: Share | None = Field(
        default=0.6, description="Probability that the window holds no speech."
    )
    min_speech_fraction: Share | None = Field(
        default=None, description="Share of the segment that lies in detected speech."
    )
    min_confidence: Share | None = Field(
        default=None, description="Estimated share of right words."
    )
    min_avg_logprob: Annotated[float, Field(le=0)] | None = Field(
        default=-1.0, description="Mean log-probability of the window; -1 is Whisper's own bound."
    )
    max_compression_ratio: Annotated[float, Field(gt=0)] | None = Field(
        default=2.4, description="Text bytes over zlib bytes; 2.4 is Whisper's own bound."
    )
    max_temperature: Rate | None = Field(
        default=None, description="Sampling temperature that was needed; 0 keeps greedy text alone."
    )
    min_words_per_s: Rate | None = Field(
        default=None, description="Slower speech is dropped, as where words were left out."
    )
    max_words_per_s: Rate | None = Field(
        default=8.0, description="Faster speech is dropped; letters count where none are parted."
    )
    max_letters_per_s: Rate | None = Field(
        default=40.0, description="Letters per second; 40 is NeMo Curator's bound."
    )
    max_repeats: Count | None = Field(
        default=5, description="How often up to five words may stand in a row."
    )
    min_unique_words: Share | None = Field(
        default=0.4,
        description="Different words per word, from 10 words on; 0.4 is NeMo Curator's bound.",
    )
    max_word_letters: Count | None = Field(
        default=40, description="Letters of the longest word, where words are parted."
    )
    drop_texts: tuple[str, ...] = Field(
        default=(),
        description="Whole texts to drop, compared after Whisper's normaliser, such as "
        '"thanks for watching".',
    )
    drop_known_hallucinations: bool = Field(
        default=True,
        description="Drop segments whose column `known_hallucination` is true.",
    )
    max_copies: Count | None = Field(
        default=None, description="How many segments of the run may have the same text."
    )
    against: str | None = Field(
        default=None,
        description="output.uri of another run over the same recordings, by another model or "
        "decoding.",
    )
    max_disagreement: Rate = Field(
        default=0.1, description="Words heard otherwise there, per word; where `against` is set."
    )
    references: str | None = Field(
        default=None,
        description="Existing transcripts: a .jsonl, .csv or .parquet of uri (or path) and text.",
    )
    max_wer: Rate = Field(
        default=0.1, description="Word errors per word of them; where `references` is set."
    )

    @field_validator("languages", "drop_texts", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class DatasetSettings(Settings):
    """What is written, and where."""

    uri: str = Field(description="Folder of the data set; any fsspec scheme.")
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint for the data set, where it is not Amazon's."
    )
    format: Literal["huggingface", "webdataset", "nemo"] = Field(
        default="huggingface",
        description="`huggingface`: Parquet with audio; `webdataset`: tar files; `nemo`: audio "
        "files and a manifest.",
    )
    examples: Literal["windows", "clips"] = Field(
        default="windows",
        description="`windows`: segments packed up to 30 s, with timestamps, as Whisper trains; "
        "`clips`: each segment by itself.",
    )
    max_pause_s: Rate = Field(
        default=3.0, description="A longer pause between segments begins a new window."
    )
    pad_s: Annotated[float, Field(ge=0, le=5)] = Field(
        default=0.2, description="Audio kept around examples, never into a neighbouring segment."
    )
    audio_format: Literal["flac", "opus", "wav"] = Field(
        default="flac", description="How audio is encoded: 16 kHz, mono, 16 bits."
    )
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=256.0, description="Audio of one file in MiB, before it is encoded."
    )
    validation_fraction: Share = Field(
        default=0.01, description="Share of recordings for validation, chosen by their addresses."
    )
    test_fraction: Share = Field(default=0.0, description="Share of recordings for tests.")
    workers: PositiveInt | Auto = Field(
        default="auto", description="Processes that cut and encode; `auto`: one per CPU."
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction add up to 1 or more, which leaves nothing "
                "to train on; lower them"
            )
        return self


class PseudoLabelConfig(RunConfig):
    """A job that transcribes, selects and writes training data."""

    pipeline: Literal["pseudo_label"] = Field(
        default=PSEUDO_LABEL, description="Transcribe, select, and write training data."
    )
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    dataset: DatasetSettings
