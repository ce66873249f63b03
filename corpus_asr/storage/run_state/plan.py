"""Work of a run: the listing without committed files, packed, largest first.

Only sizes and IDs of all files are held in memory; rows pass through in bounded batches. Packs hold
original URIs, including signatures, until the run is finished; the listing has none.
"""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.activity import FileSample, FileSums, SampledFile, added, sums_of
from corpus_asr.config.run import (
    CLASSIFY_AUDIO,
    DEFAULT_OPTIONS,
    RunConfig,
    RunOptions,
)
from corpus_asr.schemas import FILES, PACK_FILE, PACKS
from corpus_asr.scratch import scratch_folder
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.manifest import expected_bytes
from corpus_asr.storage.parquet import parquet_batches, parquet_writer
from corpus_asr.storage.run_state.annotations import with_notes
from corpus_asr.storage.run_state.fold import RemainingReason
from corpus_asr.storage.run_state.forgotten import Forgotten
from corpus_asr.storage.run_state.identities import Changes, Identities, Moves
from corpus_asr.storage.run_state.lock import is_finished
from corpus_asr.storage.run_state.manifest_columns import other_texts
from corpus_asr.storage.run_state.moved import UNLISTED, Arrivals, lost_folders
from corpus_asr.storage.run_state.part_rows import without_credentials
from corpus_asr.storage.run_state.redo import chosen
from corpus_asr.storage.run_state.run_files import FolderContents, check_fingerprint, fingerprint
from corpus_asr.storage.run_state.run_tables import (
    FAILED,
    PART_COLUMNS,
    REMAINING,
    VERSION_COLUMNS,
    RunTables,
)
from corpus_asr.storage.run_state.source_listings import (
    LISTINGS_NAME,
    describe_change,
    other_listings,
    read_listings,
)
from corpus_asr.storage.run_state.table_names import (
    LABEL_ROWS,
    PLANS_FOLDER,
    RUN_NAME,
    SEGMENT_ROWS,
    table_name,
    time_ns_of,
)
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.filesystem import Inspection, StoreOptions, inspect_files
from corpus_asr.storage.stores.uri import located, redact_uri
from corpus_asr.units import MEBIBYTE, counted

# Tiny files: seconds of work, so that the latency of opening the first file is negligible ...
MAX_FILES_PER_PACK = 256
# ... but a small corpus is split into at least this many packs, so that every worker gets some.
MIN_PACKS = 64
MIN_FULL_PACK = 64  # a pack of this many files is never split
MIN_PACK_BYTES = MEBIBYTE
# Fraction of a pack that a file of unknown size counts as.
UNKNOWN_SHARE = 1 / 8
SHARD_ROWS = 250_000  # rows sorted, packed and written at a time: some hundred MiB


