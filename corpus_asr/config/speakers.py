"""Whether speakers are told from one another, and how many there may be: section `speakers`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from corpus_asr.config.settings import Settings


class SpeakerSettings(Settings):
    """Who speaks: a table of turns, and a speaker for each segment and word."""

    mode: Literal["none", "auto", "corpus"] = "none"
    """Speakers: `none`; `auto`: those of each recording are found and named S1, S2 and so on in
    order of appearance; or `corpus`: voices are also compared across recordings, and named V1, V2
    and so on. `speakers: auto` is short for this key."""
    num_speakers: int | None = Field(default=None, ge=1, le=50)
    """Exact number of speakers of each recording (of each channel, if `extract.channels` is
    `each`); null: it is found."""
    min_speakers: int | None = Field(default=None, ge=1, le=50)
    """Minimum number of speakers; null: 1."""
    max_speakers: int | None = Field(default=None, ge=1, le=50)
    """Maximum number of speakers; null: 12."""
    model: str | None = None
    """Network that embeds voices, in ONNX: a file, a folder or URI with one, or OWNER/NAME or
    OWNER/NAME/FILE of the Hugging Face Hub, such as those of WeSpeaker and 3D-Speaker. null: the
    packaged GE2E encoder."""

    @property
    def wanted(self) -> bool:
        """Whether speakers are looked for."""
        return self.mode != "none"

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _bounds_fit_together(self) -> "SpeakerSettings":
        if self.num_speakers and (self.min_speakers or self.max_speakers):
            raise ValueError(
                f"num_speakers: {self.num_speakers} is exact; leave out min_speakers and "
                "max_speakers, or num_speakers"
            )
        if (self.min_speakers or 1) > (self.max_speakers or 50):
            raise ValueError(
                f"min_speakers: {self.min_speakers} is more than max_speakers, "
                f"{self.max_speakers}; correct them"
            )
        return self


NO_SPEAKERS = SpeakerSettings()
