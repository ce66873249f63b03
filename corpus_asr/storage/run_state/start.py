"""How a run begins: the fingerprint of what changes its results, and what it may go on from.

In: a job and its output folder. Out: a run, or why none may begin there. Results of two
fingerprints are never mixed in one folder. Knows nothing of which parts are done (`ledger.py`).
"""

import datetime
import hashlib
import json
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from corpus_asr.config.base import Settings
from corpus_asr.config.run import CLASSIFY_AUDIO, RunConfig
from corpus_asr.errors import ConfigError
from corpus_asr.storage.aside import ASIDE_NAME, EARLIER_FOLDER, interrupted, set_aside
from corpus_asr.storage.calibrations import CALIBRATION_NAME
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore
from corpus_asr.storage.stores.uri import shown
from corpus_asr.storage.versions import safe_config

FINGERPRINT_NAME = "_run/fingerprint.json"
CONFIG_NAME = "_run/config.json"
RUN_NAME = "run.json"
SUCCESS_NAME = "_SUCCESS"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"

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
            f"beginning a run in {shown(store.uri)}: found {ASIDE_NAME}, expected none: a "
            f"--new-run with other settings was stopped while it moved the earlier results to "
            f"{moving['folder']}; go on with its settings, or with --new-run and these"
        )
    has_results = bool(store.names(OUTCOMES_FOLDER))
    if stored is None:
        if has_results:
            raise ConfigError(
                f"beginning a run in {shown(store.uri)}: found results without "
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
        f"beginning a run in {shown(store.uri)}: found results made with other settings "
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

    Args:
        store: the output folder.
        config: the job.
        fingerprint: what changes results, see `fingerprint()`.
        run_id: the run's identity; None makes one.
        new_run: whether results of another fingerprint are put aside.

    Raises:
        ConfigError: the folder holds results that must not be mixed with this run's.
        FetchError: the store does not answer.
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
        set_aside(
            store,
            fingerprint=fingerprint,
            folder=f"{EARLIER_FOLDER}/before-{run.run_id}",
            names=(
                RUN_NAME,
                REPORT_NAME,
                PAGE_NAME,
                CALIBRATION_NAME,
                CONFIG_NAME,
                FINGERPRINT_NAME,
            ),
            mark=SUCCESS_NAME,
        )
    store.remove(SUCCESS_NAME)
    store.write_json(CONFIG_NAME, safe_config(config))
    store.write_json(
        FINGERPRINT_NAME, {"fingerprint": fingerprint, "settings": result_settings(config)}
    )
    return run
