"""Recordings missing from their source, and removal of their rows."""

import datetime
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.storage.run_state.annotations import corrected_ids
from corpus_asr.storage.run_state.finish import OutcomeCounts
from corpus_asr.storage.run_state.lock import AtTheEnd, changing
from corpus_asr.storage.run_state.plan import latest_plan, read_listing
from corpus_asr.storage.run_state.rewriting import remove_recordings
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.source_listings import other_listings, read_roots
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import counted

PRUNE: Final = "remove --gone"
_PROBE_NAME: Final = "_run/removable.json"
_BELOW = """
select count(*) from recordings
where starts_with(uri, $root || '/') or starts_with(uri, $root || '#')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneRecordings:
    """A recording that the last run did not list."""

    recording_id: str
    uri: str
    segments: int
    """Or of labels."""
    audio_s: float
    gone_since: datetime.datetime | None
    """When it was seen to be gone; of another source's, when that was last listed. In UTC."""
    corrections: int
    """Number of corrections saved by people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Recordings of an output folder and those missing from the source."""

    recordings: int
    gone: Sequence[GoneRecordings]
    """Recordings missing for long enough, by URI."""
    sources: Mapping[str, int]
    """Number of recordings below each folder or file that any run listed."""

    def most_gone(self) -> str | None:
        """Return a description if over half of all recordings, or of a source, are missing."""
        shares = [("", len(self.gone), self.recordings)]
        for root, number in self.sources.items():
            within = (f"{root}/", f"{root}#")
            num_gone = sum(recording.uri.startswith(within) for recording in self.gone)
            shares.append((f" below {redact_uri(root)}", num_gone, number))
        return next((f"{counted(num_gone, 'recording')} of {number:,}{where} are gone"
                     for where, num_gone, number in shares if 2 * num_gone > number),
                    None)  # fmt: skip


def find_gone(store: OutputStore, *, older_than: datetime.timedelta) -> Archive:
    """Return the recordings listed by no run within `older_than`, the last run included.

    Raises:
        ConfigError: no run has listed the source of this folder.
    """
    now = datetime.datetime.now(datetime.UTC)
    with _listed_tables(store) as tables:
        [(recordings,)] = tables.rows("select count(*) from recordings")
        sources = {root: tables.rows(_BELOW, root=root)[0][0] for root in read_roots(store)}
        rows = tables.gone(now)
    latest = now - older_than
    corrections = Counter(corrected_ids(store))
    gone = []
    for row in rows:
        # Recordings of another source are missing once that source was not listed for so long.
        if row.pop("elsewhere") and not older_than:
            continue
        # A row without a time has no evidence of a recent listing.
        if row["gone_since"] is None or row["gone_since"] <= latest:
            gone.append(GoneRecordings(**row, corrections=corrections[row["recording_id"]]))
    return Archive(recordings=recordings, gone=gone, sources=sources)


def prune(
    store: OutputStore, recording_ids: Collection[str], *, at_the_end: AtTheEnd | None = None
) -> None:
    """Remove the rows of recordings; the caller holds the folder's lock."""
    ids = sorted(recording_ids)
    with changing(store, PRUNE, at_the_end, recording_ids=ids):
        remove_recordings(store, ids)
        recount(store)


def check_removable(store: OutputStore) -> None:
    """Check that objects can be removed before anything is changed.

    Raises:
        ConfigError: they cannot be removed.
    """
    store.write_json(_PROBE_NAME, {})
    try:
        store.remove(_PROBE_NAME)
    except FetchError as error:
        raise ConfigError(str(error)) from error


def recount(store: OutputStore) -> None:
    """Update `run.json` to the counts of the tables, if a run has finished."""
    run = store.read_json(RUN_NAME)
    if run is not None and latest_plan(store) is not None:
        with _listed_tables(store) as tables:
            counts = OutcomeCounts.of(tables, tables.num_listed, run_id=run["run_id"])
        store.write_json(RUN_NAME, {**run, "counts": asdict(counts)})
    store.note_tables()


def _listed_tables(store: OutputStore) -> RunTables:
    plan = latest_plan(store)
    if plan is None:
        raise ConfigError(
            f"looking for what is gone in {redact_uri(store.uri)}: found no listing, expected "
            "that of a run; check the URI, or run its job first (for transcribe -o use --uri)"
        )
    listing = read_listing(store, plan)
    return RunTables(store, listing=listing, elsewhere=other_listings(store, plan), opened="true")
