"""One job: a settings model per section of its YAML in the order data flows, and `RunOptions`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.decoding import PACKAGED_CHECKPOINT, ComputeType, only_language
from corpus_asr.config.extraction import ExtractSettings, SpeakerSettings, missing_speech
from corpus_asr.config.hooks import HookSettings
from corpus_asr.config.settings import (
    NONE_OR_MANY,
    ONE_OR_MANY,
    Auto,
    DecodingSection,
    Settings,
    StoreSection,
    Texts,
    check_store,
)
from corpus_asr.config.storage_options import (
    NO_AUDIO_PATTERNS,
    NO_OPTIONS,
    TABLE,
    TAR,
    StorageOptions,
)
from corpus_asr.failure_kinds import Origin

_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SourceSettings(Settings):
    """Recordings to transcribe: URIs to list, or manifests."""

    uri: Texts = ()
    """Recordings: files, folders (all objects below them) or globs (`**` crosses folders), of any
    fsspec scheme; `{000..099}` and `{a,b}` stand for several. A .tar file stands for the recordings
    in it."""
    manifest: Annotated[Texts, NONE_OR_MANY] = ()
    """Manifests: .jsonl, .csv, .tsv (each also with .gz) or .parquet files, or globs of them, with
    a column `uri`, `path` or `audio_filepath`. Relative URIs are resolved against the manifest;
    other columns are kept as `metadata`."""
    audio_column: str | None = None
    """Column with the audio of Parquet files, whose rows are then recordings: structs of `bytes`
    and `path`, as Hugging Face has them, or bytes; null: such files in folders are ignored."""
    storage_options: StoreSection = NO_OPTIONS
    """Options of the source's store in the names of fsspec and s3fs, such as endpoint_url (of an S3
    that is not Amazon's), key, secret, token, profile, anon, requester_pays, client_kwargs and
    config_kwargs; secrets by ${env:NAME}."""
    exclude: Texts = ()
    """File name patterns, in any case, of recordings to exclude from folders and globs; patterns
    with a slash, such as `*/trailers/*`, are of whole URIs. URIs named in full and manifests are
    never filtered."""
    ignore: Texts = NO_AUDIO_PATTERNS
    """File name patterns, in any case, of files that are not recordings, such as unfinished ones:
    in folders and globs they are counted, not transcribed. So are, without any pattern, files
    without the suffix of a sound or film in whose first bytes there is none. Patterns that begin
    with a dot or an underscore also match folders; those that end with a slash match only folders.
    URIs named in full and manifests are never filtered."""
    version: Literal["etag", "size"] = "etag"
    """Evidence that a recording has changed, in addition to its size: `etag`, what its store
    says, which for local files is their modification time; or `size`, nothing else, so that a
    touched or copied file, or member of a rewritten archive, counts as the same."""
    require_files: bool = False
    """Fail if a folder, glob or manifest has no recordings; otherwise a run over none is
    complete."""
    allow_local_files: bool = False
    """Allow a manifest on a remote store to name files of this machine."""
    allow_hosts: Annotated[tuple[str, ...] | None, ONE_OR_MANY] = None
    """Only hosts that http(s) URIs may use, in addition to those in this section: names,
    *.wildcards or networks; null: hosts in this section and public hosts."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "SourceSettings":
        if bool(self.uri) == bool(self.manifest):
            raise ValueError("set either source.uri or source.manifest")
        check_store("source", self.uris, self.storage_options, lists_others=bool(self.manifest))
        if self.manifest and self.version != "etag":
            raise ValueError(
                f"source.version: found {self.version} with a manifest, expected a listing, which "
                "has versions; remove version"
            )
        return self

    @property
    def has_columns(self) -> bool:
        """Whether it names what says more of recordings: manifests, tar files or tables."""
        tables = () if self.audio_column is None else (TABLE,)
        return bool(self.manifest) or any(
            uri.partition("?")[0].lower().endswith((TAR, *tables)) for uri in self.uri
        )

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs given in the section itself."""
        return self.uri or self.manifest

    @property
    def bound_options(self) -> StorageOptions:
        """The options, restricted to the stores of these URIs."""
        return self.storage_options.bound(self.uris)


class ModelSettings(Settings):
    """Model weights."""

    checkpoint: str = PACKAGED_CHECKPOINT
    """Checkpoint: a folder, an fsspec URI or a name. whisper-tiny.en (English, 39M parameters) is
    packaged. base (74M), small (244M), medium (769M), turbo (809M) and large-v3 (1550M) are
    multilingual and more accurate; these and any OWNER/NAME are downloaded from the Hugging Face
    Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null: the main branch."""
    recognizer: str | None = None
    """Your own model, in place of Whisper and the other families: a class package.module:Class (a
    subclass of corpus_asr.Recognizer), or the name of one of an installed package. It receives
    `checkpoint` unchanged."""
    by_language: dict[str, str] = Field(default_factory=dict)
    """Checkpoints by language code, of any family; `checkpoint`, a multilingual Whisper, detects
    the language and transcribes all other languages. All are loaded at once."""
    calibration: str | None = None
    """Calibration of `confidence`: the output folder of a run, or a .json file; null: that of
    output.uri if it exists, else the default."""
    compute_type: ComputeType = "auto"
    """Data type of weights and computation. `auto`: on CUDA `float16_fp8` from compute capability
    8.9, else float16; on CPUs bfloat16 if the hardware computes in it, else int8 if it has AVX2,
    else float32, which is exact and takes 1.4 times as long. `float16_fp8` (GPUs only): float16
    with keys and values of windows in 8 bits."""
    device: Auto | str = "auto"
    """Device: `auto` (a GPU if there is one), cpu, cuda or cuda:N."""
    reproducible: bool = False
    """On a GPU, compute each window by the same kernels, so that its text is independent of batch
    size and order; slower. On CPUs it always is."""

    @property
    def is_named(self) -> bool:
        """Whether the checkpoint was configured; otherwise it is `PACKAGED_CHECKPOINT`."""
        return "checkpoint" in self.model_fields_set

    @property
    def given_checkpoint(self) -> str | None:
        """Checkpoint argument of a `recognizer`: None if not configured."""
        return self.checkpoint if self.is_named else None

    @model_validator(mode="after")
    def _check_recognizer(self) -> Self:
        if self.recognizer is not None and self.by_language:
            raise ValueError(
                "by_language: found it with a recognizer, expected one of them; remove one"
            )
        for code, name in self.by_language.items():
            if _CLASS.fullmatch(name):
                raise ValueError(
                    f"by_language.{code}: found {name}, a class, expected a checkpoint of "
                    "a supported family; use model.recognizer in a job of its own"
                )
        return self


class AlignSettings(Settings):
    """Times of words by an aligner, in place of the model's own."""

    model: str | None = None
    """Parakeet CTC or Qwen3-ForcedAligner checkpoint that times the words of any model, for
    `decoding.word_timestamps`, and places the texts of `decoding.align`; named as
    `model.checkpoint` is, such as nvidia/parakeet-ctc-0.6b. null: the model's own times."""


