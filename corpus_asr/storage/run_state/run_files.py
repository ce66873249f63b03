"""The JSON files of a run, and how it begins: progress, calibration, settings, fingerprint."""

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

from corpus_asr.activity import Activity, Estimate, FailureCount, clock_time, in_hours, rtfx
from corpus_asr.confidence import FEATURES, ConfidenceModel
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig, SourceSettings
from corpus_asr.config.storage_options import NO_OPTIONS, StorageOptions
from corpus_asr.errors import ConfigError
from corpus_asr.json_values import parsed
from corpus_asr.logs import event
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.own_sources import (
    OWN_SOURCES_FOLDER,
    read_own_sources,
    record_sources,
)
from corpus_asr.storage.run_state.run_tables import REDO_NAME
from corpus_asr.storage.run_state.tables import (
    COMMITS_FOLDER,
    DUPLICATES_FOLDER,
    FINISHED_FOLDERS,
    HOOKS_FOLDER,
    RECORDINGS_FOLDER,
    SPEAKERS_FOLDER,
    TABLES_NAME,
    VOICES_FOLDER,
    OutputStore,
)
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE, StoreOptions
from corpus_asr.storage.stores.host_allowlist import WEB, FileRules, HostRules, host_of
from corpus_asr.storage.stores.uri import (
    normalize,
    public,
    redact_uri,
    scheme_of,
    without_secrets,
)
from corpus_asr.units import counted

logger = logging.getLogger(__name__)

PROGRESS_NAME = "_run/progress.json"
EVERY_S = 15.0

RUNNING, TRANSCRIBED, STOPPED = "running", "transcribed", "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was done by one moment of a run; all of it counted from the run's beginning."""

    elapsed_s: float
    audio_s: float
    audio_done_s: float
    files: int
    failed: int  # these four: as in `Standing`
    extract_s: float
    extract_alive_s: float
    engine_s: float
    transcribe_alive_s: float  # these four: as in `Activity`


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is; `_s` are seconds, other counts are recordings that were left to do."""

    elapsed_s: float
    """Wall time since the run began, listing and the start of Ray included."""
    planned: int
    files: int
    """Of the planned, those whose last part is committed."""
    failed: int
    audio_s: float
    """Audio committed."""
    rtfx: float
    """`audio_s` per second of `elapsed_s`."""
    audio_done_s: float = 0.0
    """Audio that is through the engines, committed or not: what the estimates go by."""
    audio_expected_s: float | None = None
    """Estimate of the audio of all planned recordings; null without a ground for one."""
    audio_expected_range_s: tuple[float, float] | None = None
    """What holds it about eight times in ten; so for `eta_range_s`."""
    eta_s: float | None
    """Estimate of the time until all is transcribed; null without a ground for one."""
    eta_range_s: tuple[float, float] | None = None
    extract: str = ""
    """What extraction did in the last seconds: busy, blocked, idle ..."""
    transcribe: str = ""
    """What the engines did in the last seconds."""

    @property
    def remaining(self) -> int:
        """Recordings that are neither done nor failed."""
        return max(0, self.planned - self.files)

    @property
    def audio_expected(self) -> Estimate | None:
        """The audio of all planned recordings, in seconds."""
        return _estimate(self.audio_expected_s, self.audio_expected_range_s)

    @property
    def eta(self) -> Estimate | None:
        """The time that is left, in seconds."""
        return _estimate(self.eta_s, self.eta_range_s)

    @property
    def share_done(self) -> float | None:
        """Of the expected audio, what is through the engines; None without an estimate."""
        if not self.remaining:
            return 1.0
        if not self.audio_expected_s:
            return None
        # All of it is through before the last of it is committed.
        return min(0.99, self.audio_done_s / self.audio_expected_s)

    def words(self) -> dict[str, str]:
        """Return what there is to say of it, by what it is about."""
        share, eta, expected_s = self.share_done, self.eta, self.audio_expected_s
        unit, (done, expected) = in_hours(self.audio_done_s, expected_s or 0.0)
        audio = f"{done} {unit} of audio"
        if share is not None and expected_s is not None:
            audio = f"{share:.0%}, {done} of {expected} {unit}"
        return {
            "files": f"{self.files:,} of {counted(self.planned, 'file')}, {self.failed:,} failed",
            "audio": audio,
            # Before the first commit it would look as if nothing went on.
            "speed": f"RTFx {self.rtfx:,.1f}" if self.audio_s else "RTFx unknown",
            "time": f"elapsed {clock_time(self.elapsed_s)}, "
            f"ETA {'unknown' if eta is None else eta.clock_words()}",
            "stages": f"extract: {self.extract}, transcribe: {self.transcribe}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Standing):
    """A run at one moment: `_run/progress.json`; times of day are the driver's, in ISO 8601."""

    run_id: str
    state: str
    """`transcribed`: the tables are being finished; `stopped`: it ended before all is committed."""
    started_at: str
    written_at: str
    host: str
    pid: int
    listed: int
    done_before: int
    """Of the listed recordings, those that earlier runs had committed."""
    planned_bytes: int
    parts: int
    """Parts committed."""
    parts_retried: int
    """Parts that were tried more than once because a worker died."""
    last_commit_at: str | None
    extract_workers: int
    transcribe_workers: int
    failures: tuple[FailureCount, ...]
    activity: Activity
    workers_out: tuple[str, ...] = ()
    """Workers that were taken out of work: device, machine and error of each."""
    history: tuple[Moment, ...] = ()
    """How it came to this: moments about evenly spaced, the last of them this one."""

    @property
    def parts_uncommitted(self) -> int:
        """Parts with a result that wait to be committed; those without speech are not seen."""
        return max(0, self.activity.parts_transcribed - self.parts)

    def after(self, speed: "Speed") -> "Snapshot":
        """Return it with the figures of the whole run, once that has finished."""
        return replace(self, audio_s=speed.audio_s, elapsed_s=speed.wall_s, rtfx=speed.rtfx)


