"""A run's recordings with their segments, read from its tables in bounded memory.

The run may be finished, in progress or stopped. An index made of outcomes alone says which rows of
the segments count and whose they are, in less than a kilobyte per recording. Parts of a recording
may lie in different objects, and commits may hold some parts twice: rows that count are grouped by
recording through an external sort on local disk.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr import confidence
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.export.external_sort import ExternalSort
from corpus_asr.languages import resolve_language
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.segments import Segment, Word
from corpus_asr.storage.run_state.ledger import CommitResolution, Ledger, counted
from corpus_asr.storage.run_state.run_files import CONFIG_NAME
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
_ORDER = ("start_s", "channel", "part", "segment")
TEXT_COLUMNS = (
    "recording_id", "part", "channel", "segment", "start_s", "end_s", "text", "language",
    "confidence", "known_hallucination",
)  # fmt: skip
WORD_COLUMNS = (*TEXT_COLUMNS, "words")
SCORE_COLUMNS = (
    *WORD_COLUMNS, "tokens", "task", "avg_logprob", "no_speech_prob", "compression_ratio",
    "temperature",
)  # fmt: skip
EVIDENCE_COLUMNS = (*TEXT_COLUMNS, *confidence.EVIDENCE_COLUMNS)
_INDEX_CHUNK_ROWS = 10_000  # of the index as Python values at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording and its transcript."""

    recording_id: str
    uri: str
    duration_s: float
    """Length of what was decoded."""
    language: str | None
    """The language of most of its parts."""
    failed: bool = False
    """Whether a part of it failed."""
    segments: tuple[Segment, ...] = ()
    """Sorted by time."""
    channels: tuple[int | None, ...] = ()
    """The channel of each segment; None where channels were mixed."""

    @classmethod
    def of(cls, row: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> "Recording":
        """Return a recording of a row of `Index.recordings` and rows of the segments table."""
        return cls(
            **{name: row[name] for name in ("recording_id", "uri", "duration_s", "language")},
            failed=row["failed"],
            segments=tuple(segment_from(each) for each in segments),
            channels=tuple(each["channel"] for each in segments),
        )

    @property
    def text(self) -> str:
        """The segments' texts joined, outer spaces removed."""
        return "".join(segment.text for segment in self.segments).strip()

    def by_channel(self) -> dict[int | None, list[Segment]]:
        """Return the segments of each channel, sorted by time."""
        channels: dict[int | None, list[Segment]] = {}
        for channel, segment in zip(self.channels, self.segments, strict=True):
            channels.setdefault(channel, []).append(segment)
        return channels


def segment_from(row: Mapping[str, Any]) -> Segment:
    """Return a row of the segments table; columns that were not read are empty."""
    words = row.get("words")
    return Segment(
        start_s=row["start_s"],
        end_s=row["end_s"],
        text=row["text"] or "",
        tokens=tuple(row.get("tokens") or ()),
        task=row.get("task") or "transcribe",
        known_hallucination=bool(row.get("known_hallucination")),
        words=None if words is None else tuple(map(_word, words)),
        language=row.get("language"),
        language_probability=row.get("language_probability"),
        confidence=row.get("confidence") or 0.0,
        avg_logprob=row.get("avg_logprob") or 0.0,
        no_speech_prob=row.get("no_speech_prob"),
        compression_ratio=row.get("compression_ratio") or 0.0,
        temperature=row.get("temperature") or 0.0,
        speech_fraction=row.get("speech_fraction"),
        text_logprob=row.get("text_logprob"),
    )


def _word(row: Mapping[str, Any]) -> Word:
    return Word(
        word=row["word"] or "",
        start_s=row["start_s"],
        end_s=row["end_s"],
        probability=row["probability"] or 0.0,
    )


@dataclass(frozen=True, slots=True)
class Claims:
    """The rows of one object of segments, in their order."""

    owners: np.ndarray
    """Position among the recordings of the index."""
    counts: np.ndarray
    """False where another commit of the same part counts."""


class Index:
    """The recordings of an output folder, sorted by URI.

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
        """Yield the objects that hold rows that count, each with the owners of its rows."""
        for number, name in enumerate(self._names):
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            written = self._written[rows]
            claims = Claims(
                np.repeat(self._owner[rows], written), np.repeat(self._counts[rows], written)
            )
            if claims.counts.any():
                yield name, claims

    def places(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield where a recording's rows lie: an object, its first row and the row after."""
        theirs = (self._owner == position) & self._counts & (self._written > 0)
        for number in np.unique(self._object[theirs]).tolist():
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            stops = np.cumsum(self._written[rows])
            starts = stops - self._written[rows]
            for at in np.flatnonzero(theirs[rows]).tolist():
                yield self._names[number], int(starts[at]), int(stops[at])


def read_index(store: OutputStore, rows: PartRows = SEGMENT_ROWS) -> Index:
    """Read the index of the output folder of a run that wrote segments, or labels.

    Raises:
        ConfigError: the folder is not the output of a run, or of one that wrote the other.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    return index_of(store, outcomes_names(store), Ledger.load(store).resolve(()), rows)


def outcomes_names(store: OutputStore) -> list[str]:
    """Return the names of a run's outcomes objects; empty if it has just begun.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer.
    """
    names = store.names(OUTCOMES_FOLDER)
    if not names and not store.exists(CONFIG_NAME):
        raise ConfigError(
            f"reading {redact_uri(store.uri)}: found neither outcomes nor _run/, expected the "
            "output "
            "folder of a run; check the address"
        )
    return names


def index_of(
    store: OutputStore, names: Sequence[str], settlement: CommitResolution, rows: PartRows
) -> Index:
    """Return the index of outcomes objects, given which of their rows count."""
    parts, objects = _parts(store, names, settlement.keep, rows)
    recordings = _recordings(parts, settlement.complete_ids)
    owner = pc.index_in(parts["recording_id"], value_set=recordings["recording_id"])
    # Recordings none of whose parts count have no position; nor do their rows.
    parts = parts.append_column("owner", pc.fill_null(owner, -1).cast(pa.int64()))
    return Index(recordings, parts, objects)


_PARTS = pa.schema(
    [
        *(OUTCOMES.field(name) for name in _PART_COLUMNS[:-1]),
        pa.field("object", pa.int64()),
        pa.field("counts", pa.bool_()),
    ]
)


def _parts(
    store: OutputStore, names: Sequence[str], keep: dict[str, np.ndarray], rows: PartRows
) -> tuple[pa.Table, list[str]]:
    """Return the outcomes rows, with the numbers of the objects they name, and those objects."""
    objects: dict[str, int] = {}
    tables = [_PARTS.empty_table()]
    for batch, counts in counted(store, keep, _PART_COLUMNS, names):
        named = batch.column("segments_object").to_pylist()
        _refuse_others(store, named, rows)
        numbers = [-1 if name is None else objects.setdefault(name, len(objects)) for name in named]
        table = pa.Table.from_batches([batch]).drop_columns(["segments_object"])
        table = table.append_column("object", pa.array(numbers, pa.int64()))
        tables.append(table.append_column("counts", pa.array(counts)).cast(_PARTS))
    return pa.concat_tables(tables).combine_chunks(), list(objects)


_PIPELINE_OF = {
    SEGMENT_ROWS.folder: ("the segments of a transcription", "transcribed"),
    LABEL_ROWS.folder: ("the labels of a classification", "classified"),
}


def _refuse_others(store: OutputStore, named: Iterable[str | None], rows: PartRows) -> None:
    if all(name is None or name.startswith(f"{rows.folder}/") for name in named):
        return
    other = LABEL_ROWS if rows is SEGMENT_ROWS else SEGMENT_ROWS
    raise ConfigError(
        f"reading {redact_uri(store.uri)}: found {other.folder}/, expected "
        f"{_PIPELINE_OF[rows.folder][0]}: this run {_PIPELINE_OF[other.folder][1]}; read its table "
        f"of {other.folder} as it is"
    )


def _recordings(parts: pa.Table, complete_ids: pa.Array) -> pa.Table:
    """Return a row per recording with parts that count, sorted by URI."""
    parts = parts.filter(parts["counts"])
    failed = pc.equal(parts["status"], "failed")
    table = parts.append_column("failed", failed).append_column("heard", pc.invert(failed))
    kinds = {
        "uri": "first", "size_bytes": "first", "etag": "first", "part_end_s": "max",
        "failed": "any", "heard": "any", "segments_written": "sum",
    }  # fmt: skip
    groups = table.group_by("recording_id", use_threads=False).aggregate(list(kinds.items()))
    ids = groups["recording_id"]
    columns = {name: groups[f"{name}_{kind}"] for name, kind in kinds.items()}
    return pa.table(
        {
            "recording_id": ids,
            "duration_s": pc.fill_null(columns.pop("part_end_s"), 0.0),
            "language": _languages(parts, ids),
            "complete": pc.is_in(ids, value_set=complete_ids),
            "segments": columns.pop("segments_written"),
            **columns,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recordings and segments are read.

    Raises:
        ConfigError: a language is unknown, or the limit is not between 0 and 1.
    """

    languages: tuple[str, ...] = ()
    """Codes or names; only segments in them are read, and recordings that have some."""
    uris: tuple[str, ...] = ()
    """Shell patterns; a recording's URI has to match one."""
    min_confidence: float = 0.0
    """Of a segment."""
    drop_known_hallucinations: bool = False
    """Whether segments marked by `known_hallucination` are skipped."""
    partial: bool = False
    """Whether unfinished recordings are read."""

    def __post_init__(self) -> None:
        try:
            codes = tuple(resolve_language(language) for language in self.languages)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        object.__setattr__(self, "languages", codes)
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ConfigError(
                f"selecting segments: found a least confidence of {self.min_confidence:g}, "
                "expected a share between 0 and 1; correct it"
            )

    def segments(self, rows: pa.Table) -> np.ndarray:
        """Return a mask of the segments that are read."""
        keep = np.ones(rows.num_rows, dtype=bool)
        if self.languages:
            codes = pa.array(self.languages, pa.string())
            keep &= pc.is_in(rows["language"], value_set=codes).to_numpy()
        if self.min_confidence:
            confident = pc.greater_equal(rows["confidence"], self.min_confidence)
            keep &= pc.fill_null(confident, False).to_numpy()
        if self.drop_known_hallucinations:
            keep &= ~pc.fill_null(rows["known_hallucination"], False).to_numpy()
        return keep


def chosen(index: Index, selection: Selection) -> np.ndarray:
    """Return a mask of an index's recordings that are read, as far as outcomes tell."""
    table = index.recordings
    wanted: np.ndarray = table["heard"].to_numpy().copy()
    if not selection.partial:
        wanted &= table["complete"].to_numpy()
    if selection.uris:
        for at, uri in enumerate(table["uri"]):
            wanted[at] &= any(fnmatch.fnmatchcase(uri.as_py(), each) for each in selection.uris)
    return wanted


def recordings(
    store: OutputStore,
    index: Index,
    wanted: np.ndarray,
    selection: Selection,
    *,
    columns: Sequence[str] = TEXT_COLUMNS,
) -> Iterator[tuple[int, Recording]]:
    """Yield the recordings of a mask with their positions in the index, sorted by URI.

    Of the segments table, `columns` are read, `TEXT_COLUMNS` at least.

    Raises:
        CorpusAsrError: an object does not hold what its outcomes say.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    counts = np.where(wanted, index.recordings["segments"].to_numpy(), 0)
    with ExternalSort(counts, order=_ORDER) as sorting:
        schema = pa.schema([SEGMENTS.field(name) for name in columns])
        for _, rows, claims in claimed_rows(store, index, dict(index.objects()), schema):
            keep = claims.counts & wanted[claims.owners] & selection.segments(rows)
            sorting.add(rows.filter(pa.array(keep)), claims.owners[keep])
        by_owner = sorting.by_owner()
        following = next(by_owner, None)
        for position, row in _wanted_rows(index, wanted):
            if following is not None and following[0] == position:
                yield position, Recording.of(row, following[1].to_pylist())
                following = next(by_owner, None)
            elif not selection.languages:
                yield position, Recording.of(row, ())


def _wanted_rows(index: Index, wanted: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    for start in range(0, len(index), _INDEX_CHUNK_ROWS):
        rows = index.recordings.slice(start, _INDEX_CHUNK_ROWS).to_pylist()
        yield from ((at, row) for at, row in enumerate(rows, start) if wanted[at])


def claimed_rows(
    store: OutputStore, index: Index, claims: Mapping[str, Claims], schema: pa.Schema
) -> Iterator[tuple[str, pa.Table, Claims]]:
    """Yield the rows of objects that the index names, a bounded number at a time.

    `schema` has the columns to read, `recording_id` among them.

    Raises:
        CorpusAsrError: an object does not hold what its outcomes say.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    ids = index.recordings["recording_id"].combine_chunks()
    seen = dict.fromkeys(claims, 0)
    for name, table in store.read_tables(claims, schema):
        whole, start = claims[name], seen[name]
        stop = seen[name] = start + table.num_rows
        theirs = Claims(whole.owners[start:stop], whole.counts[start:stop])
        if stop > len(whole.owners) or not _are_of(table, ids, theirs):
            raise _broken(store, name, whole, stop)
        yield name, table, theirs
    for name, whole in claims.items():
        if seen[name] != len(whole.owners):
            raise _broken(store, name, whole, seen[name])


def _are_of(table: pa.Table, ids: pa.Array, claims: Claims) -> bool:
    owners = pa.array(claims.owners[claims.counts])
    expected = pa.chunked_array([ids.take(owners)], pa.string())
    return bool(table["recording_id"].filter(pa.array(claims.counts)).equals(expected))


def _broken(store: OutputStore, name: str, claims: Claims, found: int) -> CorpusAsrError:
    return CorpusAsrError(
        f"reading {redact_uri(store.address(name))}: found {found} rows or more, or those of other "
        f"recordings, expected the {len(claims.owners)} that its outcomes say; restore it, or "
        "remove it to have its recordings transcribed again"
    )
