"""One job: the whole YAML file, in the order data flows."""

from typing import Literal

from pydantic import Field, model_validator

from corpus_asr.config.base import Settings
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.stages import (
    ClusterSettings,
    ExtractSettings,
    ModelSettings,
    OutputSettings,
    SourceSettings,
    TranscribeSettings,
)


class RunConfig(Settings):
    """A resolved job description; everything the user left out carries its default."""

    pipeline: Literal["transcribe_corpus"] = "transcribe_corpus"
    source: SourceSettings
    extract: ExtractSettings = Field(default_factory=ExtractSettings)
    model: ModelSettings
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    transcribe: TranscribeSettings = Field(default_factory=TranscribeSettings)
    output: OutputSettings
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @model_validator(mode="after")
    def _speech_is_looked_for(self) -> "RunConfig":
        if self.decoding.drop_nonspeech and self.extract.speech_detection == "none":
            raise ValueError(
                "decoding.drop_nonspeech needs detected speech, but extract.speech_detection is "
                "none; set it to silero, or leave drop_nonspeech out"
            )
        return self