def _estimate(value: float | None, between: tuple[float, float] | None) -> Estimate | None:
    return None if value is None or between is None else Estimate(value, *between)


def write_snapshot(store: OutputStore, snapshot: Snapshot) -> None:
    """Replace the output folder's snapshot."""
    store.write_json(PROGRESS_NAME, asdict(snapshot))


def read_snapshot(store: OutputStore) -> Snapshot | None:
    """Return the last snapshot; None where there is none, or one of another version."""
    try:
        snapshot: Snapshot = parsed(Snapshot, store.read_json(PROGRESS_NAME))
    except ValueError:
        return None
    return snapshot


@dataclass(frozen=True, slots=True)
class Speed:
    """What a finished run did in which time; the one place that every figure of it comes from."""

    audio_s: float
    """Audio that it committed."""
    wall_s: float
    """From before it listed anything until its tables were finished."""

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second."""
        return rtfx(self.audio_s, self.wall_s)


def speed_of(run: Mapping[str, Any]) -> Speed:
    """Return the speed of the run that a run.json is of."""
    started, finished = (
        datetime.datetime.fromisoformat(run[key]) for key in ("started_at", "finished_at")
    )
    audio_s = run.get("committed", {}).get("audio_s", 0.0)
    # A clock that was set back in between would make it negative.
    return Speed(audio_s, max(0.0, (finished - started).total_seconds()))


CALIBRATION_NAME: Final = "calibration.json"


def write_calibration(
    store: OutputStore, model: ConfidenceModel, *, fitted: Mapping[str, Any]
) -> str:
    """Write a calibration into a run's output folder, for later runs there; return its address."""
    weights = dict(zip(FEATURES, model.weights, strict=True))
    values = asdict(model) | {"weights": weights, "fitted": dict(fitted)}
    store.write_json(CALIBRATION_NAME, values)
    return store.address(CALIBRATION_NAME)


