"""Configuration of `corpus-asr finetune`: one YAML file for the transformers Trainer."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from corpus_asr.config.settings import Settings, Texts


class TrainedModelSettings(Settings):
    """The model to train."""

    checkpoint: str
    """Whisper or Speech2Text checkpoint to start from: a folder, a URI or a Hugging Face Hub model
    ID."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; default: the main branch."""
    freeze: Texts = ()
    """Name patterns of frozen parameters, such as model.encoder.*; default: none."""


class TrainingDataSettings(Settings):
    """The labeled audio."""

    train: Texts = Field(min_length=1)
    """Training data: folders of datasets that `corpus-asr label` wrote, of which the split `train`
    is read, or Parquet files with columns `audio` and `text`."""
    validation: Texts = ()
    """Validation data, of the same kinds, split `validation`; default: none, and no WER is
    computed."""
    held_out_speakers: Texts = ()
    """Patterns of speakers whose rows are excluded from `train`, such as reader_*."""
    language: str | None = None
    """Language of rows without a `language`."""
    timestamp_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that Whisper's target has timestamps, if they are known."""
    condition_on_prev_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that Whisper has the preceding text as a prompt, if it is known."""


class FinetuneConfig(Settings):
    """A resolved configuration; keys that were omitted have their defaults."""

    model: TrainedModelSettings
    data: TrainingDataSettings
    lora: dict[str, Any] | None = None
    """Arguments of PEFT's `LoraConfig`, such as r; default: no adapters, all weights are
    trained."""
    training: dict[str, Any] | None = None
    """Arguments of transformers' `Seq2SeqTrainingArguments`, such as max_steps."""
    output: str
    """Local folder of the checkpoints, of model/ and, with LoRA, of adapter/."""

    @field_validator("output")
    @classmethod
    def _is_local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"found the URI {value}, expected a local folder, since transformers writes it; "
                "copy it afterwards"
            )
        return value

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> "FinetuneConfig":
        if self.lora is not None and self.model.freeze:
            raise ValueError(
                f"found model.freeze {list(self.model.freeze)} with lora, expected one of them, "
                "since LoRA freezes all weights; remove model.freeze and set lora.target_modules"
            )
        return self
