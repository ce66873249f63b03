"""Which rows of a run's tables count, and where each recording's rows lie.

In: an output folder. Out: its recordings by address, and for each object of segments which of its
rows count and whose they are. Only outcomes are read: addresses and some numbers are kept, less
than a kilobyte per recording. Knows nothing of texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.storage.run_state.ledger import CommitResolution, Ledger, counted
from corpus_asr.storage.run_state.start import CONFIG_NAME
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    OUTCOMES_FOLDER,
    SEGMENT_ROWS,
    OutputStore,
    PartRows,
)
from corpus_asr.storage.stores.uri import redact_uri

_PART_COLUMNS = (
    "recording_id", "uri", "size_bytes", "etag", "status", "part_end_s", "language",
    "segments_written", "segments_object",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claims:
    """The rows of one object of segments, in their order."""

    owners: np.ndarray
    """Position among the recordings of the index."""
    counts: np.ndarray
    """False where another commit of the same part counts."""


class Index:
    """The recordings of an output folder, sorted by address.

    Attributes:
        recordings: recording_id, uri, size_bytes and etag (of what was transcribed), duration_s,
            language, failed (whether a part did), heard (whether a part did not), complete (whether
            all parts are there), segments.
    """

    def __init__(self, recordings: pa.Table, parts: pa.Table, names: Sequence[str]) -> None:
        self.recordings = recordings
        self._names = names
        self._object = parts["object"].to_numpy()
        self._owner = parts["owner"].to_numpy()
        self._written = parts["segments_written"].to_numpy()
        self._counts = parts["counts"].to_numpy()
        # Stable: parts of one object keep the order in which their rows lie.
        self._order = np.argsort(self._object, kind="stable")
        self._starts = np.searchsorted(
            self._object[self._order], np.arange(len(names) + 1), side="left"
        )

    def __len__(self) -> int:
        return int(self.recordings.num_rows)

    def objects(self) -> Iterator[tuple[str, Claims]]:
        """Yield the objects that hold rows that count, each with what its rows are."""
        for number, name in enumerate(self._names):
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            written = self._written[rows]
            claims = Claims(
                np.repeat(self._owner[rows], written), np.repeat(self._counts[rows], written)
            )
            if claims.counts.any():
                yield name, claims

    def places(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield where a recording's rows lie: an object, and there the first row and the next."""
        theirs = (self._owner == position) & self._counts & (self._written > 0)
        for number in np.unique(self._object[theirs]).tolist():
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            stops = np.cumsum(self._written[rows])
            starts = stops - self._written[rows]
            for at in np.flatnonzero(theirs[rows]).tolist():
                yield self._names[number], int(starts[at]), int(stops[at])