class TranscribeSettings(Settings):
    """Hardware of the model; does not change results."""

    slots: PositiveInt | Auto = "auto"
    """Number of windows decoded at once by each worker; `auto`: as many as fit its memory."""
    workers: PositiveInt | Auto = "auto"
    """Number of model processes; `auto`: one per GPU, or one on CPUs."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    """GPUs per model process: 1, 0 or a fraction, such as 0.5 for two processes that share one;
    `auto`: 1 if there are any, else 0."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = "auto"
    """CPUs per model process; `auto`: half of the CPUs without a GPU."""


class OutputSettings(Settings):
    """Output tables."""

    uri: str
    """Folder of the output tables, of any fsspec scheme; one folder per job."""
    storage_options: StoreSection = NO_OPTIONS
    """Options of the output's store, as in `source`, which has its own; in s3_additional_kwargs
    encryption (ServerSideEncryption, SSEKMSKeyId), ACL, StorageClass, ChecksumAlgorithm."""
    max_failed_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fraction of failed recordings, among those that this run processed or gave to a hook, above
    which the command exits with code 1. In `nightly` a single failure never exceeds it, unless it
    is 0."""
    target_file_mb: float | None = Field(default=128.0, gt=0)
    """Size in MiB of table files after a run finishes, which merges smaller ones; null: no
    merging."""
    commit_mb: float = Field(default=4.0, gt=0, le=1024)
    """Size in MiB, in memory, of the results that are committed together, at the latest after 30 s.
    A killed process loses at most these results, which the next run computes again."""
    patience_s: float = Field(default=600.0, ge=0, le=86400)
    """Time for which a commit is retried while its store fails, before the run ends, in seconds."""

    @model_validator(mode="after")
    def _store_takes_its_options(self) -> Self:
        check_store("output", (self.uri,), self.storage_options)
        return self


class ReportSettings(Settings):
    """Settings of the report; none changes a transcript."""

    embed_audio: bool = True
    """Embed clips of the samples, up to 20 s each and 1.5 MB in all. Reading and encoding them
    takes up to 20 s after a run."""


class ClassificationSettings(Settings):
    """Settings that change labels."""

    task: Literal["language", "classify"] = "language"
    """Task: `language` identifies the spoken language with any multilingual Whisper checkpoint;
    `classify` uses the classes of a WhisperForAudioClassification checkpoint."""
    languages: Texts = ()
    """Candidate language codes, two or more; default: all languages of the checkpoint."""
    windows: Literal["all", "first_speech"] = "all"
    """Windows to classify: `all` speech in windows of at most 30 s, or `first_speech`, the windows
    at the start that language detection uses."""
    top_k: int = Field(default=5, ge=1, le=1000)
    """Number of rows per window, most probable label first."""

    @field_validator("languages")
    @classmethod
    def _something_to_choose(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        codes = tuple(dict.fromkeys(value))  # duplicates would share its probability
        if len(codes) == 1:
            raise ValueError(
                f"found {codes[0]} alone, expected two codes or more to choose among, or none"
            )
        return codes


class NightlySettings(Settings):
    """Settings of `corpus-asr nightly` only; none changes a transcript."""

    stop_after_h: float | None = Field(default=None, gt=0)
    """Time limit in hours. After it no new work starts, work in progress gets up to ten more
    minutes, and the next run continues. null: no limit."""
    retry_nights: int = Field(default=3, ge=0)
    """Number of later nightly runs that retry a failure of this program (internal, poison); after
    that the recording is skipped until its content changes. Failures of store, permissions, network
    or machine are retried in each run."""
    summaries: str | None = None
    """Folder of the summaries, one .json and one .md file per nightly run, of any fsspec scheme;
    null: `nights/` in the output folder."""
    webhook_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable with the webhook URL (https) that the summary is posted to,
    such as Slack's; http is limited to hosts in source.allow_hosts. null: no webhook."""


