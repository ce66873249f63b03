"""One job: the whole YAML file, in the order data flows."""

from typing import Final, Literal

from pydantic import Field, model_validator

from corpus_asr.config.base import Settings
from corpus_asr.config.classification import ClassificationSettings
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.nightly import NightlySettings
from corpus_asr.config.stages import (
    ClusterSettings,
    ExtractSettings,
    ModelSettings,
    OutputSettings,
    SourceSettings,
    TranscribeSettings,
)

CLASSIFY_AUDIO: Final = "classify_audio"
PSEUDO_LABEL: Final = "pseudo_label"


class RunConfig(Settings):
    """A resolved job description; everything the user left out carries its default."""

    pipeline: Literal["transcribe_corpus", "classify_audio", "pseudo_label"] = Field(
        default="transcribe_corpus",
        description="What is done; `classification` is for `classify_audio`, `decoding` for the "
        "others; `pseudo_label` has sections of its own (`config/labelling.py`).",
    )
    source: SourceSettings
    extract: ExtractSettings = Field(default_factory=ExtractSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    classification: ClassificationSettings = Field(default_factory=ClassificationSettings)
    transcribe: TranscribeSettings = Field(default_factory=TranscribeSettings)
    output: OutputSettings
    nightly: NightlySettings = Field(default_factory=NightlySettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @model_validator(mode="after")
    def _other_jobs_name_their_model(self) -> "RunConfig":
        if self.model.is_named or self.pipeline == "transcribe_corpus":
            return self
        why, example = "needs a multilingual model", "small"
        if self.pipeline == PSEUDO_LABEL:
            why, example = "makes training data as accurate as its model", "large-v3"
        raise ValueError(
            f"model.checkpoint: missing; {self.pipeline} {why} and has no default: name one, such "
            f"as {example}"
        )

    @model_validator(mode="after")
    def _speech_is_looked_for(self) -> "RunConfig":
        if self.decoding.drop_nonspeech and self.extract.speech_detection == "none":
            raise ValueError(
                "decoding.drop_nonspeech needs detected speech, but extract.speech_detection is "
                "none; set it to silero, or leave drop_nonspeech out"
            )
        return self

    @model_validator(mode="after")
    def _one_language_one_model(self) -> "RunConfig":
        if self.model.by_language and self.decoding.language_mode == "window":
            raise ValueError(
                "model.by_language needs one language for the recording or the part, but "
                "decoding.language_mode is window; set it to recording or to part"
            )
        return self
