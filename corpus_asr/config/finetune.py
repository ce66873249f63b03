"""The configuration of `corpus-asr finetune`: one YAML file, sections in the order data flows."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from corpus_asr.config.cluster import ClusterSettings
from corpus_asr.config.settings import Settings

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class StudentSettings(Settings):
    """The model to train."""

    checkpoint: str
    """Whisper checkpoint to start from: a folder, a URI or a Hugging Face Hub model ID."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; default: the main branch."""
    device: str = "auto"
    """Device: `auto` (a GPU if there is one), cpu, cuda or cuda:N."""
    compute_type: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the computation; trained weights stay in float32. `auto`: bfloat16 if the
    hardware supports it."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout probability; default: that of the checkpoint, often 0."""
    freeze: tuple[str, ...] = ()
    """Name patterns of frozen parameters, such as model.encoder.*; default: none."""


class LoraSettings(Settings):
    """Low-rank adapters; off by default."""

    rank: PositiveInt | None = None
    """Rank of the adapters, such as 8; default: no adapters, all weights are trained."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapters: they add alpha / rank x B A."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the adapters' input."""
    target_modules: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    """Names, or last parts of names, of the linear layers with adapters."""


class DataSettings(Settings):
    """The labelled audio."""

    train: tuple[str, ...] = Field(min_length=1)
    """Training data: manifests (.jsonl, .csv, .tsv, .parquet) with `text`; datasets written by
    `corpus-asr label`; Parquet files with audio in them; output folders of runs, whose segments are
    the labels."""
    validation: tuple[str, ...] = ()
    """Validation data, of the same kinds; default: none, and no WER is computed."""
    endpoint_url: str | None = None
    """S3 endpoint of all data; default: Amazon's."""
    language: str | None = None
    """Language of rows without a `language` field."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Lowest confidence of segments taken from runs; default: all segments."""
    held_out_speakers: tuple[str, ...] = ()
    """Patterns of speakers whose rows are excluded from `train`, such as reader_*."""
    cache: str = "output/finetune-cache"
    """Local folder of decoded audio, 115 MB per hour; reused if the data are the same."""
    max_gap_s: float = Field(default=1.0, ge=0, le=30)
    """Longest pause in seconds between neighboring utterances of a recording that stay together in
    a window."""
    workers: NonNegativeInt = 2
    """Number of processes that decode audio and prepare windows; 0 does so in the training process,
    which forks no process and trains more slowly."""


