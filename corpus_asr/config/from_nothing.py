"""A training that starts from nothing: speech that is made first, and a network without knowledge.

What follows is a training like any other (`finetune.py`).
"""

from pydantic import Field, PositiveInt

from corpus_asr.config.base import Settings
from corpus_asr.config.finetune import FinetuneConfig


class SpokenSettings(Settings):
    """Sentences spoken by the programs of this machine, such as espeak-ng and flite."""

    folder: str = Field(
        description="Local folder of the recordings, train.jsonl and validation.jsonl; what is "
        "there is not made again."
    )
    voices: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        description="Which of this machine's speak, as program:speaker; * stands for anything.",
    )
    hours: float = Field(default=20.0, gt=0, le=1000, description="To learn from.")
    validation_hours: float = Field(default=0.5, gt=0, le=100, description="To be asked for.")
    texts: tuple[str, ...] = Field(
        default=(),
        description="Local files of English text, or data files of WordNet; other sentences are "
        "drawn.",
    )
    written_share: float = Field(
        default=0.5, ge=0, le=1, description="Sentences from these texts, while they last."
    )
    imitated_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Of the others, those put together of turns in these texts; the rest are drawn "
        "of a few hundred words by templates.",
    )
    digits_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Of all lines, those of one to three digits, cut close, as over a telephone.",
    )  # fmt: skip
    common_words: PositiveInt | None = Field(
        default=None,
        description="Only so many words of these texts are said, the commonest; null says all.",
    )
    held_out_share: float = Field(
        default=0.1, gt=0, lt=1, description="Voices and written sentences of validation alone."
    )
    workers: PositiveInt = Field(default=2, description="Programs that speak at a time.")


class NetworkSettings(Settings):
    """Sizes of a network of one language, and of its vocabulary."""

    text_tokens: int = Field(default=1024, ge=256, le=50_000, description="256 bytes among them.")
    width: PositiveInt = Field(default=288, description="Of both towers.")
    feed_forward: PositiveInt = Field(default=1024, description="Inside their layers.")
    heads: PositiveInt = Field(default=4, description="Of attention.")
    encoder_layers: PositiveInt = Field(default=4, description="That hear.")
    decoder_layers: PositiveInt = Field(default=2, description="That write.")


class FromNothingConfig(FinetuneConfig):
    """A resolved training from nothing; `model.checkpoint` is a folder that is made first."""

    speech: SpokenSettings
    network: NetworkSettings = Field(default_factory=NetworkSettings)

    @property
    def training_alone(self) -> FinetuneConfig:
        """The training that follows when speech and network are made."""
        return FinetuneConfig.model_validate(self.model_dump(exclude={"speech", "network"}))
