"""One settings model per stage, in the order data flows."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from corpus_asr.config.base import Auto, Settings
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

    uri: tuple[str, ...] = Field(
        default=(),
        description="Files, folders or globs (`**` crosses folders); any fsspec scheme. "
        "A folder means every object below it.",
    )
    manifest: str | None = Field(
        default=None,
        description="A .jsonl, .csv or .parquet with a `uri` column; relative addresses are "
        "resolved against the manifest; other columns are kept as `metadata`.",
    )
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint for the source, where it is not Amazon's."
    )
    exclude: tuple[str, ...] = Field(
        default=SIDECAR_PATTERNS,
        description="Name patterns (any case) left out of listings; addresses named in full and "
        "manifests are never filtered.",
    )
    allow_local_files: bool = Field(
        default=False,
        description="Let a manifest that is read from a remote store name files of this machine.",
    )
    allow_hosts: tuple[str, ...] | None = Field(
        default=None,
        description="The only hosts that http(s) addresses may lead to, beside those in this "
        "section: names, *.wildcards, networks. null: what the user names, and public hosts.",
    )

    @field_validator("uri", "exclude", "allow_hosts", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> "SourceSettings":
        if bool(self.uri) == (self.manifest is not None):
            raise ValueError("set either source.uri or source.manifest, not both and not neither")
        return self


class ExtractSettings(Settings):
    """From bytes to features, on CPUs."""

    part_s: float = Field(
        default=600.0, ge=30.0, le=3600.0,
        description="Longest stretch handed to the model at once; longer recordings are cut in "
        "silence. Bounds memory and is the unit of retry.",
    )  # fmt: skip
    channels: Literal["mix", "each"] | Annotated[int, Field(ge=0)] = Field(
        default="mix",
        description="`mix` to mono, `each` channel apart, or the number of one channel from 0.",
    )
    speech_detection: Literal["silero", "none"] = Field(
        default="silero",
        description="Finds speech: parts are cut in silence, long silence is skipped. `none` "
        "transcribes everything.",
    )
    speech_pad_s: float = Field(
        default=0.4, ge=0.0, le=5.0, description="Audio kept on both sides of detected speech."
    )
    pack_mb: float = Field(
        default=64.0, gt=0, description="Short files are grouped up to this many MiB per task."
    )
    workers: PositiveInt | Auto = Field(
        default="auto", description="Extract processes; `auto` uses the CPUs transcription leaves."
    )
    ahead_mb: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto",
        description="Features extracted and not yet transcribed, in MiB over all machines; beyond, "
        "extraction waits. `auto`: half of Ray's object stores; without Ray 64 MiB beside what "
        "the model works on.",
    )
    item_timeout_s: float = Field(
        default=600.0, gt=0,
        description="A recording whose decoder gives no part for this long becomes a failure.",
    )  # fmt: skip
    max_file_gb: float = Field(
        default=100.0, gt=0,
        description="A larger file becomes a failure before it is opened.",
    )  # fmt: skip
    max_duration_h: float = Field(
        default=48.0, gt=0,
        description="Of a longer recording the rest becomes a failure: some kilobytes can be made "
        "to decode to years.",
    )  # fmt: skip


class ModelSettings(Settings):
    """Which weights."""

    checkpoint: str = Field(
        default=PACKAGED_CHECKPOINT,
        description="A folder, an fsspec address or a name. whisper-tiny.en (English, 39M "
        "parameters) comes with the package. base (74M), small (244M), medium (769M), turbo (809M) "
        "and large-v3 (1550M) are multilingual and more accurate, and come from the hub, as any "
        "OWNER/NAME there.",
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    by_language: dict[str, str] = Field(
        default_factory=dict,
        description="Checkpoints for recordings in some languages, by code; `checkpoint` detects "
        "the language and transcribes all others. They are loaded together.",
    )
    calibration: str | None = Field(
        default=None,
        description="Output folder of a run, or a .json file, whose calibration gives "
        "`confidence`; null: that of output.uri if there is one, else the default.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        default="auto",
        description="`auto`: float16 on CUDA; on CPUs bfloat16 where they compute in it, else "
        "float32. `int8`, on CPUs only, is less exact; measure whether it is faster.",
    )
    device: str = Field(
        default="auto", description="`auto` takes a GPU if there is one; or cpu, cuda, cuda:1."
    )

    @property
    def is_named(self) -> bool:
        """Whether the user chose the checkpoint; else it is `PACKAGED_CHECKPOINT`."""
        return "checkpoint" in self.model_fields_set


class TranscribeSettings(Settings):
    """How much hardware the model gets; never changes results."""

    slots: PositiveInt | Auto = Field(
        default="auto", description="Windows decoded side by side in one worker."
    )
    workers: PositiveInt | Auto = Field(
        default="auto", description="Model processes; `auto`: one per GPU, or one on CPU."
    )
    gpus_per_worker: Annotated[float, Field(ge=0, le=8)] | Auto = Field(
        default="auto", description="GPUs per model process; `auto`: 1 where there are any, else 0."
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto", description="CPUs per model process; `auto`: half of them without a GPU."
    )


class OutputSettings(Settings):
    """Where the tables go."""

    uri: str = Field(description="Folder of the tables; any fsspec scheme. One folder, one run.")
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint for the output, where it is not Amazon's."
    )
    max_failed_fraction: float = Field(
        default=0.01, ge=0, le=1,
        description="Share of failed recordings above which the command exits with 1.",
    )  # fmt: skip
    target_file_mb: float | None = Field(
        default=128.0, gt=0,
        description="A finished run merges small objects of its tables into files of about this "
        "many MiB; null leaves them as they were written.",
    )  # fmt: skip


class ClusterSettings(Settings):
    """Which Ray."""

    address: str = Field(
        default="local",
        pattern=r"^(local|auto|[^:/\s]+:\d+)$",
        description="`local` starts one here; `auto` joins the one that this machine is part of, "
        "and so does its host:port.",
    )

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