class WindowSettings(Settings):
    """The contents of training windows of 30 s."""

    pack: bool = True
    """Whether utterances of several recordings share a window."""
    max_pause_s: float = Field(default=1.0, ge=0, le=10)
    """Longest silence in seconds between recordings in a window; most are much shorter."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Task token of all windows."""
    timestamp_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a window has timestamp tokens."""
    condition_on_prev_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a window has the preceding text as a prompt, if it is known."""
    truncation_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability that a full packed window with timestamps ends with a truncated utterance, of
    which only the start timestamp is in the target."""
    no_speech_fraction: float = Field(default=0.02, ge=0, le=1)
    """Number of windows without speech (silence, noise, tones) per window of speech."""


class AugmentationSettings(Settings):
    """Augmentation of audio and features; off by default."""

    speed: tuple[float, float] = (1.0, 1.0)
    """Range of the speed factor of a window."""
    gain_db: tuple[float, float] = (0.0, 0.0)
    """Range of the gain of a window in dB."""
    noise_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of additive noise: synthetic, or from rows of `train` without text."""
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    """Range of the signal-to-noise ratio in dB."""
    reverb_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of reverberation."""
    reverb_rt60_s: tuple[float, float] = (0.1, 0.6)
    """Range of the reverberation time RT60 in seconds."""
    telephone_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of a telephone band-pass filter, about 300 to 3,400 Hz."""
    mask_time_prob: float = Field(default=0.0, ge=0, le=1)
    """SpecAugment: fraction of frames that masks cover, at least two masks."""
    mask_time_length: int = Field(default=10, ge=1, le=1000)
    """SpecAugment: length of a time mask in 10 ms frames."""
    mask_feature_prob: float = Field(default=0.0, ge=0, le=1)
    """SpecAugment: fraction of mel bins that masks cover."""
    mask_feature_length: int = Field(default=10, ge=1, le=60)
    """SpecAugment: width of a frequency mask in mel bins."""

    @field_validator("speed", "gain_db", "noise_snr_db", "reverb_rt60_s")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"found {list(value)}, expected the smaller number first")
        return value

    @field_validator("speed")
    @classmethod
    def _audible(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.5 <= value[0] <= value[1] <= 2.0:
            raise ValueError(f"found {list(value)}, expected factors from 0.5 to 2")
        return value


class TrainingSettings(Settings):
    """The optimization; names as in transformers' Seq2SeqTrainingArguments."""

    max_steps: PositiveInt = 1000
    """Number of optimizer steps."""
    per_device_train_batch_size: PositiveInt = 4
    """Number of windows per forward pass of one worker. On a CPU, 1 computes one window in each
    thread."""
    gradient_accumulation_steps: PositiveInt = 4
    """Number of forward passes per optimizer step. The effective batch size is
    per_device_train_batch_size x gradient_accumulation_steps x cluster.workers."""
    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    """Peak learning rate."""
    warmup_steps: int = Field(default=50, ge=0)
    """Number of steps of linear warmup to the peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warmup: to zero at the last step, or none."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay of matrices; biases and norms have none."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(default=0.98, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which longer gradients are clipped."""
    label_smoothing_factor: float = Field(default=0.0, ge=0, lt=1)
    """Probability mass spread evenly over all tokens."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass, to save memory."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of all random numbers."""


class DistillationSettings(Settings):
    """Distillation of token distributions from a larger checkpoint; off by default."""

    teacher: str | None = None
    """Whisper checkpoint with the same vocabulary to distill from: a folder, a URI or a Hub model
    ID; default: no distillation."""
    revision: str | None = None
    """Branch, tag or commit of the teacher on the Hub."""
    kl_weight: float = Field(default=0.8, ge=0, le=1)
    """Weight of the divergence from the teacher's token distributions; the cross-entropy with the
    labels has the rest."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of teacher and student."""
    initial_steps: PositiveInt | None = None
    """Number of initial steps with the teacher; default: all steps."""


class EvaluationSettings(Settings):
    """The evaluation on `data.validation`."""

    eval_steps: PositiveInt = 200
    """Number of steps between evaluations; one more precedes the first step and one follows the
    last."""
    max_windows: PositiveInt = 200
    """Largest number of validation windows; the first ones are used."""
    per_device_eval_batch_size: PositiveInt = 8
    """Number of windows decoded in one batch."""
    keep: Literal["best", "last"] = "best"
    """Model to write: that of the lowest WER, which may be the start, or the last."""


class TrainedSettings(Settings):
    """The output folder."""

    uri: str
    """Output folder of model/, checkpoints/ and log.jsonl: any URI."""
    endpoint_url: str | None = None
    """S3 endpoint of the output folder; default: Amazon's."""
    save_steps: PositiveInt = 200
    """Number of steps between checkpoints."""
    save_total_limit: PositiveInt = 2
    """Number of most recent checkpoints to keep."""
    log_to: tuple[TrackerName, ...] = ()
    """Trackers that get losses, learning rates and WERs by step: tensorboard, mlflow, wandb. Each
    needs the extra of its name."""


class TrainClusterSettings(ClusterSettings):
    """Data-parallel training with Ray Train, if there are several workers."""

    workers: PositiveInt = 1
    """Number of data-parallel workers; 1 trains without Ray."""
    gpus_per_worker: float = Field(default=0.0, ge=0, le=8)
    """GPUs per worker (Ray only)."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs per worker (Ray only)."""


class FinetuneConfig(Settings):
    """A resolved configuration; keys that were omitted have their defaults."""

    model: StudentSettings
    lora: LoraSettings = Field(default_factory=LoraSettings)
    data: DataSettings
    windows: WindowSettings = Field(default_factory=WindowSettings)
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    distillation: DistillationSettings = Field(default_factory=DistillationSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    output: TrainedSettings
    cluster: TrainClusterSettings = Field(default_factory=TrainClusterSettings)

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> "FinetuneConfig":
        if self.lora.rank is not None and self.model.freeze:
            raise ValueError(
                f"found model.freeze {list(self.model.freeze)} with lora.rank {self.lora.rank}: "
                "LoRA freezes all weights of the checkpoint; remove model.freeze and name the "
                "layers with adapters in lora.target_modules"
            )
        return self

    @property
    def effective_batch_size(self) -> int:
        """Number of windows per optimizer step, over all workers."""
        training = self.training
        micro_batches = training.gradient_accumulation_steps * self.cluster.workers
        return training.per_device_train_batch_size * micro_batches
