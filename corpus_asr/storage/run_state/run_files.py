"""JSON files of a run and its start: progress, calibration, settings, fingerprint."""

import datetime
import hashlib
import json
import logging
import platform
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import metadata
from typing import Any, Final

import pyarrow as pa

from corpus_asr.activity import Activity, Estimate, Tally, clock_time, in_hours, rtfx
from corpus_asr.confidence import FEATURES, ConfidenceModel
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig, SourceSettings
from corpus_asr.errors import ConfigError
from corpus_asr.json_values import parsed
from corpus_asr.logs import event
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.own_sources import record_sources
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.uri import (
    public,
    redact_uri,
    without_secrets,
)
from corpus_asr.units import counted

logger = logging.getLogger(__name__)

PROGRESS_NAME = "_run/progress.json"
EVERY_S = 15.0

RUNNING, TRANSCRIBED, STOPPED = "running", "transcribed", "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress(Tally):
    """Progress of a run: counts of what is committed, time and estimates; `_s` are seconds."""

    elapsed_s: float
    """Wall time since the run started, including listing and the start of Ray."""
    planned: int
    """Recordings that were pending."""
    rtfx: float
    """Audio seconds committed per second of `elapsed_s`."""
    audio_done_s: float = 0.0
    """Transcribed audio, committed or not; used for estimates."""
    audio_expected_s: float | None = None
    """Estimated audio of all planned recordings; null if it cannot be estimated."""
    audio_expected_range_s: tuple[float, float] | None = None
    """Range with a probability of about 0.8; likewise `eta_range_s`."""
    eta_s: float | None
    """Estimated time until all is transcribed; null if it cannot be estimated."""
    eta_range_s: tuple[float, float] | None = None
    extract: str = ""
    """State of extraction in the last seconds: busy, blocked, idle ..."""
    transcribe: str = ""
    """State of the engines in the last seconds."""

    @property
    def remaining(self) -> int:
        """Recordings that are neither completed nor failed."""
        return max(0, self.planned - self.files)

    @property
    def audio_expected(self) -> Estimate | None:
        """Audio of all planned recordings, in seconds."""
        return _estimate(self.audio_expected_s, self.audio_expected_range_s)

    @property
    def eta(self) -> Estimate | None:
        """Remaining time, in seconds."""
        return _estimate(self.eta_s, self.eta_range_s)

    @property
    def share_done(self) -> float | None:
        """Fraction of the expected audio that is transcribed; None without an estimate."""
        if not self.remaining:
            return 1.0
        if not self.audio_expected_s:
            return None
        # Transcription ends before the last commit.
        return min(0.99, self.audio_done_s / self.audio_expected_s)

    def words(self) -> dict[str, str]:
        """Return the parts of a progress line, by topic."""
        share, eta, expected_s = self.share_done, self.eta, self.audio_expected_s
        unit, (done, expected) = in_hours(self.audio_done_s, expected_s or 0.0)
        audio = f"{done} {unit} of audio"
        if share is not None and expected_s is not None:
            audio = f"{share:.0%}, {done} of {expected} {unit}"
        return {
            "files": f"{self.files:,} of {counted(self.planned, 'file')}, {self.failed:,} failed",
            "audio": audio,
            # Before the first commit it would display as zero.
            "speed": f"RTFx {self.rtfx:,.1f}" if self.audio_s else "RTFx unknown",
            "time": f"elapsed {clock_time(self.elapsed_s)}, "
            f"ETA {'unknown' if eta is None else eta.clock_words()}",
            "stages": f"extract: {self.extract}, transcribe: {self.transcribe}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(RunProgress):
    """State of a run: `_run/progress.json`; times of day are the driver's, in ISO 8601."""

    run_id: str
    state: str
    """`transcribed`: tables are being finished; `stopped`: it ended before all was committed."""
    started_at: str
    written_at: str
    host: str
    pid: int
    listed: int
    done_before: int
    """Listed recordings that earlier runs had committed."""
    planned_bytes: int
    last_commit_at: str | None
    extract_workers: int
    transcribe_workers: int
    activity: Activity
    workers_out: tuple[str, ...] = ()
    """Disabled workers: device, machine and error of each."""

    @property
    def parts_uncommitted(self) -> int:
        """Parts with results that are not committed yet, excluding those without speech."""
        return max(0, self.activity.parts_transcribed - self.parts)

    def after(self, speed: "Speed") -> "Snapshot":
        """Return the snapshot with the totals of the finished run."""
        return replace(self, audio_s=speed.audio_s, elapsed_s=speed.wall_s, rtfx=speed.rtfx)


def _estimate(value: float | None, between: tuple[float, float] | None) -> Estimate | None:
    return None if value is None or between is None else Estimate(value, *between)


def write_snapshot(store: OutputStore, snapshot: Snapshot) -> None:
    """Write the snapshot to the output folder."""
    store.write_json(PROGRESS_NAME, asdict(snapshot))


def read_snapshot(store: OutputStore) -> Snapshot | None:
    """Return the last snapshot; None without one, or for another format version."""
    try:
        snapshot: Snapshot = parsed(Snapshot, store.read_json(PROGRESS_NAME))
    except ValueError:
        return None
    return snapshot


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput of a finished run; the single source of all such figures."""

    audio_s: float
    """Audio committed by the run."""
    wall_s: float
    """From before the listing until the tables were finished."""

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return rtfx(self.audio_s, self.wall_s)


def speed_of(run: Mapping[str, Any]) -> Speed:
    """Return the throughput of the run in a `run.json`."""
    started, finished = (
        datetime.datetime.fromisoformat(run[key]) for key in ("started_at", "finished_at")
    )
    audio_s = run.get("committed", {}).get("audio_s", 0.0)
    # If the clock was set back in between, it would be negative.
    return Speed(audio_s, max(0.0, (finished - started).total_seconds()))


def erased_of(run: Mapping[str, Any] | None) -> int:
    """Return how many erased recordings the run of a `run.json` found in the source and skipped."""
    return int(((run or {}).get("plan") or {}).get("num_forgotten", 0))


CALIBRATION_NAME: Final = "calibration.json"


def write_calibration(
    store: OutputStore, model: ConfidenceModel, *, fitted: Mapping[str, Any]
) -> None:
    """Save a calibration in an output folder for its later runs."""
    weights = dict(zip(FEATURES, model.weights, strict=True))
    values = asdict(model) | {"weights": weights, "fitted": dict(fitted)}
    store.write_json(CALIBRATION_NAME, values)


KEPT_RUN_FOLDER: Final = f"{RECORDS_FOLDER}/run"
"""Folder in which `transcribe -o` keeps its results as a run, next to its output files."""


def open_run(
    uri: str, *, endpoint_url: str | None = None, options: StoreOptions | None = None
) -> OutputStore:
    """Return the run of an output folder, or the one that `transcribe -o` keeps in its folder."""
    store = OutputStore(uri, endpoint_url=endpoint_url, options=options)
    kept = store.below(KEPT_RUN_FOLDER)
    return kept if not store.exists(CONFIG_NAME) and kept.exists(CONFIG_NAME) else store


def outcomes_names(
    store: OutputStore,
    *,
    advice: str = "check the URI, or transcribe into the folder again, with --overwrite",
) -> list[str]:
    """Return the names of a run's commits and objects of outcomes; empty if it has just started.

    Raises:
        ConfigError: not the folder of a run; with advice.
    """
    names = store.commit_names()
    if not names and not store.exists(CONFIG_NAME):
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found neither outcomes nor _run/, expected the "
            f"output folder of a run or of transcribe -o; {advice}"
        )
    return names


def read_calibration(
    address: str, options: StoreOptions = DEFAULT_STORE, *, family: str | None = None
) -> ConfidenceModel:
    """Return the calibration at a URI, for models of a family; None: any family.

    Raises:
        ConfigError: it is missing, or was fitted to another family.
    """
    folder, _, name = address.rpartition("/")
    if not name.endswith(".json"):
        folder, name = address, CALIBRATION_NAME
    store = OutputStore(folder or ".", options=options)
    content = store.read_json(name)
    if content is None:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found no such file, "
            "expected one; write it by `corpus-asr evaluate --calibrate`, or correct "
            "model.calibration"
        )
    try:
        if set(content["weights"]) != set(FEATURES):
            raise ValueError(f"weights of {', '.join(content['weights'])}")
        weights = [content["weights"][name] for name in FEATURES]
        calibration: ConfidenceModel = parsed(ConfidenceModel, content | {"weights": weights})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found {error!r}, "
            f"expected name, model_revision, offset and weights of {', '.join(FEATURES)}; write "
            "it again by `corpus-asr evaluate --calibrate`"
        ) from error
    if None not in (family, calibration.family) and calibration.family != family:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found {calibration.name} "
            f"of the family {calibration.family}, expected {family}; fit one by `corpus-asr "
            "evaluate --calibrate`, and name it in model.calibration"
        )
    return calibration


def calibration_for(
    config: RunConfig, store: OutputStore, *, model_revision: str, family: str | None = None
) -> ConfidenceModel | None:
    """Return a job's calibration: the configured one, else that of its output folder."""
    address = config.model.calibration
    if address is None and not store.exists(CALIBRATION_NAME):
        return None
    calibration = read_calibration(address or store.uri, store.options, family=family)
    # Used anyway, as it may be intended; the log names the weights it was fitted to.
    if calibration.model_revision not in (None, model_revision):
        event(
            logger, logging.WARNING, "calibration_of_another_model", calibration=calibration.name,
            fitted_for=calibration.model_revision, used_for=model_revision,
        )  # fmt: skip
    return calibration


PACKAGES = (
    "corpus-asr", "torch", "ray", "av", "numpy", "pyarrow", "fsspec", "s3fs", "huggingface_hub",
    "tokenizers", "onnxruntime",
)  # fmt: skip


def safe_config(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration, with full model names and URIs without secrets."""
    safe: dict[str, Any] = _safe(config.model_dump(mode="json"))
    model = safe["model"]
    model["checkpoint"] = full_name(model["checkpoint"])
    if (aligner := safe["align"]["model"]) is not None:
        safe["align"]["model"] = full_name(aligner)
    model["by_language"] = {code: full_name(name) for code, name in model["by_language"].items()}
    return safe


def _safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_safe(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return without_secrets(public(value))
    return value


def code_versions() -> dict[str, str]:
    """Return the versions of this program and of installed dependencies."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


FINGERPRINT_NAME = "_run/fingerprint.json"
CONFIG_NAME = "_run/config.json"
PAGE_NAME = "report.html"
EVALUATION_NAME = "evaluation.json"
SUMMARIES_FOLDER = "nights"


def failures_name(page: str) -> str:
    """Return the name of the CSV file of all failures next to a report page."""
    return f"{page.removesuffix('.html')}.failures.csv"


# Resource limits and extra tables, which do not change transcripts.
_RESOURCE_KEYS = {
    "extract.workers", "extract.max_buffered_features_mb", "extract.pack_mb",
    "extract.item_timeout_s", "extract.max_file_gb", "extract.max_duration_h",
    # Extra columns; texts are the same.
    "extract.measures",
}  # fmt: skip
# Sections read by `result_settings`; each key has a default.
_RESULT_SECTIONS = ("model", "extract", "decoding", "align", "classification", "speakers")


class FolderContents(StrEnum):
    """Contents of an output folder when a run starts."""

    nothing = "nothing"
    same = "same"  # results of this run's fingerprint
    mixed = "mixed"  # results of another fingerprint, to which this run adds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A started run."""

    run_id: str
    fingerprint: str
    started_at: str  # before the listing
    continues: bool  # whether earlier runs with this fingerprint left results


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that change results, flat, by their names in the YAML."""
    classifies = config.pipeline == CLASSIFY_AUDIO
    flat: dict[str, Any] = {"model.compute_type": config.model.compute_type}
    for section in ("extract", "classification" if classifies else "decoding"):
        settings = getattr(config, section).model_dump(mode="json")
        flat |= {f"{section}.{key}": value for key, value in settings.items()}
    if classifies:
        flat["pipeline"] = config.pipeline
    aligner = config.align.model
    flat["align.model"] = None if aligner is None else full_name(aligner)
    # Excluding limits: turns are recomputed from the same voices.
    wanted = config.speakers.wanted
    flat |= {"speakers": wanted, "speakers.model": config.speakers.model if wanted else None}
    return {key: flat[key] for key in sorted(flat) if key not in _RESOURCE_KEYS}


def fingerprint(config: RunConfig, model_revision: str) -> str:
    """Return a hash of all that changes results: settings and weights; not source or resources."""
    settings = json.dumps(result_settings(config), sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}-{model_revision}"


def check_fingerprint(
    store: OutputStore, config: RunConfig, fingerprint: str, *, redo: bool = False
) -> FolderContents:
    """Return which results the folder holds.

    Results of another fingerprint are allowed for reprocessing.
    """
    stored = store.read_json(FINGERPRINT_NAME)
    # A run over no recordings leaves a table without rows.
    has_results = any(rows.num_rows for rows in store.outcomes(["part"]))
    if stored is None:
        if has_results:
            raise ConfigError(
                f"beginning a run in {redact_uri(store.uri)}: found results without "
                f"{FINGERPRINT_NAME}, expected an empty folder or one of this program; choose "
                "another output.uri"
            )
        return FolderContents.nothing
    if not has_results:
        return FolderContents.nothing
    changes = _changes(stored, config, fingerprint)
    if not changes:
        return FolderContents.same
    # A folder holds either segments or labels, and compares voices of one network.
    apart = [change for change in changes if change.startswith(("pipeline: ", "speakers.model: "))]
    apart = [change for change in apart if "null" not in change]
    if redo and not apart:
        return FolderContents.mixed
    redo_advice = "" if apart else "replace them by --redo all, "
    raise ConfigError(
        f"beginning a run in {redact_uri(store.uri)}: found results of other settings "
        f"({', '.join(apart if redo else changes)}), expected the same; restore these, "
        f"{redo_advice}or choose another output.uri"
    )


def _changes(stored: dict[str, Any], config: RunConfig, fingerprint: str) -> list[str]:
    """Return the settings and weights that differ from those of a folder's results."""
    # A version without a setting behaved like the setting's default.
    sections = {name: type(getattr(config, name))() for name in _RESULT_SECTIONS}
    usual = result_settings(config.model_copy(update=sections))
    new = result_settings(config)
    pipelines = [
        settings.get("pipeline", "transcribe_corpus") for settings in (stored["settings"], new)
    ]
    if pipelines[0] != pipelines[1]:
        return [f"pipeline: was {pipelines[0]}, now {pipelines[1]}"]
    old: dict[str, Any] = usual | stored["settings"]
    changes = [
        f"{key}: was {json.dumps(old.get(key))}, "
        + (f"now {json.dumps(new[key])}" if key in new else "which this version does not have")
        for key in sorted({*old, *new} - _RESOURCE_KEYS)
        if key not in new or old.get(key) != new[key]
    ]
    revisions = [name.partition("-")[2] for name in (stored["fingerprint"], fingerprint)]
    if revisions[0] != revisions[1]:
        changes.append(f"model weights: were {revisions[0]}, now {revisions[1]}")
    return changes


def new_run_id() -> str:
    """Return a unique run ID; IDs sort by start time."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def begin_run(
    store: OutputStore,
    config: RunConfig,
    fingerprint: str,
    *,
    run_id: str | None = None,
    redo: bool = False,
    started: datetime.datetime | None = None,
    listing: Iterable[pa.RecordBatch] = (),
    family: str | None = None,
) -> RunRecord:
    """Start or continue a run in an output folder, removing `_SUCCESS`.

    `started` defaults to now; it is earlier if the run listed and planned before. `listing`: FILES
    batches, to find the folders of a manifest's recordings; `family` is the model's.
    """
    earlier = check_fingerprint(store, config, fingerprint, redo=redo)
    if (
        earlier is FolderContents.same
    ):  # fingerprint as stored, possibly by a version with fewer settings
        fingerprint = (store.read_json(FINGERPRINT_NAME) or {})["fingerprint"]
    started = started or datetime.datetime.now(datetime.UTC)
    run = RunRecord(
        run_id=run_id or new_run_id(),
        fingerprint=fingerprint,
        started_at=started.isoformat(timespec="milliseconds"),
        continues=earlier in (FolderContents.same, FolderContents.mixed),
    )
    store.remove(SUCCESS_NAME)
    safe = safe_config(config)
    store.write_json(CONFIG_NAME, safe)
    source = SourceSettings.model_validate_json(json.dumps(safe["source"]))
    record_sources(store, source, listing)
    store.write_json(
        FINGERPRINT_NAME,
        {"fingerprint": fingerprint, "settings": result_settings(config), "family": family},
    )
    return run
