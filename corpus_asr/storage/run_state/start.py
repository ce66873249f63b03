"""How a run starts: the fingerprint of its results, and earlier results archived."""

import datetime
import hashlib
import json
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from corpus_asr.config.decoding import Settings
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.run_files import CALIBRATION_NAME, safe_config
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    PART_ROWS_FOLDERS,
    READERS,
    RECORDINGS_FOLDER,
    OutputStore,
)
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri

logger = logging.getLogger(__name__)

FINGERPRINT_NAME = "_run/fingerprint.json"
CONFIG_NAME = "_run/config.json"
RUN_NAME = "run.json"
SUCCESS_NAME = "_SUCCESS"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
ARCHIVE_NOTE_NAME = "_run/aside.json"
EARLIER_FOLDER = "_earlier"  # readers of tables pass over it
_ARCHIVED_NAMES = (
    RUN_NAME, REPORT_NAME, PAGE_NAME, CALIBRATION_NAME, CONFIG_NAME, FINGERPRINT_NAME,
)  # fmt: skip
_TABLES = (RECORDINGS_FOLDER, *PART_ROWS_FOLDERS, OUTCOMES_FOLDER)

# How the work is spread and bounded; results do not depend on it.
_RESOURCE_KEYS = {
    f"extract.{key}"
    for key in ("workers", "ahead_mb", "pack_mb", "item_timeout_s", "max_file_gb", "max_duration_h")
}


class Earlier(StrEnum):
    """What an output folder holds when a run begins."""

    nothing = "nothing"
    same = "same"
    """Results of this run's fingerprint."""
    other = "other"
    """Results of another one, to be put aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that has begun."""

    run_id: str
    fingerprint: str
    started_at: str
    continues: bool
    """Whether earlier runs with the same fingerprint left results in this folder."""


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that change results, flat and by their names in the YAML."""
    sections: dict[str, Settings] = {"extract": config.extract}
    if config.pipeline == CLASSIFY_AUDIO:
        sections["classification"] = config.classification
    else:
        sections["decoding"] = config.decoding
    flat = {
        f"{section}.{key}": value
        for section, settings in sections.items()
        for key, value in settings.model_dump(mode="json").items()
    }
    flat["model.dtype"] = config.model.dtype
    if config.pipeline == CLASSIFY_AUDIO:
        flat["pipeline"] = config.pipeline
    return {key: flat[key] for key in sorted(flat) if key not in _RESOURCE_KEYS}


def fingerprint(config: RunConfig, model_revision: str) -> str:
    """Name everything that changes results: settings, then weights; not source or resources."""
    settings = json.dumps(result_settings(config), sort_keys=True)
    return f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}-{model_revision}"


def check_fingerprint(
    store: OutputStore, config: RunConfig, fingerprint: str, *, new_run: bool = False
) -> Earlier:
    """Tell what results the folder holds; those of another fingerprint only for a new run.

    Raises:
        ConfigError: it holds results of another; the message shows what differs.
    """
    stored = store.read_json(FINGERPRINT_NAME)
    moving = interrupted(store)
    if moving is not None:
        if new_run or moving["fingerprint"] == fingerprint:
            return Earlier.other
        raise ConfigError(
            f"beginning a run in {redact_uri(store.uri)}: found {ARCHIVE_NOTE_NAME}, expected "
            "none: a --new-run with other settings was stopped while it moved the earlier results "
            f"to {moving['folder']}; go on with its settings, or with --new-run and these"
        )
    has_results = bool(store.names(OUTCOMES_FOLDER))
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
    if stored["fingerprint"] == fingerprint:
        return Earlier.same
    if new_run:
        return Earlier.other
    changes = _changes(stored, config, fingerprint)
    raise ConfigError(
        f"beginning a run in {redact_uri(store.uri)}: found results made with other settings "
        f"(fingerprint {stored['fingerprint']}, expected {fingerprint}); {changes}; use the old "
        "settings, choose another output.uri, or begin anew here with --new-run, which moves these "
        f"results to {EARLIER_FOLDER}/"
    )


def _changes(stored: dict[str, Any], config: RunConfig, fingerprint: str) -> str:
    old, new = stored["settings"], result_settings(config)
    changes = [
        f"{key}: was {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    revisions = [name.partition("-")[2] for name in (stored["fingerprint"], fingerprint)]
    if revisions[0] != revisions[1]:
        changes.append(f"model weights: were {revisions[0]}, now {revisions[1]}")
    return ", ".join(changes)


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
) -> Run:
    """Begin a run in an output folder, or continue the ones before it.

    Until the finish, the folder has no `_SUCCESS`.

    Raises:
        ConfigError: the folder holds results that must not be mixed with this run's.
    """
    earlier = check_fingerprint(store, config, fingerprint, new_run=new_run)
    now = datetime.datetime.now(datetime.UTC)
    run = Run(
        run_id=run_id or new_run_id(),
        fingerprint=fingerprint,
        started_at=now.isoformat(timespec="seconds"),
        continues=earlier is Earlier.same,
    )
    if earlier is Earlier.other:
        archive_previous_results(store, run)
    store.remove(SUCCESS_NAME)
    store.write_json(CONFIG_NAME, safe_config(config))
    store.write_json(
        FINGERPRINT_NAME, {"fingerprint": fingerprint, "settings": result_settings(config)}
    )
    return run


def interrupted(store: OutputStore) -> dict[str, Any] | None:
    """Return the note of a move that was begun and not completed: `folder`, `fingerprint`."""
    note: dict[str, Any] | None = store.read_json(ARCHIVE_NOTE_NAME)
    return note


def archive_previous_results(store: OutputStore, run: Run) -> None:
    """Move an output folder's results below `_earlier/`, or go on with a move that was begun."""
    # What is to be moved is noted before anything is, and the note goes last: killed in between,
    # the next call goes on. Nothing is ever removed.
    note = interrupted(store) or {
        "folder": f"{EARLIER_FOLDER}/before-{run.run_id}",
        "finished": store.exists(SUCCESS_NAME),
    }
    store.write_json(ARCHIVE_NOTE_NAME, {**note, "fingerprint": run.fingerprint})
    # The mark of a finished run is the first to go here and the last to come there.
    store.remove(SUCCESS_NAME)

    def move(name: str) -> None:
        source, target = store.address(name), store.address(f"{note['folder']}/{name}")
        filesystem.move(source, target, store.options)

    with ThreadPoolExecutor(READERS, thread_name_prefix="archive") as pool:
        for table in _TABLES:
            list(pool.map(move, list(store.all_names(table))))
    for name in _ARCHIVED_NAMES:
        if store.exists(name):
            move(name)
    if note["finished"]:
        store.write_bytes(f"{note['folder']}/{SUCCESS_NAME}", b"")
    store.remove(ARCHIVE_NOTE_NAME)
    logger.info("archived folder=%s", note["folder"])
