"""What a run has to do: the listing without what the ledger covers, packed, largest first.

Only sizes and identities are held for all files; rows pass through in bounded batches. Packs and
listing hold addresses as they were given, signatures included, until the run is finished.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import DEFAULT_OPTIONS, Retry, RunConfig, RunOptions
from corpus_asr.schemas import FILES, PACK_FILE, PACKS
from corpus_asr.storage.listing import list_files
from corpus_asr.storage.run_state.ledger import REMAINING, Ledger, Reason
from corpus_asr.storage.run_state.start import Earlier, check_fingerprint, fingerprint
from corpus_asr.storage.run_state.tables import (
    SUFFIX,
    OutputStore,
    ParquetFile,
    parquet_batches,
    unique_stem,
    without_credentials,
)
from corpus_asr.units import MEBIBYTE

PLANS_FOLDER = "_run/plan"
# Tiny files: seconds of work, behind which opening the first of them from afar does not count ...
MAX_FILES_PER_PACK = 256
# ... but a small corpus is spread over at least this many packs, so that every worker gets some.
MIN_PACKS = 64
MIN_FULL_PACK = 64  # files that are never too many for one pack
MIN_PACK_BYTES = MEBIBYTE
# A file of unknown size counts as this share of a pack.
UNKNOWN_SHARE = 1 / 8
SHARD_ROWS = 100_000  # rows sorted, packed and written at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The numbers of a plan, and where its packs lie."""

    uri: str
    """Address of the folder of PACKS Parquet files; one without rows if there is nothing to do."""
    name: str
    """The plan's folder, relative to the output folder."""
    num_files: int
    """Listed recordings."""
    num_bytes: int
    """Their size, as far as known."""
    num_unknown_sizes: int
    num_done: int
    """Listed recordings that are fully committed already."""
    num_remaining: int
    num_remaining_bytes: int
    num_new: int
    """Of the remaining, those of which nothing is known yet, ..."""
    num_changed: int
    """... those known with other content, ..."""
    num_retried: int
    """... and those that failed; the rest were begun."""
    num_packs: int
    num_excluded: int
    """Left out by `source.exclude`, or lying in the output folder."""
    num_duplicates: int
    """Named more than once; listed once."""