@dataclass(slots=True, kw_only=True)
class Plan:
    """The numbers of a plan, and the location of its packs."""

    uri: str
    """URI of the folder of PACKS Parquet files; empty if there is no work."""
    name: str  # the plan's folder, relative to the output folder
    num_files: int = 0  # listed recordings
    num_bytes: int = 0  # their total size, where known
    num_unknown_sizes: int = 0
    num_done: int = 0  # listed recordings already committed completely
    num_remaining: int = 0
    num_remaining_bytes: int = 0
    num_new: int = 0  # of the remaining, recordings without any results, ...
    num_changed: int = 0  # ... with results of other content, ...
    num_retried: int = 0  # ... that failed, ...
    num_redone: int = 0  # ... and that are reprocessed; the rest is incomplete
    num_realigned: int = 0  # of the remaining, those with changed manifest text to align
    num_matched: int | None = None  # recordings selected by --redo, listed or not
    num_packs: int = 0
    num_excluded: int = 0  # excluded by `source.exclude`
    num_ignored: int = 0  # not recordings, by `source.ignore`
    num_no_sound: int = 0  # neither named as sounds nor holding any
    num_own: int = 0  # in the output folder
    num_dangling: int = 0  # links without a target, or symbolic ones in archives
    num_odd: int = 0  # URIs in manifests that look written for another system
    odd: list[str] = field(default_factory=list)  # the first of them
    had_results: bool = False  # whether results existed before
    num_duplicates: int = 0  # named more than once; listed once
    num_forgotten: int = 0  # blocked by `forget`
    num_moved: int = 0  # recordings moved to another URI; results are kept
    num_touched: int = 0  # of another version and the same sound; results are kept
    num_waiting: int = 0  # replaced by another sound; what people wrote waits for theirs
    num_unlisted: int = 0  # recordings with results that the source does not list
    source_change: str | None = None  # description of changes to the last run's source
    empty: list[str] = field(default_factory=list)  # URIs without any recording
    remaining: FileSample = field(default_factory=FileSample, repr=False, compare=False)
    """The remaining recordings by type and size; not saved, nor are the next five fields."""
    known: dict[str, FileSums] = field(default_factory=dict, repr=False, compare=False)
    """Sums over remaining recordings of known duration: they were processed before."""
    redo: pa.Table | None = field(default=None, repr=False, compare=False)
    """REDO rows to save before any work; None: unchanged."""
    moves: Moves = field(default_factory=dict, repr=False, compare=False)
    """Recordings moved since the last run."""
    identities: Identities = field(default_factory=Identities, repr=False, compare=False)
    """Recording IDs to be saved before any work."""
    forgotten: Forgotten | None = field(default=None, repr=False, compare=False)
    """Erased recordings; to be saved if it was changed."""

    @property
    def pack_names(self) -> list[str]:
        """Object names of its packs."""
        shards = range(0, self.num_remaining, SHARD_ROWS)
        return [table_name(f"{self.name}/packs", f"{shard:05d}") for shard in range(len(shards))]

    def unknown(self) -> list[SampledFile]:
        """Return recordings whose headers predict the audio duration; empty if that is known."""
        num_known = sum(sums.files for sums in self.known.values())
        return self.remaining.draw() if num_known < self.num_remaining else []

    def notes(self) -> list[str]:
        """Return messages about the source, other than about its recordings."""
        lines = [f"found no recordings: {uri}" for uri in self.empty]
        lines += [f"WARNING: {words}" for words in self.warnings()]
        if self.num_matched is not None:
            lines.append(f"--redo: {self.redo_words()}")
        lines += [f"{words} ({rule})" for number, words, rule in self.skipped() if number]
        for number, noun, words in (
            (self.num_realigned, "recording", "to be aligned again: another text in the manifest"),
            (self.num_moved, "recording", "moved: their results follow them"),
            (self.num_touched, "file", "of another time, size or ETag with the sound of before"),
            (self.num_waiting, "recording",
             "replaced by other sounds: corrections and names wait for them"),
            (self.num_forgotten, "erased recording",
             "in the source again, and skipped (remove --allow-again)"),
        ):  # fmt: skip
            lines += [f"{counted(number, noun)} {words}"] if number else []
        if self.source_change:
            lines.append(self.source_words())
        return lines

    def skipped(self) -> Iterator[tuple[int, str, str]]:
        """Yield numbers of files that are left out, in words as well, with the rule for each."""
        ignored = counted(self.num_ignored, "other file")
        yield self.num_ignored, f"{ignored} ignored", "source.ignore"
        yield self.num_excluded, f"{self.num_excluded:,} excluded", "source.exclude"
        if self.num_no_sound:
            others = counted(self.num_no_sound, "other")
            yield self.num_no_sound, f"{others} without sound", "first bytes"
        if self.num_own:
            yield self.num_own, f"{self.num_own:,} in the output folder", "output.uri"
        yield self.num_duplicates, f"{self.num_duplicates:,} named twice", "source"

    def source_words(self) -> str:
        """Return how the source differs from that of the last run, and what it no longer lists."""
        unlisted = counted(self.num_unlisted, "recording")
        return f"{self.source_change}; {unlisted} of before not listed, whose results stay"

    def warnings(self) -> list[str]:
        """Return warnings about probable mistakes in the source."""
        lines = []
        if self.had_results and not self.num_files:
            lines.append(
                "nothing is listed, expected recordings of before: their results stay, and count "
                "as gone; check that the folder is mounted, or the manifest written completely"
            )
        if self.num_dangling:
            links = counted(self.num_dangling, "link")
            lines.append(f"{links} of the source excluded: their targets are missing, or in a tar")
        if self.num_odd:
            lines.append(
                f"{counted(self.num_odd, 'row')} of manifests with blanks, ~ or backslashes in "
                f"URIs, such as {', '.join(self.odd)}; correct them if they are not meant"
            )
        return lines

    def redo_words(self) -> str:
        """Return the number of recordings reprocessed, of those that --redo selects."""
        if not self.num_matched:
            return "no recording matches; nothing is redone"
        words = f"{counted(self.num_matched, 'recording')} to process again"
        missing = self.num_matched - self.num_redone
        return f"{words}, {missing:,} of them once they are listed" if missing > 0 else words

    def as_data(self) -> dict[str, Any]:
        """Return the numbers as JSON-compatible values."""
        return {
            plan_field.name: getattr(self, plan_field.name)
            for plan_field in fields(self)
            if plan_field.repr
        }


