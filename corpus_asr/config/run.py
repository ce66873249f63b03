"""One job: a settings model per section of its YAML in the order data flows, and `RunOptions`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.confidence import LOW_CONFIDENCE
from corpus_asr.config.decoding import ONE_OR_MANY, Auto, DecodingSettings, Settings, Texts
from corpus_asr.config.default_model import PACKAGED_CHECKPOINT

# What usually lies beside recordings and is no recording.
SIDECAR_PATTERNS = tuple(
    f"*.{suffix}"
    for suffix in (
        "json", "jsonl", "csv", "tsv", "parquet", "txt", "md", "xml", "yaml", "yml", "srt", "vtt",
        "lab", "textgrid", "rttm", "log", "py", "html", "pdf", "jpg", "jpeg", "png", "gif",
    )
)  # fmt: skip


class SourceSettings(Settings):
    """Which recordings: addresses to list, or a manifest that names them."""

    uri: Texts = ()
    """Files, folders or globs (`**` crosses folders); any fsspec scheme. A folder means every
    object below it."""
    manifest: str | None = None
    """A .jsonl, .csv or .parquet with a `uri` column; relative addresses are resolved against the
    manifest; other columns are kept as `metadata`."""
    endpoint_url: str | None = None
    """S3 endpoint for the source, where it is not Amazon's."""
    exclude: Texts = SIDECAR_PATTERNS
    """Name patterns (any case) left out of listings; addresses named in full and manifests are
    never filtered."""
    allow_local_files: bool = False
    """Let a manifest that is read from a remote store name files of this machine."""
    allow_hosts: Annotated[tuple[str, ...] | None, ONE_OR_MANY] = None
    """The only hosts that http(s) addresses may lead to, beside those in this section: names,
    *.wildcards, networks. null: what the user names, and public hosts."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "SourceSettings":
        if bool(self.uri) == (self.manifest is not None):
            raise ValueError("set either source.uri or source.manifest, not both and not neither")
        return self


class ExtractSettings(Settings):
    """From bytes to features, on CPUs."""

    part_s: float = Field(default=600.0, ge=30.0, le=3600.0)
    """Longest stretch handed to the model at once; longer recordings are cut in silence. Bounds
    memory and is the unit of retry."""
    channels: Literal["mix", "each"] | Annotated[int, Field(ge=0)] = "mix"
    """`mix` to mono, `each` channel apart, or the number of one channel from 0."""
    speech_detection: Literal["silero", "none"] = "silero"
    """Finds speech: parts are cut in silence, long silence is skipped. `none` transcribes
    everything."""
    speech_pad_s: float = Field(default=0.4, ge=0.0, le=5.0)
    """Audio kept on both sides of detected speech."""
    pack_mb: float = Field(default=64.0, gt=0)
    """Short files are grouped up to this many MiB per task."""
    workers: PositiveInt | Auto = "auto"
    """Extract processes; `auto` uses the CPUs transcription leaves."""
    ahead_mb: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Features extracted and not yet transcribed, in MiB over all machines; beyond, extraction
    waits. `auto`: half of Ray's object stores; without Ray 64 MiB beside what the model works
    on."""
    item_timeout_s: float = Field(default=600.0, gt=0)
    """A recording whose decoder gives no part for this long becomes a failure."""
    max_file_gb: float = Field(default=100.0, gt=0)
    """A larger file becomes a failure before it is opened."""
    max_duration_h: float = Field(default=48.0, gt=0)
    """Of a longer recording the rest becomes a failure: some kilobytes can be made to decode to
    years."""


class ModelSettings(Settings):
    """Which weights."""

    checkpoint: str = PACKAGED_CHECKPOINT
    """A folder, an fsspec address or a name. whisper-tiny.en (English, 39M parameters) comes with
    the package. base (74M), small (244M), medium (769M), turbo (809M) and large-v3 (1550M) are
    multilingual and more accurate, and come from the hub, as any OWNER/NAME there."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    by_language: dict[str, str] = Field(default_factory=dict)
    """Checkpoints for recordings in some languages, by code; `checkpoint` detects the language and
    transcribes all others. They are loaded together."""
    calibration: str | None = None
    """Output folder of a run, or a .json file, whose calibration gives `confidence`; null: that of
    output.uri if there is one, else the default."""
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    """`auto`: float16 on CUDA; on CPUs bfloat16 where they compute in it, else float32. `int8`, on
    CPUs only, is less exact; measure whether it is faster."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; or cpu, cuda, cuda:1."""

    @property
    def is_named(self) -> bool:
        """Whether the user chose the checkpoint; else it is `PACKAGED_CHECKPOINT`."""
        return "checkpoint" in self.model_fields_set