KEPT_RUN_FOLDER: Final = f"{RECORDS_FOLDER}/run"
"""Where `transcribe -o` keeps what it wrote as a run, in the folder of its files."""


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
        ConfigError: no folder of a run, with advice.
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
    """Return the calibration at a URI, for models of a family; None: of any.

    Raises:
        ConfigError: there is none, or it was fitted to another family.
    """
    folder, _, name = address.rpartition("/")
    if not name.endswith(".json"):
        folder, name = address, CALIBRATION_NAME
    store = OutputStore(folder or ".", options=options)
    found = store.read_json(name)
    if found is None:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found no such file; write "
            "it with `corpus-asr evaluate OUTPUT_URI --references MANIFEST --calibrate`, or "
            "correct model.calibration"
        )
    try:
        if set(found["weights"]) != set(FEATURES):
            raise ValueError(f"weights of {', '.join(found['weights'])}")
        weights = [found["weights"][name] for name in FEATURES]
        calibration: ConfidenceModel = parsed(ConfidenceModel, found | {"weights": weights})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found {error!r}, expected "
            f"name, model_revision, offset and weights of {', '.join(FEATURES)}; calibrate again "
            "with `corpus-asr evaluate --calibrate`"
        ) from error
    if None not in (family, calibration.family) and calibration.family != family:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found {calibration.name} "
            f"of the family {calibration.family}, expected one of {family}: probabilities of two "
            "families do not mean the same; fit one to a run of this model with `corpus-asr "
            "evaluate --calibrate`, and name that in model.calibration"
        )
    return calibration


def calibration_for(
    config: RunConfig, store: OutputStore, *, model_revision: str, family: str | None = None
) -> ConfidenceModel | None:
    """Return the calibration of a job: the one that it names, else that of its output folder."""
    address = config.model.calibration
    if address is None and not store.exists(CALIBRATION_NAME):
        return None
    found = read_calibration(address or store.uri, store.options, family=family)
    # Used all the same, since it may be meant; the log says for which weights it was fitted.
    if found.model_revision not in (None, model_revision):
        event(
            logger, logging.WARNING, "calibration_of_another_model", calibration=found.name,
            fitted_for=found.model_revision, used_for=model_revision,
        )  # fmt: skip
    return found


PACKAGES = (
    "corpus-asr", "torch", "ray", "av", "numpy", "pyarrow", "fsspec", "s3fs", "huggingface_hub",
    "tokenizers", "onnxruntime", "silero-vad",
)  # fmt: skip


def safe_config(config: RunConfig) -> dict[str, Any]:
    """Return the resolved configuration: models by their full names, addresses without secrets."""
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


def source_options(
    store: OutputStore, *, allowed: Iterable[str] = (), storage: StorageOptions = NO_OPTIONS
) -> StoreOptions:
    """Return how a run reached its recordings, which its tables name.

    Of this machine and the hosts that only it reaches, what this user's own runs recorded may be
    read, and what lies below the `allowed` URIs: settings and tables may come from elsewhere. So
    only this user's own record says at which endpoint and with which options; those that are
    secret are in none, and stand in `storage`.
    """
    allowed = tuple(map(normalize, allowed))
    own = read_own_sources(store)
    hosts = HostRules(trusted_names=False) if own is None else HostRules.of(own.source)
    named = tuple(host_of(uri) for uri in allowed if scheme_of(uri) in WEB)
    return StoreOptions(
        storage=storage.over(NO_OPTIONS if own is None else own.source.bound_options.public()),
        hosts=replace(hosts, own_hosts=(*hosts.own_hosts, *named)),
        files=FileRules(folders=(*allowed, *(own.folders if own is not None else ()))),
    )


