"""From an output folder to a report: reads the tables of a finished, running or stopped run.

In: the address of an output folder. Out: a `Report`. Only the tables and what lies under `_run/`
are read, in bounded batches; nothing is written and nothing of the run has to be alive. Knows how
rows are found and which of them count, not what is counted (`statistics.py`).
"""

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import ConfigError
from corpus_asr.report.balance import RECORDING_COLUMNS
from corpus_asr.report.details import Gatherer
from corpus_asr.report.statistics import (
    COUNTS,
    LABEL_COLUMNS,
    OUTCOME_COLUMNS,
    SEGMENT_COLUMNS,
    Report,
    Statistics,
    as_segments,
    summarise,
)
from corpus_asr.storage.run_state.ledger import Ledger
from corpus_asr.storage.run_state.plan import PLANS_FOLDER
from corpus_asr.storage.run_state.run_files import read_snapshot
from corpus_asr.storage.run_state.start import CONFIG_NAME, FINGERPRINT_NAME, RUN_NAME, SUCCESS_NAME
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    OUTCOMES_FOLDER,
    SEGMENT_ROWS,
    OutputStore,
)
from corpus_asr.storage.stores.uri import redact_uri

_RUN_ID_TIME = "%Y%m%dT%H%M%SZ"  # what a run's identity begins with


def load_report(store: OutputStore, gatherer: Gatherer | None = None) -> Report:
    """Read what a run has left so far.

    Args:
        store: the output folder.
        gatherer: looks at all rows as they are read, where more than counts is wanted.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    names = store.names(OUTCOMES_FOLDER)
    config = store.read_json(CONFIG_NAME)
    if not names and config is None:
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found neither outcomes nor _run/, expected the "
            "output folder of a run; check the address"
        )
    run = store.read_json(RUN_NAME)
    finished = run is not None and store.exists(SUCCESS_NAME)
    listing = _latest_listing(store)
    counts = Ledger.load(store).resolve(_files(store, listing or ())).keep
    statistics = summarise(
        _outcomes(store, names, counts, gatherer),
        _part_rows(store, names, gatherer, pipeline=(config or {}).get("pipeline")),
        None if listing is None else _files(store, listing),
        store.recordings(RECORDING_COLUMNS) if finished else None,
    )
    return _report(store, names, statistics, config=config or {}, run=run if finished else None)


def _report(
    store: OutputStore,
    names: Sequence[str],
    statistics: Statistics,
    *,
    config: dict[str, Any],
    run: dict[str, Any] | None,
) -> Report:
    audio_by_run = dict(statistics.audio_by_run_s)
    if run is not None:
        run_id, model, revision = run["run_id"], run["model"], run["model_revision"]
        started, ended = (
            datetime.datetime.fromisoformat(run[key]) for key in ("started_at", "finished_at")
        )
        wall_s: float | None = (ended - started).total_seconds()
    else:
        run_id = max(audio_by_run, default=None)  # identities begin with their time
        model = config.get("model", {}).get("checkpoint")
        fingerprint = store.read_json(FINGERPRINT_NAME) or {}
        revision = fingerprint.get("fingerprint", "").partition("-")[2] or None
        wall_s = _time_so_far(run_id, names)
    audio_s = audio_by_run.get(run_id, 0.0) if run_id is not None else 0.0
    snapshot = read_snapshot(store)
    return Report(
        uri=redact_uri(store.uri),
        finished=run is not None,
        run_id=run_id,
        model=model,
        model_revision=revision,
        wall_s=wall_s,
        speed=audio_s / wall_s if wall_s and audio_s else None,
        statistics=statistics,
        snapshot=snapshot if snapshot is not None and snapshot.run_id == run_id else None,
    )


def _part_rows(
    store: OutputStore, names: Sequence[str], gatherer: Gatherer | None, *, pipeline: str | None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of these outcomes alone: a running output may have younger ones by now."""
    labels = pipeline == CLASSIFY_AUDIO
    rows = LABEL_ROWS if labels else SEGMENT_ROWS
    columns = LABEL_COLUMNS if labels else SEGMENT_COLUMNS
    schema = pa.schema([rows.schema.field(name) for name in columns])
    named = store.named_segments(names)
    ours = [name for name in named if name.startswith(f"{rows.folder}/")]
    for name, table in store.read_tables(ours, schema):
        for batch in table.to_batches():
            if labels:
                batch = as_segments(batch)
            if gatherer is not None:
                gatherer.part_rows(name, batch["confidence"], batch["recording_id"])
            yield batch


def _time_so_far(run_id: str | None, names: Sequence[str]) -> float | None:
    """Return the time from a run's beginning to the last commit, both told by their names."""
    if run_id is None or not names:
        return None
    made_ns = max(names).rpartition("/")[2].partition("-")[0]
    try:
        begun = datetime.datetime.strptime(run_id.partition("-")[0], _RUN_ID_TIME)
        wall_s = int(made_ns) / 1e9 - begun.replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        # Rows another program wrote, or an identity of another version: the time is not known.
        return None
    return wall_s if wall_s > 0 else None


def _latest_listing(store: OutputStore) -> list[str] | None:
    """Return the objects of the newest complete listing; packs are written after it."""
    newest: str | None = None
    listings: dict[str, list[str]] = {}
    for name in store.names(PLANS_FOLDER):
        plan, _, table = name.removeprefix(f"{PLANS_FOLDER}/").partition("/")
        if table.startswith("listing/"):
            listings.setdefault(plan, []).append(name)
        elif table.startswith("packs/"):
            newest = max(newest or plan, plan)
    return None if newest is None else listings.get(newest, [])


def _files(store: OutputStore, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for name in names:
        yield from store.batches(name)


def _outcomes(
    store: OutputStore,
    names: Sequence[str],
    keep: dict[str, np.ndarray],
    gatherer: Gatherer | None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of these objects, each with whether it counts."""
    position: dict[str, int] = {}
    for batch in store.committed(OUTCOME_COLUMNS, names):
        start = position.get(batch.name, 0)
        stop = position[batch.name] = start + batch.rows.num_rows
        mask = keep.get(batch.name)
        counts = np.ones(stop - start, dtype=bool) if mask is None else mask[start:stop]
        if gatherer is not None:
            gatherer.outcomes(batch.name, batch.rows.filter(pa.array(counts)))
        yield batch.rows.append_column(COUNTS, pa.array(counts))
