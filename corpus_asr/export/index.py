"""Which rows of a run's tables count, and where each recording's rows lie.

In: an output folder. Out: its recordings by address, and for each object of segments which of its
rows count and whose they are. Only outcomes are read: addresses and some numbers are kept, less
than a kilobyte per recording. Knows nothing of texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.errors import ConfigError
from corpus_asr.storage.addresses import shown
from corpus_asr.storage.beginning import CONFIG_NAME
from corpus_asr.storage.ledger import Ledger
from corpus_asr.storage.results import LABEL_ROWS, SEGMENT_ROWS
from corpus_asr.storage.tables import OUTCOMES_FOLDER, OutputStore

_PART_COLUMNS = (
    "recording_id", "uri", "status", "part_end_s", "language", "segments_written",
    "segments_object",
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
        recordings: recording_id, uri, duration_s, language, failed (whether a part did), heard
            (whether a part did not), complete (whether all parts are there), segments.
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


def read_index(store: OutputStore) -> Index:
    """Read the outcomes of a finished, running or stopped run.

    Raises:
        ConfigError: the folder is not the output of a run, or of one that classified.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    names = store.names(OUTCOMES_FOLDER)
    if not names and not store.exists(CONFIG_NAME):
        raise ConfigError(
            f"reading {shown(store.uri)}: found neither outcomes nor _run/, expected the output "
            "folder of a run; check the address"
        )
    settlement = Ledger.load(store).settle(())
    parts, objects = _parts(store, names, settlement.keep)
    recordings = _recordings(parts, settlement.complete_ids)
    owner = pc.index_in(parts["recording_id"], value_set=recordings["recording_id"])
    # Parts none of which counts belong to nobody; nor do their rows.
    parts = parts.append_column("owner", pc.fill_null(owner, -1).cast(pa.int64()))
    return Index(recordings, parts, objects)


def _parts(
    store: OutputStore, names: Sequence[str], keep: dict[str, np.ndarray]
) -> tuple[pa.Table, list[str]]:
    """Return the outcomes rows, with the numbers of the objects they name, and those objects."""
    objects: dict[str, int] = {}
    position: dict[str, int] = {}
    tables = [_EMPTY_PARTS]
    for batch in store.committed(_PART_COLUMNS, names):
        start = position.get(batch.name, 0)
        stop = position[batch.name] = start + batch.rows.num_rows
        mask = keep.get(batch.name)
        counts = np.ones(stop - start, dtype=bool) if mask is None else mask[start:stop]
        _refuse_labels(store, batch.rows.column("segments_object"))
        numbers = [
            objects.setdefault(name, len(objects)) if _holds_segments(name) else -1
            for name in batch.rows.column("segments_object").to_pylist()
        ]
        table = pa.Table.from_batches([batch.rows]).drop_columns(["segments_object"])
        table = table.append_column("object", pa.array(numbers, pa.int64()))
        tables.append(table.append_column("counts", pa.array(counts)).cast(_EMPTY_PARTS.schema))
    return pa.concat_tables(tables).combine_chunks(), list(objects)


def _refuse_labels(store: OutputStore, named: pa.Array) -> None:
    if pc.any(pc.starts_with(named, f"{LABEL_ROWS.folder}/")).as_py():
        raise ConfigError(
            f"reading {shown(store.uri)}: found {LABEL_ROWS.folder}/, expected the segments of a "
            "transcription: this run classified; read its table of labels as it is"
        )


def _holds_segments(name: str | None) -> bool:
    return name is not None and name.startswith(f"{SEGMENT_ROWS.folder}/")


_EMPTY_PARTS = pa.schema(
    [
        ("recording_id", pa.string()),
        ("uri", pa.string()),
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