def code_versions() -> dict[str, str]:
    """Return the versions of everything that takes part in a run and is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


FINGERPRINT_NAME = "_run/fingerprint.json"
CONFIG_NAME = "_run/config.json"
RUN_NAME = "run.json"
SUCCESS_NAME = "_SUCCESS"
PAGE_NAME = "report.html"
EVALUATION_NAME = "evaluation.json"
SUMMARIES_FOLDER = "nights"


def failures_name(page: str) -> str:
    """Return the name of the CSV file of all failures that lies next to a page."""
    return f"{page.removesuffix('.html')}.failures.csv"


ARCHIVE_NOTE_NAME = "_run/aside.json"
EARLIER_FOLDER = "_earlier"  # readers of tables pass over it
_ARCHIVED_NAMES = (
    RUN_NAME, PAGE_NAME, failures_name(PAGE_NAME), EVALUATION_NAME, CALIBRATION_NAME,
    CONFIG_NAME, FINGERPRINT_NAME, REDO_NAME, TABLES_NAME,
)  # fmt: skip
_ARCHIVED_FOLDERS = (
    OWN_SOURCES_FOLDER, RECORDINGS_FOLDER, VOICES_FOLDER, SPEAKERS_FOLDER, DUPLICATES_FOLDER,
    HOOKS_FOLDER,
    *FINISHED_FOLDERS, COMMITS_FOLDER,
)  # fmt: skip

# How the work is spread and bounded, and tables besides; transcripts do not depend on it.
_RESOURCE_KEYS = {
    "extract.workers", "extract.max_buffered_features_mb", "extract.pack_mb",
    "extract.item_timeout_s", "extract.max_file_gb", "extract.max_duration_h",
    # Columns next to texts that are the same.
    "extract.measures",
}  # fmt: skip
# What `result_settings` reads; each has a default in every key.
_RESULT_SECTIONS = ("model", "extract", "decoding", "align", "classification", "speakers")


class Earlier(StrEnum):
    """What an output folder holds when a run begins."""

    nothing = "nothing"
    same = "same"  # results of this run's fingerprint
    other = "other"  # results of another one, to be put aside
    mixed = "mixed"  # results of another one, to which those of this run are added


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that has started."""

    run_id: str
    fingerprint: str
    started_at: str  # before it listed anything
    continues: bool  # whether earlier runs with the same fingerprint left results in this folder


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that change results, flat and by their names in the YAML."""
    classifies = config.pipeline == CLASSIFY_AUDIO
    flat: dict[str, Any] = {"model.compute_type": config.model.compute_type}
    for section in ("extract", "classification" if classifies else "decoding"):
        settings = getattr(config, section).model_dump(mode="json")
        flat |= {f"{section}.{key}": value for key, value in settings.items()}
    if classifies:
        flat["pipeline"] = config.pipeline
    aligner = config.align.model
    flat["align.model"] = None if aligner is None else full_name(aligner)
    # Their bounds are none of these: turns are made again of the same voices.
    wanted = config.speakers.wanted
    flat |= {"speakers": wanted, "speakers.model": config.speakers.model if wanted else None}
    return {key: flat[key] for key in sorted(flat) if key not in _RESOURCE_KEYS}


def fingerprint(config: RunConfig, model_revision: str) -> str:
    """Name everything that changes results: settings, then weights; not source or resources."""
    settings = json.dumps(result_settings(config), sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}-{model_revision}"


def check_fingerprint(
    store: OutputStore,
    config: RunConfig,
    fingerprint: str,
    *,
    new_run: bool = False,
    redo: bool = False,
) -> Earlier:
    """Tell what results the folder holds.

    Those of another fingerprint may be there for a new run, or where some are done again.
    """
    stored = store.read_json(FINGERPRINT_NAME)
    moving = store.read_json(ARCHIVE_NOTE_NAME)
    if moving is not None:
        if new_run or moving["fingerprint"] == fingerprint:
            return Earlier.other
        raise ConfigError(
            f"beginning a run in {redact_uri(store.uri)}: found {ARCHIVE_NOTE_NAME}, expected "
            "none: a --new-run with other settings was stopped while it moved the earlier results "
            f"to {moving['folder']}; go on with its settings, or with --new-run and these"
        )
    # A run over no recordings leaves a table without rows.
    has_results = any(rows.num_rows for rows in store.outcomes(["part"]))
    if stored is None:
        if has_results:
            raise ConfigError(
                f"beginning a run in {redact_uri(store.uri)}: found results without "
                f"{FINGERPRINT_NAME}, expected an empty folder or one of this program; choose "
                "another output.uri"
            )
        return Earlier.nothing
    if not has_results:
        return Earlier.nothing
    changes = _changes(stored, config, fingerprint)
    if not changes:
        return Earlier.same
    if new_run:
        return Earlier.other
    # One folder has segments or labels, and compares voices of one network.
    apart = [each for each in changes if each.startswith(("pipeline: ", "speakers.model: "))]
    apart = [each for each in apart if "null" not in each]
    if redo and not apart:
        return Earlier.mixed
    advice = "use these, "
    if not apart:
        advice += "do all again here with --redo all, by which each result stays until its new "
        advice += "one is there, "
    raise ConfigError(
        f"{', '.join(apart if redo else changes)}; beginning a run in {redact_uri(store.uri)}: "
        f"found results made with the old settings; {advice}choose another output.uri, or start "
        f"again here with --new-run, which moves these results to {EARLIER_FOLDER}/"
    )


def _changes(stored: dict[str, Any], config: RunConfig, fingerprint: str) -> list[str]:
    """Return the settings and weights that are not what the results of a folder were made with."""
    # A version that did not have a setting did what its default does now.
    sections = {name: type(getattr(config, name))() for name in _RESULT_SECTIONS}
    usual = result_settings(config.model_copy(update=sections))
    new = result_settings(config)
    pipelines = [each.get("pipeline", "transcribe_corpus") for each in (stored["settings"], new)]
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
    """Return an identity no other run has; identities sort by the time runs began."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def begin_run(
    store: OutputStore,
    config: RunConfig,
    fingerprint: str,
    *,
    run_id: str | None = None,
    new_run: bool = False,
    redo: bool = False,
    started: datetime.datetime | None = None,
    listing: Iterable[pa.RecordBatch] = (),
    family: str | None = None,
) -> Run:
    """Begin a run in an output folder, or continue the ones before it; no `_SUCCESS` meanwhile.

    It `started` now, if it did not list and plan before; `listing` are FILES batches of what it
    listed, by which the folders of a manifest's recordings are known; `family` is the model's.
    """
    earlier = check_fingerprint(store, config, fingerprint, new_run=new_run, redo=redo)
    if earlier is Earlier.same:  # named as it began, also by a version with fewer settings
        fingerprint = (store.read_json(FINGERPRINT_NAME) or {})["fingerprint"]
    started = started or datetime.datetime.now(datetime.UTC)
    run = Run(
        run_id=run_id or new_run_id(),
        fingerprint=fingerprint,
        started_at=started.isoformat(timespec="milliseconds"),
        continues=earlier in (Earlier.same, Earlier.mixed),
    )
    if earlier is Earlier.other:
        archive_previous_results(store, run)
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


def archive_previous_results(store: OutputStore, run: Run) -> None:
    """Move an output folder's results below `_earlier/`, or go on with a move that was started."""
    # What is to be moved is noted before anything is, and the note goes last: killed in between,
    # the next call goes on. Nothing is ever removed.
    note = store.read_json(ARCHIVE_NOTE_NAME) or {
        "folder": f"{EARLIER_FOLDER}/before-{run.run_id}",
        "finished": store.exists(SUCCESS_NAME),
    }
    store.write_json(ARCHIVE_NOTE_NAME, {**note, "fingerprint": run.fingerprint})
    # The mark of a finished run is the first to go here and the last to come there.
    store.remove(SUCCESS_NAME)
    for folder in _ARCHIVED_FOLDERS:
        store.move_all(list(store.all_names(folder)), note["folder"])
    store.move_all(filter(store.exists, _ARCHIVED_NAMES), note["folder"])
    if note["finished"]:
        store.write_bytes(f"{note['folder']}/{SUCCESS_NAME}", b"")
    store.remove(ARCHIVE_NOTE_NAME)
    logger.info("archived folder=%s", note["folder"])
