"""The JSON files of a run: its progress, its calibration, its settings and code versions."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from typing import Any, Final

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.confidence import FEATURES, ConfidenceModel
from corpus_asr.config.run import RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.logs import event
from corpus_asr.storage.model_files import full_name
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import public, redact_uri, without_secrets

PROGRESS_NAME = "_run/progress.json"
EVERY_S = 15.0

RUNNING, TRANSCRIBED, STOPPED = "running", "transcribed", "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was done by one moment of a run; all of it counted from the run's beginning."""

    elapsed_s: float
    audio_s: float
    files: int
    failed: int
    extract_s: float
    extract_alive_s: float
    engine_s: float
    transcribe_alive_s: float
    """These four: as in `Activity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run at one moment; times are ISO 8601 by the driver's clock."""

    run_id: str
    state: str
    """`running`; `transcribed`: all is committed, the tables are being finished; `stopped`: it
    ended before all was committed."""
    started_at: str
    written_at: str
    elapsed_s: float
    host: str
    pid: int
    listed: int
    """Recordings listed."""
    done_before: int
    """Of these, those that earlier runs had committed."""
    planned: int
    """Those this run has to do."""
    planned_bytes: int
    files: int
    """Of the planned, those whose last part is committed; those of the other counts, too."""
    failed: int
    parts: int
    parts_retried: int
    """Parts that were tried more than once because a worker died."""
    audio_s: float
    speed: float
    """Hours of audio committed per hour."""
    time_left_s: float | None
    last_commit_at: str | None
    extract_workers: int
    transcribe_workers: int
    failures: tuple[FailureCount, ...]
    activity: Activity
    history: tuple[Moment, ...] = ()
    """How it came to this: moments about evenly spaced, the last of them this one."""

    @property
    def left(self) -> int:
        """Recordings that are neither done nor failed."""
        return max(0, self.planned - self.files)

    @property
    def parts_uncommitted(self) -> int:
        """Parts with a result that wait to be committed; those without speech are not seen."""
        return max(0, self.activity.parts_transcribed - self.parts)


def write_snapshot(store: OutputStore, snapshot: Snapshot) -> None:
    """Replace the output folder's snapshot."""
    store.write_json(PROGRESS_NAME, asdict(snapshot))


def read_snapshot(store: OutputStore) -> Snapshot | None:
    """Return the last snapshot; None where there is none, or one of another version."""
    return snapshot_from(store.read_json(PROGRESS_NAME))


def snapshot_from(data: Any) -> Snapshot | None:
    """Return what JSON holds; None where something is missing."""
    try:
        values = _values(Snapshot, data)
        values["history"] = tuple(Moment(**_values(Moment, one)) for one in values["history"])
        values["activity"] = Activity.from_data(values["activity"])
        values["failures"] = tuple(
            FailureCount(**{**one, "examples": tuple(one["examples"])})
            for one in values["failures"]
        )
    except (KeyError, TypeError, AttributeError):
        return None
    return Snapshot(**values)


def _values(kind: type, data: Any) -> dict[str, Any]:
    """Return the values of a dataclass's fields; those with a default may be missing."""
    return {
        field.name: data[field.name]
        if field.default is MISSING
        else data.get(field.name, field.default)
        for field in fields(kind)
    }


CALIBRATION_NAME: Final = "calibration.json"
_LOG = logging.getLogger(__name__)


def write_calibration(
    store: OutputStore, model: ConfidenceModel, *, fitted: Mapping[str, Any]
) -> str:
    """Write a calibration into a run's output folder; later runs there use it.

    Returns:
        Its address.
    """
    weights = dict(zip(FEATURES, model.weights, strict=True))
    store.write_json(
        CALIBRATION_NAME,
        {
            "name": model.name,
            "model_revision": model.model_revision,
            "offset": model.offset,
            "weights": weights,
            "fitted": dict(fitted),
        },
    )
    return store.address(CALIBRATION_NAME)


def read_calibration(address: str, *, endpoint_url: str | None = None) -> ConfidenceModel:
    """Return the calibration at an address.

    Raises:
        ConfigError: there is none, or it is of another program or version.
        CorpusAsrError: it is no JSON.
    """
    folder, _, name = address.rpartition("/")
    if not name.endswith(".json"):
        folder, name = address, CALIBRATION_NAME
    store = OutputStore(folder or ".", endpoint_url=endpoint_url)
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
        return ConfidenceModel(
            name=str(found["name"]),
            offset=float(found["offset"]),
            weights=tuple(float(found["weights"][name]) for name in FEATURES),
            model_revision=found["model_revision"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the calibration {redact_uri(store.address(name))}: found {error!r}, expected "
            f"name, model_revision, offset and weights of {', '.join(FEATURES)}; calibrate again "
            "with `corpus-asr evaluate --calibrate`"
        ) from error


def calibration_for(
    config: RunConfig, store: OutputStore, *, model_revision: str
) -> ConfidenceModel | None:
    """Return the calibration of a job: the one that it names, else that of its output folder.

    One that was fitted for other weights is used, with a warning in the log.

    Returns:
        It, for the weights of `model.checkpoint`; None where there is none.

    Raises:
        ConfigError: the one that the job names does not exist or cannot be used.
    """
    address = config.model.calibration
    if address is None and not store.exists(CALIBRATION_NAME):
        return None
    found = read_calibration(address or store.uri, endpoint_url=store.options.endpoint_url)
    if found.model_revision not in (None, model_revision):
        event(
            _LOG, logging.WARNING, "calibration_of_another_model", calibration=found.name,
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
    """Return the versions of everything that takes part in a run and is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