class TranscribeSettings(Settings):
    """How much hardware the model gets; never changes results."""

    slots: PositiveInt | Auto = "auto"
    """Windows decoded side by side in one worker."""
    workers: PositiveInt | Auto = "auto"
    """Model processes; `auto`: one per GPU, or one on CPU."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | Auto = "auto"
    """GPUs per model process; `auto`: 1 where there are any, else 0."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = "auto"
    """CPUs per model process; `auto`: half of them without a GPU."""


class OutputSettings(Settings):
    """Where the tables go."""

    uri: str
    """Folder of the tables; any fsspec scheme. One folder, one run."""
    endpoint_url: str | None = None
    """S3 endpoint for the output, where it is not Amazon's."""
    max_failed_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of failed recordings above which the command exits with 1."""
    target_file_mb: float | None = Field(default=128.0, gt=0)
    """A finished run merges small objects of its tables into files of about this many MiB; null
    leaves them as they were written."""


class ClusterSettings(Settings):
    """Which Ray."""

    address: str = Field(default="local", pattern=r"^(local|auto|[^:/\s]+:\d+)$")
    """`local` starts one here; `auto` joins the one that this machine is part of, and so does its
    host:port."""

    @field_validator("address", mode="before")
    @classmethod
    def _no_ray_client(cls, value: object) -> object:
        # Ray Data needs a driver that is part of the cluster (seen with Ray 2.60).
        if isinstance(value, str) and value.startswith("ray://"):
            raise ValueError(
                "Ray Client (ray://) cannot run Ray Data; run the same command on a machine of the "
                "cluster, for example by `ray job submit`, with cluster.address: auto"
            )
        return value


class ClassificationSettings(Settings):
    """Everything that changes the labels for given features and weights."""

    task: Literal["language", "classify"] = "language"
    """`language`: which one is spoken, with any multilingual Whisper checkpoint; `classify`: the
    classes of a WhisperForAudioClassification checkpoint."""
    languages: Texts = ()
    """Codes to choose among, two or more; left out, all that the checkpoint knows."""
    windows: Literal["all", "first_speech"] = "all"
    """`all`: every stretch of speech, in windows of at most 30 s; `first_speech`: only those that a
    transcription detects the language in, one or a few where a recording begins to speak."""
    top_k: int = Field(default=5, ge=1, le=1000)
    """Rows written for each window, likeliest label first."""

    @field_validator("languages")
    @classmethod
    def _something_to_choose(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        codes = tuple(dict.fromkeys(value))  # twice the same would share its probability
        if len(codes) == 1:
            raise ValueError(
                f"found {codes[0]} alone, expected two codes or more to choose among, or none"
            )
        return codes


class NightlySettings(Settings):
    """Read by `corpus-asr nightly` alone; nothing here changes what a transcript says."""

    stop_after_h: float | None = Field(default=None, gt=0)
    """After so many hours nothing new is begun, and what is being decoded gets ten minutes more;
    the next night goes on. null: until all is done."""
    retry_nights: int = Field(default=3, ge=0)
    """Nights in which what failed for a passing reason is tried again; then it is left alone."""
    max_failed_fraction: float | None = Field(default=0.1, ge=0, le=1)
    """Share of the night's recordings that may fail, though always one of them unless it is 0;
    beyond, the command exits with 1. null: any."""
    max_failed: int | None = Field(default=None, ge=0)
    """How many of the night's recordings may fail before the command exits with 1."""
    low_confidence: float = Field(default=LOW_CONFIDENCE, ge=0, le=1)
    """Recordings whose mean confidence is below are named in the summary."""
    past_nights: PositiveInt = 14
    """How many earlier nights a night is compared with."""
    summaries: str | None = None
    """Folder of the summaries, a .json and a .md per night; any fsspec scheme. null: `nights/` in
    the output."""
    webhook_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the https address to which the summary is posted,
    such as a Slack webhook's; null: none. http goes to hosts in source.allow_hosts only."""


CLASSIFY_AUDIO: Final = "classify_audio"
PSEUDO_LABEL: Final = "pseudo_label"


class RunConfig(Settings):
    """A resolved job description; everything the user left out carries its default."""

    pipeline: Literal["transcribe_corpus", "classify_audio", "pseudo_label"] = "transcribe_corpus"
    """What is done; `classification` is for `classify_audio`, `decoding` for the others;
    `pseudo_label` has sections of its own (`config/run.py`)."""
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