CLASSIFY_AUDIO: Final = "classify_audio"
PSEUDO_LABEL: Final = "pseudo_label"


class RunConfig(Settings):
    """A resolved job description; everything the user left out carries its default."""

    pipeline: Literal["transcribe_corpus", "classify_audio", "pseudo_label"] = "transcribe_corpus"
    """Pipeline to run: `transcribe_corpus` (section `decoding`), `classify_audio` (section
    `classification`) or `pseudo_label` (sections `decoding`, `selection` and `dataset`)."""
    source: SourceSettings
    extract: ExtractSettings = Field(default_factory=ExtractSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    decoding: DecodingSection = Field(default_factory=DecodingSection)
    align: AlignSettings = Field(default_factory=AlignSettings)
    classification: ClassificationSettings = Field(default_factory=ClassificationSettings)
    speakers: SpeakerSettings = Field(default_factory=SpeakerSettings)
    transcribe: TranscribeSettings = Field(default_factory=TranscribeSettings)
    output: OutputSettings
    report: ReportSettings = Field(default_factory=ReportSettings)
    nightly: NightlySettings = Field(default_factory=NightlySettings)
    hooks: tuple[HookSettings, ...] = ()
    """Your functions that process committed transcripts."""

    @model_validator(mode="after")
    def _other_jobs_name_their_model(self) -> "RunConfig":
        # `label` loads no model; `run` needs one.
        if self.model.is_named or self.pipeline in ("transcribe_corpus", PSEUDO_LABEL):
            return self
        raise ValueError(
            f"model.checkpoint: missing, expected a multilingual model for {self.pipeline}; name "
            "one, such as small"
        )

    @model_validator(mode="after")
    def _speech_is_looked_for(self) -> "RunConfig":
        if problem := missing_speech(self.decoding, self.extract, self.speakers):
            raise ValueError(problem)
        return self

    @property
    def needed_model(self) -> ModelSettings:
        """Return `model`, reduced to the checkpoints that this job may use.

        For a fixed language with its own checkpoint, that is the only one.
        """
        model = self.model
        by_language = {} if self.pipeline == CLASSIFY_AUDIO else model.by_language
        only = only_language(self.decoding) if by_language else None
        if only is None:
            return model.model_copy(update={"by_language": by_language})
        if only in by_language:
            model = model.model_copy(update={"checkpoint": by_language[only], "revision": None})
        return model.model_copy(update={"by_language": {}})

    @model_validator(mode="after")
    def _of_texts(self) -> "RunConfig":
        if self.pipeline == CLASSIFY_AUDIO:
            for name, section in (("speakers", self.speakers.wanted), ("hooks", self.hooks)):
                if section:
                    raise ValueError(
                        f"{name}: found a classification, expected a transcription; leave it out"
                    )
        names = [hook.name for hook in self.hooks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"hooks: found {', '.join(twice)} twice, expected names of their own")
        return self

    @model_validator(mode="after")
    def _recognizers_transcribe(self) -> "RunConfig":
        if self.model.recognizer is not None and self.pipeline == CLASSIFY_AUDIO:
            raise ValueError(
                "model.recognizer: found a classification, expected a transcription; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _words_to_time(self) -> "RunConfig":
        wanted = self.decoding.word_timestamps or self.decoding.align
        if self.align.model is not None and (not wanted or self.pipeline == CLASSIFY_AUDIO):
            raise ValueError(
                "align.model: found a checkpoint for word times, expected "
                "decoding.word_timestamps or decoding.align with it; set one, or remove align"
            )
        return self

    @model_validator(mode="after")
    def _texts_to_align(self) -> "RunConfig":
        if not self.decoding.align:
            return self
        if self.pipeline != "transcribe_corpus":
            raise ValueError(
                f"decoding.align: found pipeline {self.pipeline}, expected transcribe_corpus; "
                "leave align out"
            )
        if not self.source.has_columns:
            raise ValueError(
                "decoding.align: found no source of texts, expected source.manifest with a column "
                "text, .tar files with texts, or source.audio_column; set one, or remove align"
            )
        if self.extract.separate:
            raise ValueError(
                f"decoding.align: found extract.{self.extract.separate}, expected one channel or "
                "track, or all channels mixed, for one text; set one"
            )
        return self

    @model_validator(mode="after")
    def _one_language_one_model(self) -> "RunConfig":
        if self.model.by_language and self.decoding.language_mode == "window":
            raise ValueError(
                "model.by_language: found decoding.language_mode window, expected recording or "
                "part; change it"
            )
        return self


class Retry(StrEnum):
    """Failed recordings to retry, by who can change the failure."""

    environment = "environment"
    """Retried in each run: failures of the store, permissions, network and machine."""
    nightly = "nightly"
    """Those, and what failed by this program, which nights try a few times."""
    failed = "failed"
    """Those, and what failed by a setting: all but failures of the file itself."""
    all = "all"

    def includes(self, origin: Origin) -> bool:
        """Return whether failures of this origin are retried."""
        return origin in _RETRIED[self]


_RETRIED: Final[Mapping[Retry, Collection[Origin]]] = MappingProxyType({
    Retry.environment: (Origin.environment,),
    Retry.nightly: (Origin.environment, Origin.program),
    Retry.failed: (Origin.environment, Origin.program, Origin.settings),
    Retry.all: tuple(Origin),
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The choices of one run; the defaults continue what is there and touch nothing else."""

    steal_lock: bool = False
    """Take over the lock of a run that shows no sign of life."""
    redo: str | None = None
    """Condition in SQL on recordings to redo, or `all`."""
    retry: Retry = Retry.environment
    leave_alone: frozenset[str] = frozenset()
    """`recording_id` of failed recordings that are not retried, whatever `retry` says, until their
    content changes; failures of the environment are."""
    stop_at: float | None = None
    """Time, by `time.monotonic()`, after which no new work starts; None: never."""


DEFAULT_OPTIONS = RunOptions()


WINDOWS: Final = "windows"
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


Select = Literal["own", "fuse"]


class SelectionSettings(Settings):
    """Rules that select segments; changing them needs no new transcription."""

    min_duration_s: Rate = 0.3
    """Minimum duration in seconds."""
    max_duration_s: Annotated[float, Field(gt=0, le=30)] = 30.0
    """Maximum duration in seconds."""
    languages: Texts = ()
    """Language codes to keep; default: all, or the language that the existing transcript names."""
    min_language_probability: Share | None = None
    """Minimum probability of a detected language; null: any."""
    max_no_speech_prob: Share | None = 0.6
    """Maximum probability that the window contains no speech; null: any."""
    min_speech_fraction: Share | None = None
    """Minimum fraction of the segment inside detected speech; null: any."""
    min_snr_db: Annotated[float, Field(ge=-20, le=100)] | None = None
    """Minimum distance in decibels between the speech and the noise around it; null: any."""
    min_bandwidth_hz: Annotated[float, Field(gt=0, le=8000)] | None = None
    """Minimum upper end in hertz of the highest band with sound; 5000 drops telephone sound. null:
    any."""
    min_level_dbfs: Annotated[float, Field(le=0)] | None = None
    """Minimum level in decibels of full scale; null: any."""
    max_clipped_share: Share | None = None
    """Maximum share of clipped samples, such as 0.005; null: any."""
    min_confidence: Share | None = None
    """Minimum confidence, the estimated fraction of correct words; null: any."""
    min_avg_logprob: Annotated[float, Field(le=0)] | None = -1.0
    """Minimum mean log-probability of the window; -1 is Whisper's threshold. null: any."""
    max_compression_ratio: Annotated[float, Field(gt=0)] | None = 2.4
    """Maximum compression ratio, text bytes over zlib bytes; 2.4 is Whisper's threshold. null:
    any."""
    max_temperature: Rate | None = None
    """Maximum sampling temperature; 0 keeps only text of greedy or beam search. null: any."""
    min_words_per_s: Rate | None = None
    """Minimum speaking rate in words per second; lower where words are missing. null: any."""
    max_words_per_s: Rate | None = 8.0
    """Maximum speaking rate in words per second, or characters per second in scripts without spaces
    between words. null: any."""
    max_chars_per_s: Rate | None = 40.0
    """Maximum speaking rate in characters per second; 40 is NeMo Curator's. null: any."""
    max_repeats: Count | None = 5
    """Maximum number of consecutive repeats of one to five words; null: any."""
    min_unique_words: Share | None = 0.4
    """Minimum number of unique words per word, in segments of 10 words or more; 0.4 is NeMo
    Curator's. null: any."""
    max_word_chars: Count | None = 40
    """Maximum number of characters of a word, in scripts with spaces between words; null: any."""
    drop_texts: Texts = ()
    """Texts of segments to drop, compared after Whisper's normalization, such as "thanks for
    watching"."""
    drop_known_hallucinations: bool = True
    """Drop segments whose column `known_hallucination` is true."""
    max_copies: Count | None = None
    """Maximum number of segments of the run with the same text; null: any."""
    max_duplicate_fraction: Share | None = None
    """Maximum fraction of the segment that is audio of an earlier recording, by fingerprints; null:
    any. Needs a run with `fingerprint` in `extract.measures`."""
    corrections: bool = True
    """Use corrections made in `corpus-asr view` in place of the model's text; rules on the model's
    scores do not apply to these segments."""
    against: str | None = None
    """Output folder of a second run over the same recordings, with another model or other decoding
    settings; null: no comparison."""
    select: Select = "own"
    """Text of a segment: `own`, this run's; `fuse`, of both runs the more probable words, which
    needs `against`, and words with times in both runs."""
    max_disagreement: Rate | None = 0.1
    """Maximum number of words that differ from the `against` run, per word; null: any."""
    references: str | None = None
    """Reference transcripts: a manifest with `text`; null: none."""
    max_wer: Rate | None = 0.1
    """Maximum word error rate against `references`; null: any."""

    @model_validator(mode="after")
    def _something_is_between(self) -> Self:
        for quantity in ("duration_s", "words_per_s"):
            least, most = getattr(self, f"min_{quantity}"), getattr(self, f"max_{quantity}")
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"min_{quantity}: {least:g} is more than max_{quantity}: {most:g}; change one "
                    "of them"
                )
        return self

    @model_validator(mode="after")
    def _select_has_a_choice(self) -> Self:
        if self.select != "own" and self.against is None:
            raise ValueError(
                f"select: {self.select} takes the texts of two runs, expected against; set it to "
                "the output folder of the second, or select to own"
            )
        return self


class DatasetSettings(Settings):
    """Dataset to write."""

    uri: str
    """Folder of the dataset, of any fsspec scheme."""
    storage_options: StoreSection = NO_OPTIONS
    """Options of the dataset's store, as in `output`."""
    format: Literal["huggingface", "webdataset", "nemo"] = "huggingface"
    """Format: `huggingface` (Parquet files with audio), `webdataset` (tar files), `nemo` (audio
    files and manifests)."""
    examples: Literal["windows", "clips"] = "windows"
    """Examples: `windows` of up to 30 s of packed segments with timestamps, as Whisper is trained,
    or `clips` of one segment."""
    max_pause_s: Rate = 3.0
    """Maximum pause in seconds between segments of a window."""
    pad_s: Annotated[float, Field(ge=0, le=5)] = 0.2
    """Seconds of audio kept before and after an example, without audio of neighboring segments."""
    audio_format: Literal["flac", "opus", "wav"] = "flac"
    """Audio codec: 16 kHz, mono, 16 bits."""
    shard_mb: Annotated[float, Field(gt=0, le=4096)] = 256.0
    """Audio per file in MiB, before encoding."""
    validation_fraction: Share = 0.01
    """Fraction of recordings in the validation split, selected by hash of their URI."""
    test_fraction: Share = 0.0
    """Fraction of recordings in the test split."""
    split_by: Literal["recording", "speaker"] = "recording"
    """Unit that is in one split alone: a `recording`, or a `speaker` with all recordings of theirs;
    fractions are then of audio. The latter needs a run with speakers."""
    workers: PositiveInt | Auto = "auto"
    """Number of processes that cut and encode audio; `auto`: one per CPU."""

    @model_validator(mode="after")
    def _store_takes_its_options(self) -> Self:
        check_store("dataset", (self.uri,), self.storage_options)
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction add up to 1 or more, expected less; lower "
                "them"
            )
        return self


class PseudoLabelConfig(RunConfig):
    """A job that transcribes, selects and writes training data."""

    pipeline: Literal["pseudo_label"] = PSEUDO_LABEL
    """Pipeline to run: transcribe, select segments and write training data."""
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    dataset: DatasetSettings