def make_plan(
    config: RunConfig,
    store: OutputStore,
    *,
    model_revision: str | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
    target: OutputStore | None = None,
    inspect: Inspection = inspect_files,
) -> Plan:
    """List the source, drop committed files, pack the rest and write the packs.

    With a `model_revision`, the folder must not hold results made otherwise. The plan is written to
    the folder, or to `target` if it is not to be executed. Contents are read by `inspect`.
    """
    target = target or store
    earlier = FolderContents.same
    if model_revision is not None:
        name = fingerprint(config, model_revision)
        earlier = check_fingerprint(store, config, name, redo=options.redo is not None)
    # The newest plan must sort last, even if the clock was set back.
    newest_ns = max(map(time_ns_of, plans_of(store)), default=0)
    name = f"{PLANS_FOLDER}/{store.stem(max(time.time_ns(), newest_ns + 1))}"
    plan = Plan(uri=target.address(f"{name}/packs"), name=name)
    columns: Sequence[str] = VERSION_COLUMNS if options.redo is None else PART_COLUMNS
    if config.decoding.align:
        columns = tuple(dict.fromkeys((*columns, "metadata")))
    opened = FAILED if columns == VERSION_COLUMNS else "true"
    with (
        scratch_folder() as folder,
        RunTables(store, columns=columns, opened=opened) as tables,
    ):
        if options.redo is not None:
            rows = LABEL_ROWS if config.pipeline == CLASSIFY_AUDIO else SEGMENT_ROWS
            mixed = earlier is FolderContents.mixed
            redo_rows = chosen(store, tables, options.redo, rows, other_settings=mixed)
            plan.num_matched = len(redo_rows)
            if len(redo_rows):
                plan.redo = tables.do_again(redo_rows)
        scratch = str(folder / "remaining.parquet")
        committed_ids = "select distinct recording_id from committed"
        plan.identities = tables.identities.checked(store, lambda: tables.table(committed_ids)[0])
        if plan.identities.is_changed:
            tables.place(plan.identities)
        shards = _list_source(plan, target, _shards(plan, store, config, tables, target, inspect))
        plan.had_results = tables.num_versions > 0
        arrivals = Arrivals(tables) if plan.had_results else None
        sizes, ids, retried = _left(plan, shards, config, tables, options, scratch, arrivals)
        elsewhere = other_listings(store, None, config.source)
        read_as = StoreOptions.of(config.source)
        changes = Changes()
        if arrivals is not None:
            noted = partial(with_notes, store)
            changes = arrivals.changes(store, read_as, elsewhere, noted, inspect)
        if changes.moves or changes.left:
            plan.moves = {
                name: move for name, move in changes.moves.items() if move.old_uri != move.uri
            }
            plan.num_moved = len(plan.moves)
            plan.num_touched = len(changes.moves) - plan.num_moved
            plan.num_waiting = len(changes.left.keys() - changes.moves.keys())
            plan.identities.follow(changes)
            tables.place(plan.identities)
            tables.note_left(changes.left)
            present = [*changes.moves, *(name for name, _ in changes.newcomers.values())]
            tables.note_listed(pa.table({"recording_id": present}))
            _name_again(plan, target)
            shards = (_named(plan, files) for files in parquet_batches(scratch))
            scratch = str(folder / "unmoved.parquet")
            sizes, ids, retried = _left(plan, shards, config, tables, options, scratch)
        plan.source_change = describe_change(store, config.source)
        if arrivals is not None:
            [(plan.num_unlisted,)] = tables.rows(f"select count(*) from ({UNLISTED})")
        plan.num_remaining = len(sizes)
        plan.num_done = plan.num_files - plan.num_remaining
        pack_bytes = config.extract.pack_mb * MEBIBYTE
        _write_packs(plan, target, sizes, ids, retried, pack_bytes, scratch)
    return plan