class Retry(StrEnum):
    """Which failed recordings are done again."""

    none = "none"
    retryable = "retryable"
    """Those of which another try may come out otherwise: a store that did not answer, say."""
    all = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The choices of one run; the defaults continue what is there and touch nothing else."""

    steal_lock: bool = False
    """Take over the lock of a run that shows no sign of life."""
    retry: Retry = Retry.none
    leave_alone: frozenset[str] = frozenset()
    """Of the failed recordings, the `recording_id` of those that are not retried, whatever `retry`
    says; with new content they are new."""
    stop_at: float | None = None
    """When, by `time.monotonic()`, nothing new is begun; None never."""
    new_run: bool = False
    """Where the results were made with other settings: put them aside and begin anew."""


DEFAULT_OPTIONS = RunOptions()


WINDOWS: Final = "windows"
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SelectionSettings(Settings):
    """Which segments are kept: all that no rule drops. Nothing here needs a new transcription."""

    min_duration_s: Rate = 0.3
    """Shorter segments are dropped."""
    max_duration_s: Annotated[float, Field(gt=0, le=30)] = 30.0
    """Longer segments are dropped."""
    languages: Texts = ()
    """Codes; segments in other languages are dropped, and without any those not in the language
    that the existing transcript names."""
    min_language_probability: Share | None = None
    """Where the language was detected: how sure, at least."""
    max_no_speech_prob: Share | None = 0.6
    """Probability that the window holds no speech."""
    min_speech_fraction: Share | None = None
    """Share of the segment that lies in detected speech."""
    min_confidence: Share | None = None
    """Estimated share of right words."""
    min_avg_logprob: Annotated[float, Field(le=0)] | None = -1.0
    """Mean log-probability of the window; -1 is Whisper's own bound."""
    max_compression_ratio: Annotated[float, Field(gt=0)] | None = 2.4
    """Text bytes over zlib bytes; 2.4 is Whisper's own bound."""
    max_temperature: Rate | None = None
    """Sampling temperature that was needed; 0 keeps greedy text alone."""
    min_words_per_s: Rate | None = None
    """Slower speech is dropped, as where words were left out."""
    max_words_per_s: Rate | None = 8.0
    """Faster speech is dropped; letters count where none are parted."""
    max_letters_per_s: Rate | None = 40.0
    """Letters per second; 40 is NeMo Curator's bound."""
    max_repeats: Count | None = 5
    """How often up to five words may stand in a row."""
    min_unique_words: Share | None = 0.4
    """Different words per word, from 10 words on; 0.4 is NeMo Curator's bound."""
    max_word_letters: Count | None = 40
    """Letters of the longest word, where words are parted."""
    drop_texts: Texts = ()
    """Whole texts to drop, compared after Whisper's normaliser, such as "thanks for watching"."""
    drop_known_hallucinations: bool = True
    """Drop segments whose column `known_hallucination` is true."""
    max_copies: Count | None = None
    """How many segments of the run may have the same text."""
    against: str | None = None
    """output.uri of another run over the same recordings, by another model or decoding."""
    max_disagreement: Rate = 0.1
    """Words heard otherwise there, per word; where `against` is set."""
    references: str | None = None
    """Existing transcripts: a .jsonl, .csv or .parquet of uri (or path) and text."""
    max_wer: Rate = 0.1
    """Word errors per word of them; where `references` is set."""


class DatasetSettings(Settings):
    """What is written, and where."""

    uri: str
    """Folder of the data set; any fsspec scheme."""
    endpoint_url: str | None = None
    """S3 endpoint for the data set, where it is not Amazon's."""
    format: Literal["huggingface", "webdataset", "nemo"] = "huggingface"
    """`huggingface`: Parquet with audio; `webdataset`: tar files; `nemo`: audio files and a
    manifest."""
    examples: Literal["windows", "clips"] = "windows"
    """`windows`: segments packed up to 30 s, with timestamps, as Whisper trains; `clips`: each
    segment by itself."""
    max_pause_s: Rate = 3.0
    """A longer pause between segments begins a new window."""
    pad_s: Annotated[float, Field(ge=0, le=5)] = 0.2
    """Audio kept around examples, never into a neighbouring segment."""
    audio_format: Literal["flac", "opus", "wav"] = "flac"
    """How audio is encoded: 16 kHz, mono, 16 bits."""
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = 256.0
    """Audio of one file in MiB, before it is encoded."""
    validation_fraction: Share = 0.01
    """Share of recordings for validation, chosen by their addresses."""
    test_fraction: Share = 0.0
    """Share of recordings for tests."""
    workers: PositiveInt | Auto = "auto"
    """Processes that cut and encode; `auto`: one per CPU."""

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

    pipeline: Literal["pseudo_label"] = PSEUDO_LABEL
    """Transcribe, select, and write training data."""
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    dataset: DatasetSettings