def make_plan(
    config: RunConfig,
    store: OutputStore,
    *,
    model_revision: str | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Plan:
    """List the source, drop what is done, pack the rest and write the packs.

    Args:
        config: the job.
        store: its output folder.
        model_revision: if given, the folder is checked to hold nothing made otherwise.
        options: what is done again; for a new run, results made otherwise are planned for as if
            they were put aside already.

    Raises:
        ConfigError: the source names nothing, or the folder's results must not be mixed with.
    """
    earlier = Earlier.same
    if model_revision is not None:
        name = fingerprint(config, model_revision)
        earlier = check_fingerprint(store, config, name, new_run=options.new_run)
    ledger = (
        Ledger.empty()
        if earlier is Earlier.other
        else Ledger.load(store, leave_alone=options.leave_alone)
    )
    name = f"{PLANS_FOLDER}/{unique_stem()}"
    with tempfile.TemporaryDirectory(prefix="corpus-asr-plan-") as folder:
        drawer = _Drawer(config, store, name, str(Path(folder) / "remaining.parquet"))
        drawer.list_source(ledger, options.retry)
        num_packs = drawer.write_packs(config.extract.pack_mb * MEBIBYTE)
    return Plan(
        uri=store.address(f"{name}/packs"),
        name=name,
        num_files=drawer.num_files,
        num_bytes=drawer.num_bytes,
        num_unknown_sizes=drawer.num_unknown_sizes,
        num_done=drawer.num_files - len(drawer.sizes),
        num_remaining=len(drawer.sizes),
        num_remaining_bytes=int(drawer.sizes[drawer.sizes >= 0].sum()),
        num_new=drawer.reasons[Reason.new],
        num_changed=drawer.reasons[Reason.changed],
        num_retried=drawer.reasons[Reason.retried],
        num_packs=num_packs,
        num_excluded=drawer.num_excluded,
        num_duplicates=drawer.num_duplicates,
    )


def read_packs(store: OutputStore, plan: Plan) -> Iterator[pa.Table]:
    """Yield the plan's packs, one row a time, largest first."""
    for name in store.names(f"{plan.name}/packs"):
        for batch in store.batches(name, batch_rows=256):
            table = pa.Table.from_batches([batch]).cast(PACKS)
            for row in range(table.num_rows):
                yield table.slice(row, 1)


def read_listing(store: OutputStore, plan: Plan) -> Iterator[pa.RecordBatch]:
    """Yield the FILES rows the plan was made from, in listing order."""
    for name in store.names(f"{plan.name}/listing"):
        yield from store.batches(name, batch_rows=SHARD_ROWS)


def retire_plans(store: OutputStore, finished: str) -> None:
    """Remove the plans before one that is worked off, and the raw addresses that one holds.

    Its listing stays, since reports count against it, with public addresses only. Younger plans
    are left alone: they may be in use.
    """
    for name in list(store.all_names(PLANS_FOLDER)):
        # Names begin with the time they were made.
        if "/".join(name.split("/")[:3]) < finished:
            store.remove(name)
    for index, name in enumerate(store.names(f"{finished}/packs")):
        if index == 0:  # an empty one: that there are packs marks the listing as complete
            store.write_table(name, PACKS.empty_table())
        else:
            store.remove(name)
    for name in store.names(f"{finished}/listing"):
        files = store.read_table(name, FILES)
        safe = without_credentials(files)
        if safe is not files:
            store.write_table(name, safe)


class _Drawer:
    """One plan in the making."""

    def __init__(self, config: RunConfig, store: OutputStore, name: str, scratch: str) -> None:
        self._config, self._store, self._name, self._scratch = config, store, name, scratch
        self.num_files = self.num_bytes = self.num_unknown_sizes = 0
        self.num_excluded = self.num_duplicates = 0
        self.sizes = np.empty(0, np.int64)
        """Of the remaining files, in listing order; -1 where unknown."""
        self._ids = np.empty(0, "S16")
        self.reasons: Counter[int] = Counter()
        """How many of the remaining files there are for each `Reason`."""

    def list_source(self, ledger: Ledger, retry: Retry) -> None:
        """Stream the listing into the plan's folder, and what is left of it into the scratch."""
        sizes, ids = [self.sizes], [self._ids]
        scratch = ParquetFile(self._scratch, REMAINING)
        try:
            for shard, files in enumerate(self._shards()):
                self._store.write_table(f"{self._name}/listing/{shard:05d}{SUFFIX}", files)
                self.num_files += files.num_rows
                self.num_bytes += pc.sum(files["size_bytes"]).as_py() or 0
                self.num_unknown_sizes += files["size_bytes"].null_count
                remaining = ledger.remaining(files.combine_chunks().to_batches()[0], retry)
                scratch.append(remaining)
                self.reasons.update(remaining["reason"].to_pylist())
                sizes.append(pc.fill_null(remaining["size_bytes"], -1).to_numpy())
                ids.append(np.array(remaining["recording_id"].to_pylist(), "S16"))
        finally:
            scratch.close()
        self.sizes, self._ids = np.concatenate(sizes), np.concatenate(ids)

    def _shards(self) -> Iterator[pa.Table]:
        listing = list_files(self._config.source)
        waiting: list[pa.RecordBatch] = []
        for batch in listing:
            kept = self._outside_output(batch)
            if kept.num_rows:
                waiting.append(kept)
            if sum(part.num_rows for part in waiting) >= SHARD_ROWS:
                yield pa.Table.from_batches(waiting)
                waiting = []
        if waiting:
            yield pa.Table.from_batches(waiting)
        self.num_excluded += listing.num_excluded
        self.num_duplicates = listing.num_duplicates

    def _outside_output(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Leave out this run's own tables, where the output lies inside the source."""
        inside = pc.starts_with(batch.column("uri"), self._store.uri + "/")
        self.num_excluded += pc.sum(inside).as_py() or 0
        return batch.filter(pc.invert(inside))

    def write_packs(self, pack_bytes: float) -> int:
        """Sort, pack and write shard by shard; return the number of packs."""
        count = len(self.sizes)
        unknown = self.sizes < 0
        weights = np.where(unknown, int(pack_bytes * UNKNOWN_SHARE), self.sizes)
        fair_share = max(MIN_PACK_BYTES, float(weights.sum()) / MIN_PACKS)
        pack_bytes = min(pack_bytes, fair_share)
        max_files = min(MAX_FILES_PER_PACK, max(MIN_FULL_PACK, count // MIN_PACKS))
        order = np.lexsort((self._ids, -self.sizes, ~unknown))
        rank = np.empty(count, np.int64)
        rank[order] = np.arange(count)
        num_packs = 0
        for shard, start in enumerate(range(0, max(1, count), SHARD_ROWS)):
            chosen = order[start : start + SHARD_ROWS]
            packs = pack(
                self._rows(rank, start),
                weights[chosen],
                pack_bytes,
                first_id=num_packs,
                max_files=max_files,
            )
            self._store.write_table(f"{self._name}/packs/{shard:05d}{SUFFIX}", packs)
            num_packs += packs.num_rows
        return num_packs

    def _rows(self, rank: np.ndarray, start: int) -> pa.Table:
        """Return the remaining rows of ranks from `start`, in order of rank."""
        tables, ranks, seen = [REMAINING.empty_table()], [rank[:0]], 0
        for batch in parquet_batches(self._scratch):
            ours = rank[seen : seen + batch.num_rows]
            seen += batch.num_rows
            within = (ours >= start) & (ours < start + SHARD_ROWS)
            if within.any():
                tables.append(pa.Table.from_batches([batch]).filter(within).cast(REMAINING))
                ranks.append(ours[within])
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(ranks)))


def pack(
    files: pa.Table, weights: np.ndarray, pack_bytes: float, *, first_id: int, max_files: int
) -> pa.Table:
    """Group files, in order, into PACKS rows.

    Args:
        files: REMAINING rows, largest first.
        weights: what each counts against `pack_bytes`; one that reaches it is packed alone.
        pack_bytes: size of a pack.
        first_id: identity of the first pack.
        max_files: in one pack, however small they are.
    """
    offsets = [0]
    filled = 0.0
    for index, weight in enumerate(weights.tolist()):
        held = index - offsets[-1]
        if held and (filled + weight > pack_bytes or held == max_files):
            offsets.append(index)
            filled = 0.0
        filled += weight
    if len(weights):
        offsets.append(len(weights))
    columns = [files[field.name].combine_chunks() for field in PACK_FILE]
    structs = pa.StructArray.from_arrays(columns, fields=list(PACK_FILE))
    starts = np.array(offsets, np.int32)
    sizes = pc.fill_null(files["size_bytes"], 0).to_numpy()
    totals = np.concatenate(([0], np.cumsum(sizes)))
    return pa.table(
        [
            pa.array(np.arange(first_id, first_id + len(starts) - 1)),
            pa.array(np.diff(totals[starts])),
            pa.ListArray.from_arrays(pa.array(starts), structs),
        ],
        schema=PACKS,
    )
