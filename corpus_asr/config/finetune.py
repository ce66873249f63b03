"""One training: the whole YAML file of `corpus-asr finetune`, in the order data flows."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.base import Settings
from corpus_asr.config.stages import ClusterSettings


class StudentSettings(Settings):
    """What learns."""

    checkpoint: str = Field(
        description="Where training starts: a folder, an address or a name such as small."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    device: str = Field(default="auto", description="`auto`, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="What is computed in; weights stay float32. `auto`: bfloat16 where the "
        "hardware computes in it.",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Instead of the checkpoint's own, which is often 0."
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="Parameters that stay as they are, such as model.encoder.*."
    )


class DataSettings(Settings):
    """What is learnt from."""

    train: tuple[str, ...] = Field(
        min_length=1,
        description="Manifests (.jsonl, .csv, .parquet) of uri, text and perhaps start_s, end_s "
        "and language; data sets of `corpus-asr label`, or Parquet with audio in it; or output "
        "folders of runs, whose segments are taken as they are.",
    )
    validation: tuple[str, ...] = Field(
        default=(), description="Likewise, of recordings that are not trained on."
    )
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint of all of these, where it is not Amazon's."
    )
    language: str | None = Field(default=None, description="Of rows that say none.")
    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="Segments of runs below are left out."
    )
    held_out_speakers: tuple[str, ...] = Field(
        default=(), description="Rows of `train` by these are left out, such as reader_*."
    )
    capitals: Literal["as_written", "sentence"] = Field(
        default="as_written",
        description="Texts all in capitals: as they are, or as a sentence would be written.",
    )
    cache: str = Field(
        default="output/finetune-cache",
        description="Local folder of decoded audio, 115 MB per hour; kept for the next training.",
    )
    max_gap_s: float = Field(
        default=1.0, ge=0, le=30,
        description="Pause up to which passages of a recording share a window.",
    )  # fmt: skip
    workers: PositiveInt = Field(default=2, description="Processes that decode and prepare.")


class WindowSettings(Settings):
    """What a window of 30 s is made of."""

    pack: bool = Field(
        default=True, description="Fill windows with passages of several recordings."
    )
    max_pause_s: float = Field(
        default=1.0, ge=0, le=10,
        description="Longest silence between recordings in a window; most are much shorter.",
    )  # fmt: skip
    task: Literal["transcribe", "translate"] = Field(
        default="transcribe", description="What the text is to the speech."
    )
    timestamps_share: float = Field(
        default=0.5, ge=0, le=1, description="Windows that learn times."
    )
    previous_text_share: float = Field(
        default=0.5, ge=0, le=1,
        description="Windows that are shown what was said before, where something was.",
    )  # fmt: skip
    misread_share: float = Field(
        default=0.0, ge=0, lt=1,
        description="Tokens of text that the decoder reads wrong, as after an error of its own, "
        "so that it listens.",
    )  # fmt: skip
    partly_filled_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Windows that end in silence, as those of short recordings do.",
    )  # fmt: skip
    cut_off_share: float = Field(
        default=0.5, ge=0, le=1,
        description="Packed windows that are full and at whose end another recording begins and is "
        "cut off: with times, when it begins is all that is written of it, as Whisper trains.",
    )  # fmt: skip
    alone_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Recordings that have a window of their own, though others are packed.",
    )  # fmt: skip
    cut_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Windows that are over soon after their speech instead of padded to 30 s.",
    )  # fmt: skip
    no_speech_share: float = Field(
        default=0.02, ge=0, le=1,
        description="Windows of silence, noise and tones, per window of speech.",
    )  # fmt: skip


class AugmentationSettings(Settings):
    """How samples and features are made different; shares are of windows."""

    speed: tuple[float, float] = Field(
        default=(1.0, 1.0), description="Slowest and fastest that a window is played."
    )
    formants: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description="Lowest and highest factor of their frequencies: other vocal tracts.",
    )
    formants_wander: float = Field(
        default=0.0, ge=0, le=0.3,
        description="They move back and forth by this share, at most: other speakers' sounds.",
    )  # fmt: skip
    equaliser_db: float = Field(
        default=0.0, ge=0, le=30,
        description="Bands of frequencies are louder or fainter by so much, at most: other voices "
        "and microphones.",
    )  # fmt: skip
    equaliser_wander_db: float = Field(
        default=0.0, ge=0, le=30, description="Bands grow louder and fainter by so much, at most."
    )
    gain_db: tuple[float, float] = Field(default=(0.0, 0.0), description="Quietest and loudest.")
    noise_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Noise is drawn, or taken from rows of the training data without text.",
    )  # fmt: skip
    noise_snr_db: tuple[float, float] = Field(default=(5.0, 30.0), description="Worst and best.")
    reverberation_share: float = Field(default=0.0, ge=0, le=1, description="Echoes of a room.")
    reverberation_s: tuple[float, float] = Field(
        default=(0.1, 0.6), description="Until they have decayed by 60 dB."
    )
    telephone_share: float = Field(default=0.0, ge=0, le=1, description="About 300 to 3,400 Hz.")
    cut_close_share: float = Field(
        default=0.0, ge=0, le=1,
        description="Of recordings of at most 1.5 s: faint ends are lost or fainter, as of words "
        "that were cut out.",
    )  # fmt: skip
    time_masks: int = Field(default=0, ge=0, le=20, description="SpecAugment: spans of time.")
    time_mask_frames: int = Field(default=100, ge=1, le=1000, description="10 ms each, at most.")
    mel_masks: int = Field(default=0, ge=0, le=20, description="SpecAugment: bands of mel bins.")
    mel_mask_bins: int = Field(default=10, ge=1, le=60, description="Of a band, at most.")

    @field_validator("speed", "formants", "gain_db", "noise_snr_db", "reverberation_s")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"found {list(value)}, expected the smaller number first")
        return value

    @field_validator("speed", "formants")
    @classmethod
    def _audible(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.5 <= value[0] <= value[1] <= 2.0:
            raise ValueError(f"found {list(value)}, expected factors from 0.5 to 2")
        return value


class TrainingSettings(Settings):
    """How weights change."""

    steps: PositiveInt = Field(default=1000, description="Changes of the weights.")
    batch_windows: PositiveInt = Field(
        default=16, description="Windows behind each step, over all workers."
    )
    windows_at_once: PositiveInt = Field(
        default=4,
        description="Of one worker in memory; a step adds up as many as it needs. On a CPU, 1 is "
        "one in each thread.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, lt=1, description="The highest.")
    warmup_steps: int = Field(default=50, ge=0, description="Until the rate is reached.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How it falls to zero after that."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Of matrices.")
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="Of AdamW.")
    max_gradient: float = Field(default=1.0, gt=0, description="Longer gradients are shortened.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Shared out to all tokens.")
    ctc_weight: float = Field(
        default=0.0, ge=0,
        description="Of a second loss, on the encoder, for networks that start from nothing.",
    )  # fmt: skip
    phones_weight: float = Field(
        default=0.0, ge=0,
        description="Of a third loss: the sounds that manifests name, by positions of the encoder.",
    )  # fmt: skip
    attention_weight: float = Field(
        default=0.0, ge=0,
        description="Of a fourth loss, which leads the alignment heads to where letters are read "
        "off the encoder; needs ctc_weight.",
    )  # fmt: skip
    encoder_steps: int = Field(
        default=0, ge=0,
        description="The first ones, which learn by the losses on the encoder alone.",
    )  # fmt: skip
    decoder_steps: int = Field(
        default=0, ge=0,
        description="Those after them, in which the encoder stays as it is and the decoder writes "
        "passages and windows that were heard lately; then both learn.",
    )  # fmt: skip
    decoder_audio_s: float = Field(
        default=120.0, gt=0,
        description="Audio that is written in each of those, over all workers: more than is heard.",
    )  # fmt: skip
    decoder_memory_windows: int = Field(
        default=1000, ge=1, description="Windows from which that is drawn, over all workers."
    )  # fmt: skip
    short_steps: int = Field(
        default=0, ge=0,
        description="Until an epoch begins after so many, most partly filled windows are short.",
    )  # fmt: skip
    gradient_checkpointing: bool = Field(
        default=False, description="Compute states twice to keep fewer of them."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of all that is drawn.")

    @model_validator(mode="after")
    def _whole_batches(self) -> "TrainingSettings":
        if self.batch_windows % self.windows_at_once:
            raise ValueError(
                f"batch_windows ({self.batch_windows}) has to be a multiple of windows_at_once "
                f"({self.windows_at_once})"
            )
        return self


class DistillationSettings(Settings):
    """A larger checkpoint to learn from beside the labels."""

    teacher: str | None = Field(
        default=None, description="A folder, an address or a name such as large-v3."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    token_weight: float = Field(
        default=0.8, ge=0, le=1,
        description="Of its distributions of tokens; the labels have the rest. Needs the same "
        "vocabulary.",
    )  # fmt: skip
    encoder_weight: float = Field(default=0.0, ge=0, description="Of the distance of encodings.")
    name_sounds: bool = Field(
        default=False,
        description="Whether its encoder tells the sounds of passages that have none, for "
        "training.phones_weight.",
    )
    temperature: float = Field(default=2.0, gt=0, description="Softens both distributions.")
    steps: PositiveInt | None = Field(
        default=None, description="The first ones, after which labels alone are learnt; null: all."
    )


class EvaluationSettings(Settings):
    """What is asked of `data.validation`."""

    every_steps: PositiveInt = Field(default=200, description="And after the last step.")
    max_windows: PositiveInt = Field(default=200, description="Of it, the first ones.")
    windows_at_once: PositiveInt = Field(default=8, description="Decoded side by side.")
    keep: Literal["best", "last"] = Field(
        default="best", description="Which model is written: of the lowest error rate, or the last."
    )


class TrainedSettings(Settings):
    """Where the model goes."""

    uri: str = Field(description="Folder of model/, checkpoints/ and log.jsonl; any address.")
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint, where it is not Amazon's."
    )
    checkpoint_steps: PositiveInt = Field(default=200, description="Between two checkpoints.")
    keep_checkpoints: PositiveInt = Field(default=2, description="The last ones.")


class TrainClusterSettings(ClusterSettings):
    """How many train together; more than one by Ray Train."""

    workers: PositiveInt = Field(default=1, description="Processes that share each batch.")
    gpus_per_worker: float = Field(default=0.0, ge=0, le=8, description="Of each, with Ray.")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Of each, with Ray.")


class FinetuneConfig(Settings):
    """A resolved training; everything the user left out carries its default."""

    model: StudentSettings
    data: DataSettings
    windows: WindowSettings = Field(default_factory=WindowSettings)
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    distillation: DistillationSettings = Field(default_factory=DistillationSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    output: TrainedSettings
    cluster: TrainClusterSettings = Field(default_factory=TrainClusterSettings)

    @model_validator(mode="after")
    def _shared_batches(self) -> "FinetuneConfig":
        each = self.training.windows_at_once * self.cluster.workers
        if self.training.batch_windows % each:
            raise ValueError(
                f"training.batch_windows ({self.training.batch_windows}) has to be a multiple of "
                f"training.windows_at_once times cluster.workers ({each})"
            )
        return self