def read_index(store: OutputStore, rows: PartRows = SEGMENT_ROWS) -> Index:
    """Read the outcomes of a finished, running or stopped run.

    Args:
        store: its output folder.
        rows: what it is expected to have written: segments, or labels in their place.

    Raises:
        ConfigError: the folder is not the output of a run, or of one that wrote the other.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    return index_of(store, outcomes_names(store), Ledger.load(store).resolve(()), rows)


def outcomes_names(store: OutputStore) -> list[str]:
    """Return the names of a run's outcomes objects, none if it has just begun.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer.
    """
    names = store.names(OUTCOMES_FOLDER)
    if not names and not store.exists(CONFIG_NAME):
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found neither outcomes nor _run/, expected the "
            "output folder of a run; check the address"
        )
    return names


def index_of(
    store: OutputStore, names: Sequence[str], settlement: CommitResolution, rows: PartRows
) -> Index:
    """Return the index of outcomes objects, where it is known which of their rows count."""
    parts, objects = _parts(store, names, settlement.keep, rows)
    recordings = _recordings(parts, settlement.complete_ids)
    owner = pc.index_in(parts["recording_id"], value_set=recordings["recording_id"])
    # Parts none of which counts belong to nobody; nor do their rows.
    parts = parts.append_column("owner", pc.fill_null(owner, -1).cast(pa.int64()))
    return Index(recordings, parts, objects)


def _parts(
    store: OutputStore, names: Sequence[str], keep: dict[str, np.ndarray], rows: PartRows
) -> tuple[pa.Table, list[str]]:
    """Return the outcomes rows, with the numbers of the objects they name, and those objects."""
    objects: dict[str, int] = {}
    tables = [_EMPTY_PARTS]
    for batch, counts in counted(store, keep, _PART_COLUMNS, names):
        named = batch.column("segments_object").to_pylist()
        _refuse_others(store, named, rows)
        numbers = [-1 if name is None else objects.setdefault(name, len(objects)) for name in named]
        table = pa.Table.from_batches([batch]).drop_columns(["segments_object"])
        table = table.append_column("object", pa.array(numbers, pa.int64()))
        tables.append(table.append_column("counts", pa.array(counts)).cast(_EMPTY_PARTS.schema))
    return pa.concat_tables(tables).combine_chunks(), list(objects)


def _refuse_others(store: OutputStore, named: Iterable[str | None], rows: PartRows) -> None:
    if all(name is None or name.startswith(f"{rows.folder}/") for name in named):
        return
    found = LABEL_ROWS if rows is SEGMENT_ROWS else SEGMENT_ROWS
    raise ConfigError(
        f"reading {redact_uri(store.uri)}: found {found.folder}/, expected {_HOLD[rows.folder]}: "
        f"this run {_DID[found.folder]}; read its table of {found.folder} as it is"
    )


_HOLD = {
    SEGMENT_ROWS.folder: "the segments of a transcription",
    LABEL_ROWS.folder: "the labels of a classification",
}
_DID = {SEGMENT_ROWS.folder: "transcribed", LABEL_ROWS.folder: "classified"}

_EMPTY_PARTS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("status", pa.string()),
        ("part_end_s", pa.float64()),
        ("language", pa.string()),
        ("segments_written", pa.int64()),
        ("object", pa.int64()),
        ("counts", pa.bool_()),
    ]
).empty_table()


def _recordings(parts: pa.Table, complete_ids: pa.Array) -> pa.Table:
    """Return a row per recording with parts that count, sorted by address."""
    parts = parts.filter(parts["counts"])
    failed = pc.equal(parts["status"], "failed")
    table = parts.append_column("failed", failed).append_column("heard", pc.invert(failed))
    found = table.group_by("recording_id", use_threads=False).aggregate(
        [
            ("uri", "first"),
            ("size_bytes", "first"),
            ("etag", "first"),
            ("part_end_s", "max"),
            ("failed", "any"),
            ("heard", "any"),
            ("segments_written", "sum"),
        ]
    )
    ids = found["recording_id"]
    return pa.table(
        {
            "recording_id": ids,
            "uri": found["uri_first"],
            "size_bytes": found["size_bytes_first"],
            "etag": found["etag_first"],
            "duration_s": pc.fill_null(found["part_end_s_max"], 0.0),
            "language": _languages(parts, ids),
            "failed": found["failed_any"],
            "heard": found["heard_any"],
            "complete": pc.is_in(ids, value_set=complete_ids),
            "segments": found["segments_written_sum"],
        }
    ).sort_by([("uri", "ascending"), ("recording_id", "ascending")])


def _languages(parts: pa.Table, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the language of most parts of each recording, the first by name among equals."""
    spoken = parts.filter(pc.is_valid(parts["language"]))
    counts = spoken.group_by(["recording_id", "language"], use_threads=False).aggregate(
        [("uri", "count")]
    )
    best = counts.sort_by(
        [("recording_id", "ascending"), ("uri_count", "descending"), ("language", "ascending")]
    )
    return best["language"].take(pc.index_in(ids, value_set=best["recording_id"]))