def read_packs(store: OutputStore, plan: Plan) -> Iterator[pa.Table]:
    """Yield the plan's packs, one row at a time, largest first."""
    for name in plan.pack_names:
        for batch in store.batches(name, batch_rows=256):
            table = pa.Table.from_batches([batch]).cast(PACKS)
            for row in range(table.num_rows):
                yield table.slice(row, 1)


def read_listing(
    store: OutputStore, plan_name: str, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the FILES rows, or some columns, from which a plan was made, in listing order."""
    for name in store.names(f"{plan_name}/listing"):
        yield from store.batches(name, columns=columns, batch_rows=SHARD_ROWS)


def latest_plan(store: OutputStore) -> str | None:
    """Return the folder of the last run's plan with a complete listing; None without one."""
    listed = read_listings(store)  # that are complete
    if is_finished(store):
        # A later plan may be of a run that was killed before it started.
        name = ((store.read_json(RUN_NAME) or {}).get("plan") or {}).get("name")
        if name in listed:
            return str(name)
    return max(listed, default=None)


def retire_plans(store: OutputStore, finished: str, others: Collection[str] = ()) -> None:
    """Remove plans older than a finished run's, and the original URIs in that one.

    `others` are plans of other sources whose listings are kept.
    """
    kept = {finished, *others}
    for name in list(store.all_names(PLANS_FOLDER)):
        plan = _plan_of(name)
        # Names begin with their creation time; newer plans may be in use.
        if name.startswith(f"{plan}/packs/") if plan in kept else plan < finished:
            store.remove(name)
    noted = read_listings(store)
    in_use = {plan: entry for plan, entry in noted.items() if plan >= finished or plan in others}
    if in_use != noted:
        store.write_json(LISTINGS_NAME, in_use)


def plans_of(store: OutputStore) -> set[str]:
    """Return the plan folders of an output folder."""
    return {_plan_of(name) for name in store.all_names(PLANS_FOLDER)}


def _plan_of(name: str) -> str:
    """Return the folder of the plan that an object in `PLANS_FOLDER` belongs to."""
    return "/".join(name.split("/")[:3])


def _list_source(plan: Plan, store: OutputStore, shards: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield a source's listing while writing it."""
    for shard, files in enumerate(shards):
        name = table_name(f"{plan.name}/listing", f"{shard:05d}")
        store.write_table(name, without_credentials(files))
        plan.num_files += files.num_rows
        plan.num_bytes += pc.sum(files["size_bytes"]).as_py() or 0
        plan.num_unknown_sizes += files["size_bytes"].null_count
        yield files


def _name_again(plan: Plan, store: OutputStore) -> None:
    """Write the listing with the IDs of recordings that moved."""
    for name in store.names(f"{plan.name}/listing"):
        store.write_table(name, _named(plan, store.read_table(name, FILES)))


def _named(plan: Plan, files: pa.RecordBatch | pa.Table) -> pa.Table:
    return plan.identities.name_files(pa.table(files.select(FILES.names)).combine_chunks())


def _left(
    plan: Plan,
    shards: Iterable[pa.Table],
    config: RunConfig,
    tables: RunTables,
    options: RunOptions,
    scratch: str,
    arrivals: Arrivals | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Sizes (known or expected, else -1) and IDs of the remaining files, and whether they failed
    # before: all that is held in memory of them.
    sizes, ids, retried = [np.empty(0, np.int64)], [np.empty(0, "S16")], [np.empty(0, bool)]
    reasons: Counter[int] = Counter()
    plan.remaining, plan.known = FileSample(), {}
    plan.num_remaining_bytes = 0
    with parquet_writer(scratch, REMAINING) as remaining_file:
        for files in shards:
            batch, alone = files.to_batches()[0], options.leave_alone
            remaining = tables.remaining(batch, options.retry, leave_alone=alone)
            others = remaining.filter(pc.field("reason") <= int(RemainingReason.changed))
            if config.decoding.align:
                # A new version may be another sound, the text of which is rightly another.
                is_other = pc.is_in(files["recording_id"], value_set=others["recording_id"])
                if len(texts := other_texts(tables, files.filter(pc.invert(is_other)))):
                    plan.num_realigned += len(texts)
                    plan.redo = tables.do_again(texts)
                    remaining = tables.remaining(batch, options.retry, leave_alone=alone)
            if arrivals is not None:
                arrivals.add(files, others)
            plan.identities.leave_versions(remaining)
            remaining_file.write_table(remaining)
            reasons.update(remaining["reason"].to_pylist())
            plan.num_remaining_bytes += pc.sum(remaining["size_bytes"]).as_py() or 0
            if options.redo is not None:
                _add_known(plan, tables, remaining)
            columns = (remaining[name].to_pylist() for name in ("size_bytes", "etag", "metadata"))
            expected = [expected_bytes(*row) for row in zip(*columns, strict=True)]
            sizes.append(np.array([-1 if size is None else size for size in expected], np.int64))
            names = remaining["recording_id"].to_pylist()
            ids.append(np.array(names, "S16"))
            retried.append(remaining["reason"].to_numpy() == RemainingReason.retried)
            versions = zip(*(remaining[name].to_pylist() for name in ("uri", "etag")), strict=True)
            plan.remaining.add(names, [located(*version) for version in versions], expected)
    plan.num_new = reasons[RemainingReason.new]
    plan.num_changed = reasons[RemainingReason.changed]
    plan.num_retried = reasons[RemainingReason.retried]
    plan.num_redone = reasons[RemainingReason.redone]
    return np.concatenate(sizes), np.concatenate(ids), np.concatenate(retried)


_SILENT = projected(FILES, ("recording_id", "etag", "metadata"))  # the last is libav's version
_KNOWN_IDS = """
select distinct recording_id from committed where recording_id in (select unnest($ids))
"""
_KNOWN = """
select recordings.uri, recordings.size_bytes, recordings.duration_s
from recordings join arrived_files using (recording_id)
where complete and status != 'failed' and recordings.duration_s is not null
"""


def _add_known(plan: Plan, tables: RunTables, remaining: pa.Table) -> None:
    again = remaining.filter(pc.equal(remaining["reason"], RemainingReason.redone))
    tables.add("arrived_files", again.select(["recording_id"]))
    plan.known = added(plan.known, sums_of(tables.rows(_KNOWN)))


def _shards(
    plan: Plan, store: OutputStore, config: RunConfig, tables: RunTables, target: OutputStore,
    inspect: Inspection,
) -> Iterator[pa.Table]:  # fmt: skip
    def known(ids: list[str]) -> set[str]:
        return {name for (name,) in tables.rows(_KNOWN_IDS, ids=ids)}

    listing = FileListing(
        config.source, output_uri=store.uri, speakers=config.speakers, known=known,
        silent=_silent_before(store), inspect=inspect,
    )  # fmt: skip
    forgotten, identities = Forgotten.read(store), plan.identities
    source_store = StoreOptions.of(config.source)
    for listed in chain(_tables_of(listing), _lost_folders(listing, store, tables)):
        named = identities.name_files(listed, forgotten.has_id if forgotten.entries else None)
        files = forgotten.without(named, tables, source_store, inspect)
        identities.keep(files)
        if files.num_rows:
            yield files.combine_chunks()
    plan.num_forgotten, plan.forgotten = forgotten.num_left_out, forgotten
    plan.num_excluded = listing.num_excluded
    plan.num_ignored, plan.num_no_sound = listing.num_ignored, len(listing.silent)
    if listing.silent:  # so that the next plan does not open them again
        libav = importlib.metadata.version("av")
        rows = [{"recording_id": name, "uri": "", "etag": version, "metadata": libav}
                for name, version in listing.silent.items()]  # fmt: skip
        silent_files = pa.Table.from_pylist(rows, FILES)
        target.write_table(table_name(f"{plan.name}/silent", f"{0:05d}"), silent_files)
    plan.num_own = listing.num_own
    plan.num_dangling = listing.num_dangling
    plan.num_odd, plan.odd = listing.num_odd, [redact_uri(uri) for uri in listing.odd]
    plan.empty = [redact_uri(uri) for uri in listing.empty]
    plan.num_duplicates = listing.num_duplicates


def _silent_before(store: OutputStore) -> dict[str, str | None]:
    """Return IDs and versions of files in which earlier plans found no sound, the newest last."""
    names = [name for name in store.names(PLANS_FOLDER) if "/silent/" in name]
    rows = (row for _, table in store.read_tables(names, _SILENT) for row in table.to_pylist())
    libav = importlib.metadata.version("av")
    return {row["recording_id"]: row["etag"] for row in rows if row["metadata"] == libav}


def _lost_folders(
    listing: FileListing, store: OutputStore, tables: RunTables
) -> Iterator[pa.Table]:
    if folders := lost_folders(store, tables, set(listing.unknown)):
        yield pa.Table.from_batches([listing.rest_of(folders)])


def _tables_of(listing: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the listing in tables of at least `SHARD_ROWS`."""
    waiting: list[pa.RecordBatch] = []
    for batch in listing:
        waiting.append(batch)
        if sum(rows.num_rows for rows in waiting) >= SHARD_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _write_packs(
    plan: Plan,
    store: OutputStore,
    sizes: np.ndarray,
    ids: np.ndarray,
    retried: np.ndarray,
    pack_bytes: float,
    scratch: str,
) -> None:
    count = len(sizes)
    unknown = sizes < 0
    weights = np.where(unknown, int(pack_bytes * UNKNOWN_SHARE), sizes)
    fair_share = max(MIN_PACK_BYTES, float(weights.sum()) / MIN_PACKS)
    max_files = min(MAX_FILES_PER_PACK, max(MIN_FULL_PACK, count // MIN_PACKS))
    # Unknown sizes first, since they may be the longest; IDs for a stable order. Earlier failures
    # last: the first recordings of a run show whether it works at all.
    order = np.lexsort((ids, -sizes, ~unknown, retried))
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    for shard, name in enumerate(plan.pack_names):
        start = shard * SHARD_ROWS
        packs = pack(
            _rows(scratch, rank, start),
            weights[order[start : start + SHARD_ROWS]],
            min(pack_bytes, fair_share),
            first_id=plan.num_packs,
            max_files=max_files,
        )
        store.private().write_table(name, packs)
        plan.num_packs += packs.num_rows


def _rows(scratch: str, rank: np.ndarray, start: int) -> pa.Table:
    # Read again for each shard: a pass over a local file is cheaper than all rows in memory.
    tables, ranks, seen = [REMAINING.empty_table()], [rank[:0]], 0
    for batch in parquet_batches(scratch):
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
    """Group REMAINING rows, in order, into PACKS rows of at most `max_files` each.

    `weights` are each file's size against `pack_bytes`; one that reaches it is packed alone.
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
