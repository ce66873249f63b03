"""The end of a run: from what was committed to an output folder that is exact and complete.

In: commits, and the listing they were to cover. Out: tables in which every row counts (see
`settlement.py`), `run.json`, and `_SUCCESS` if nothing is left. Knows nothing of audio or of how
work is spread.
"""

import datetime
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import SCHEMA_VERSION
from corpus_asr.storage.recordings import Totals, write_recordings
from corpus_asr.storage.run_state.compaction import compact
from corpus_asr.storage.run_state.ledger import Ledger, Settlement
from corpus_asr.storage.run_state.plan import retire_plans
from corpus_asr.storage.run_state.start import RUN_NAME, SUCCESS_NAME, Run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.settlement import keep_only, remove_leftovers
from corpus_asr.storage.versions import code_versions, safe_config
from corpus_asr.units import MEBIBYTE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """What a finished run leaves: `listed == ok + no_speech + failed + left`."""

    listed: int
    ok: int
    no_speech: int
    failed: int
    left: int
    """Listed recordings of which not all parts are committed: the run was cut short. Rows that
    the listing should have and has not are among them."""
    recordings: int
    """Rows of the recordings table; those of earlier listings are among them."""
    segments: int
    audio_s: float
    speech_s: float


def finish(
    store: OutputStore,
    run: Run,
    config: RunConfig,
    *,
    model_revision: str,
    listing: Iterable[pa.RecordBatch],
    num_listed: int,
    plan_name: str | None = None,
    extra: dict[str, Any] | None = None,
) -> RunCounts:
    """Make the output folder exact and complete; may be repeated after being killed anywhere.

    Removes what lost (second commits of a part, rows of replaced recordings, outcomes whose
    segments object is gone, orphans), writes the recordings table and `run.json`. If nothing is
    left, small objects are merged before that, and after it older plans and what this one held of
    raw addresses are removed, and `_SUCCESS` is written last. No writer of this run may be at work
    meanwhile.

    Args:
        store: the output folder.
        run: what `begin_run` returned.
        config: the job.
        model_revision: names the weights.
        listing: FILES batches of what the run was to cover (`plan.read_listing`).
        num_listed: how many rows the listing had when it was made; those missing count as left.
        plan_name: the plan that was worked off; None if there was none.
        extra: whatever else belongs in `run.json` (numbers of the plan, hardware).

    Raises:
        FetchError: the store failed beyond its retries; run again.
    """
    store.remove(SUCCESS_NAME)
    settlement = Ledger.load(store).settle(listing)
    keep_only(store, settlement.keep)
    # While something is left, more commits are to come, and their names tell when work was done.
    target_mb = config.output.target_file_mb
    if target_mb is not None and _left(settlement, num_listed) == 0:
        compact(store, target_mb * MEBIBYTE)
    totals = write_recordings(
        store, complete_ids=settlement.complete_ids, listed_ids=settlement.listed_ids
    )
    remove_leftovers(store)
    counts = _counts(settlement, totals, num_listed)
    store.write_json(
        RUN_NAME,
        {
            **asdict(run),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "schema_version": SCHEMA_VERSION,
            "model": safe_config(config)["model"]["checkpoint"],
            "model_revision": model_revision,
            "counts": asdict(counts),
            "versions": code_versions(),
            "config": safe_config(config),
            **(extra or {}),
        },
    )
    if counts.left == 0:
        if plan_name is not None:
            retire_plans(store, plan_name)
        store.write_bytes(SUCCESS_NAME, b"")
    logger.info("finished run_id=%s listed=%d left=%d", run.run_id, counts.listed, counts.left)
    return counts


def _left(settlement: Settlement, num_listed: int) -> int:
    return max(num_listed, settlement.num_listed) - len(settlement.listed_ids)


def _counts(settlement: Settlement, totals: Totals, num_listed: int) -> RunCounts:
    if settlement.num_listed != num_listed:
        logger.warning("listing rows=%d, expected %d", settlement.num_listed, num_listed)
    listed = max(num_listed, settlement.num_listed)
    done = totals.listed_ok + totals.listed_no_speech + totals.listed_failed
    return RunCounts(
        listed=listed,
        ok=totals.listed_ok,
        no_speech=totals.listed_no_speech,
        failed=totals.listed_failed,
        left=listed - done,
        recordings=totals.recordings,
        segments=totals.segments,
        audio_s=totals.audio_s,
        speech_s=totals.speech_s,
    )
