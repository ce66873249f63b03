"""A run's recordings with their segments, read from its tables in bounded memory.

An index made of outcomes says which rows of the segments count and whose they are, in less than a
kilobyte per recording. Parts of a recording may lie in different objects: an external sort on local
disk brings them together.
"""

import fnmatch
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr import confidence
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.languages import resolve_language
from corpus_asr.schemas import SEGMENTS
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn, Word
from corpus_asr.speakers.turns import with_speakers
from corpus_asr.storage.run_state.corrections import Corrector
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, outcomes_names
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    SEGMENT_ROWS,
    OutputStore,
    PartRows,
    projected,
    table_of,
)
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.units import MEBIBYTE

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


Turns = Mapping[str, Sequence[SpeakerTurn]]
"""Turns of speakers by `recording_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording and its transcript."""

    recording_id: str
    uri: str
    duration_s: float
    """Of what was decoded."""
    language: str | None
    """Of most of its parts."""
    failed: bool = False
    """Wholly or in part."""
    segments: tuple[Segment, ...] = ()
    """Sorted by time."""
    channels: tuple[int | None, ...] = ()
    """Of each segment; None where channels were mixed."""
    model: str | None = None
    """Checkpoint of the run, as configured."""
    turns: tuple[SpeakerTurn, ...] | None = None
    """Who speaks when; None where the run did not look for speakers."""
    missing: tuple[MissingWord, ...] | None = None
    """Words of a given text that are not in the audio; None: no text was given, or not known."""

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        segments: Sequence[Mapping[str, Any]],
        model: str | None = None,
    ) -> "Recording":
        """Return a recording of a row of `Index.recordings` and rows of the segments table."""
        return cls(
            model=model,
            **{name: row[name] for name in ("recording_id", "uri", "duration_s", "language")},
            failed=row["failed"],
            segments=tuple(segment_from(each) for each in segments),
            channels=tuple(each["channel"] for each in segments),
        )

    def spoken_by(self, turns: Sequence[SpeakerTurn]) -> "Recording":
        """Return it with the speakers of its segments and words, given the turns of all channels.

        Segments with words are split where the speaker changes.
        """
        said = [
            (segment, channel)
            for channel, segments in self.by_channel().items()
            for segment in with_speakers(
                segments, [turn for turn in turns if turn.channel == channel]
            )
        ]
        said.sort(key=lambda pair: pair[0].start_s)
        return replace(
            self,
            segments=tuple(segment for segment, _ in said),
            channels=tuple(channel for _, channel in said),
            turns=tuple(turns),
        )

    def only(self, speakers: Collection[str]) -> "Recording":
        """Return it with what these speakers say alone."""
        pairs = zip(self.segments, self.channels, strict=True)
        said = [(segment, channel) for segment, channel in pairs if segment.speaker in speakers]
        return replace(
            self,
            segments=tuple(segment for segment, _ in said),
            channels=tuple(channel for _, channel in said),
            turns=tuple(turn for turn in self.turns or () if turn.speaker in speakers),
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
    """Return a segment of a row of the table; columns that were not read are empty."""
    words = row.get("words")
    optional = (
        "language", "language_probability", "no_speech_prob", "speech_fraction", "text_logprob",
    )  # fmt: skip
    numbers = ("confidence", "avg_logprob", "compression_ratio", "temperature")
    values: dict[str, Any] = {name: row.get(name) for name in optional}
    values |= {name: row.get(name) or 0.0 for name in numbers}
    return Segment(
        start_s=row["start_s"],
        end_s=row["end_s"],
        text=row["text"] or "",
        tokens=tuple(row.get("tokens") or ()),
        task=row.get("task") or "transcribe",
        known_hallucination=bool(row.get("known_hallucination")),
        corrected=bool(row.get("corrected")),
        words=None if words is None else tuple(map(_word, words)),
        **values,
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
    """Whose the rows of one object of segments are, in their order."""

    owners: np.ndarray
    """Positions in the index."""
    counts: np.ndarray
    """False if another commit of the same part counts."""


class Index:
    """The recordings of an output folder, sorted by URI.

    `recordings` has recording_id, uri, size_bytes and etag (of what was transcribed), duration_s,
    language, failed (a part did), succeeded (a part did not), complete (no part is missing), and
    segments.
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
        """Yield the objects with rows that count, and the owners of their rows."""
        for number, name in enumerate(self._names):
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            written = self._written[rows]
            claims = Claims(
                np.repeat(self._owner[rows], written), np.repeat(self._counts[rows], written)
            )
            if claims.counts.any():
                yield name, claims

    def places(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield where a recording's rows lie: an object, the first row, and the row after."""
        theirs = (self._owner == position) & self._counts & (self._written > 0)
        for number in np.unique(self._object[theirs]).tolist():
            rows = self._order[self._starts[number] : self._starts[number + 1]]
            stops = np.cumsum(self._written[rows])
            starts = stops - self._written[rows]
            for at in np.flatnonzero(theirs[rows]).tolist():
                yield self._names[number], int(starts[at]), int(stops[at])


def model_of(store: OutputStore) -> str | None:
    """Return the checkpoint of a run, as configured; None where its configuration is gone."""
    config = store.read_json(CONFIG_NAME) or {}
    checkpoint: str | None = config.get("model", {}).get("checkpoint")
    return checkpoint


def read_index(store: OutputStore, rows: PartRows = SEGMENT_ROWS) -> Index:
    """Read the index of the output folder of a run that wrote segments, or labels."""
    with RunTables(store, names=outcomes_names(store)) as tables:
        return index_of(store, tables, rows)


def index_of(store: OutputStore, tables: RunTables, rows: PartRows) -> Index:
    """Return the index of an output folder, given what counts of it."""
    _refuse_others(store, [name for (name,) in tables.rows(_NAMES)], rows)
    parts = tables.table(_PARTS)
    # Objects of segments as numbers: their names would be most of the memory of an index.
    objects = parts["segments_object"].combine_chunks().dictionary_encode()
    parts = parts.append_column("object", objects.indices).drop_columns(["segments_object"])
    return Index(tables.table(_RECORDINGS), parts, objects.dictionary.to_pylist())


_NAMES = "select distinct segments_object from outcomes where segments_object is not null"
_RECORDINGS = """
select recording_id, uri, size_bytes, etag, coalesce(end_s, 0.0) as duration_s,
       languages[1] as language, failed, succeeded, complete, segments::bigint as segments
from recordings order by uri, recording_id
"""
# Rows that do not count are there for their places: segments lie in the order of outcomes.
_PARTS = """
with placed as (
  select recording_id, row_number() over (order by uri, recording_id) - 1 as owner from recordings)
select segments_object, coalesce(owner, -1) as owner, segments_written,
       coalesce(counts, false) as counts
from outcomes left join standing using (id) left join placed using (recording_id)
where segments_object is not null order by id
"""
_PIPELINE_OF = {
    SEGMENT_ROWS.folder: ("the segments of a transcription", "transcribed"),
    LABEL_ROWS.folder: ("the labels of a classification", "classified"),
}


def _refuse_others(store: OutputStore, named: Iterable[str | None], rows: PartRows) -> None:
    if all(name is None or table_of(name) == rows.folder for name in named):
        return
    other = LABEL_ROWS if rows is SEGMENT_ROWS else SEGMENT_ROWS
    raise ConfigError(
        f"reading {redact_uri(store.uri)}: found {other.folder}/, expected "
        f"{_PIPELINE_OF[rows.folder][0]}: this run {_PIPELINE_OF[other.folder][1]}; read its table "
        f"of {other.folder} as it is"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recordings and segments are read."""

    languages: tuple[str, ...] = ()
    """Codes or names of those of segments; recordings without such segments are skipped."""
    uris: tuple[str, ...] = ()
    """Shell patterns, one of which has to match."""
    min_confidence: float = 0.0
    drop_known_hallucinations: bool = False
    partial: bool = False
    """Also unfinished recordings."""
    removed: bool = False
    """Also segments whose whole text a person removed."""
    speakers: tuple[str, ...] = ()
    """Names of those whose segments are meant, where speakers are known."""

    def __post_init__(self) -> None:
        try:
            codes = tuple(resolve_language(language) for language in self.languages)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        object.__setattr__(self, "languages", codes)
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ConfigError(
                f"selecting segments: found a least confidence of {self.min_confidence:g}, "
                "expected a fraction between 0 and 1; correct it"
            )

    def segments(self, rows: pa.Table) -> np.ndarray:
        """Return a mask of the selected segments."""
        keep = np.ones(rows.num_rows, dtype=bool)
        if self.languages:
            codes = pa.array(self.languages, pa.string())
            keep &= pc.is_in(rows["language"], value_set=codes).to_numpy()
        if self.min_confidence:
            confident = pc.greater_equal(rows["confidence"], self.min_confidence)
            keep &= pc.fill_null(confident, False).to_numpy()
        if self.drop_known_hallucinations:
            keep &= ~pc.fill_null(rows["known_hallucination"], False).to_numpy()
        if "corrected" in rows.schema.names and not self.removed:
            keep &= ~pc.and_(rows["corrected"], pc.equal(rows["text"], "")).to_numpy()
        return keep


def chosen(index: Index, selection: Selection) -> np.ndarray:
    """Return a mask of the selected recordings, as far as outcomes tell."""
    table = index.recordings
    wanted = matching(index, selection)
    wanted &= table["succeeded"].to_numpy()
    if not selection.partial:
        wanted &= table["complete"].to_numpy()
    return wanted


def matching(index: Index, selection: Selection) -> np.ndarray:
    """Return a mask of the recordings that are meant, whatever became of them."""
    uris = index.recordings["uri"].to_pylist() if selection.uris else []
    if not uris:
        return np.ones(len(index), dtype=bool)
    patterns = selection.uris
    return np.array([any(fnmatch.fnmatchcase(uri, each) for each in patterns) for uri in uris])


def recordings(
    store: OutputStore,
    index: Index,
    wanted: np.ndarray,
    selection: Selection,
    *,
    columns: Sequence[str] = TEXT_COLUMNS,
    model: str | None = None,
    corrector: Corrector | None = None,
    turns: Turns | None = None,
    missing: Mapping[str, tuple[MissingWord, ...]] | None = None,
) -> Iterator[tuple[int, Recording]]:
    """Yield the recordings of a mask with their positions in the index, sorted by URI.

    `columns` of the segments table include `TEXT_COLUMNS`; `model` is said to be theirs. With a
    corrector of this index, segments are selected by their corrections; with the turns of speakers
    by recording, segments have speakers; `missing` are words that a known text has beyond them.
    """

    def made(row: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> Recording:
        recording = Recording.of(row, segments, model)
        recording = replace(recording, missing=(missing or {}).get(recording.recording_id))
        if turns is None:
            return recording
        spoken = recording.spoken_by(turns.get(recording.recording_id, ()))
        return spoken.only(selection.speakers) if selection.speakers else spoken

    counts = np.where(wanted, index.recordings["segments"].to_numpy(), 0)
    with ExternalSort(counts, order=_ORDER) as sorting:
        schema = projected(SEGMENTS, columns)
        for _, rows, claims in claimed_rows(store, index, dict(index.objects()), schema):
            counted = claims.counts & wanted[claims.owners]
            if corrector is not None:
                rows = corrector.apply(rows, np.where(counted, claims.owners, -1))
            keep = counted & selection.segments(rows)
            sorting.add(rows.filter(pa.array(keep)), claims.owners[keep])
        by_owner = sorting.by_owner()
        # Recordings without segments, such as silent ones, have no rows: they are put in between.
        following = next(by_owner, None)
        for position, row in _wanted_rows(index, wanted):
            if following is not None and following[0] == position:
                yield position, made(row, following[1].to_pylist())
                following = next(by_owner, None)
            elif not selection.languages:
                yield position, made(row, ())


def _wanted_rows(index: Index, wanted: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    for start in range(0, len(index), _INDEX_CHUNK_ROWS):
        rows = index.recordings.slice(start, _INDEX_CHUNK_ROWS).to_pylist()
        yield from ((at, row) for at, row in enumerate(rows, start) if wanted[at])


def claimed_rows(
    store: OutputStore, index: Index, claims: Mapping[str, Claims], schema: pa.Schema
) -> Iterator[tuple[str, pa.Table, Claims]]:
    """Yield the rows of objects that the index names, a bounded number at a time.

    `schema` has the columns to read, `recording_id` among them.
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


# Memory is one bucket of rows with their words; files are as many as buckets.
BUCKET_ROWS = 50_000
WAITING_BYTES = 64 * MEBIBYTE
OWNER = "owner"


class ExternalSort:
    """Rows of many recordings grouped by recording, through buckets on local disk.

    Rows come in any order, each with its owner's number; they leave by owner, sorted by `order`.
    Memory holds the rows that wait to be written, and then one bucket: as many owners as have
    `bucket_rows` rows, or one that has more.
    """

    def __init__(
        self,
        rows_of_owner: np.ndarray,
        *,
        order: Sequence[str],
        bucket_rows: int = BUCKET_ROWS,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        before = np.cumsum(rows_of_owner) - rows_of_owner
        # By number, so that buckets in their order hold owners in theirs.
        self._bucket_of_owner = before // bucket_rows
        self._order = [(OWNER, "ascending"), *((name, "ascending") for name in order)]
        self._waiting_limit = waiting_bytes
        self._waiting: dict[int, list[pa.Table]] = {}
        self._waiting_bytes = 0
        self._folder = tempfile.TemporaryDirectory(prefix="corpus-asr-export-")

    def __enter__(self) -> "ExternalSort":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def add(self, rows: pa.Table, owners: np.ndarray) -> None:
        """Take rows, each with its owner's number."""
        rows = rows.append_column(OWNER, pa.array(owners, pa.int64()))
        buckets = self._bucket_of_owner[owners]
        order = np.argsort(buckets, kind="stable")
        for positions in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
            if len(positions):
                some = rows.take(pa.array(positions))
                self._waiting.setdefault(int(buckets[positions[0]]), []).append(some)
                self._waiting_bytes += some.nbytes
        if self._waiting_bytes > self._waiting_limit:
            self._write_waiting()

    def by_owner(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of each owner that has some, by number, in order."""
        self._write_waiting()
        for bucket in range(int(self._bucket_of_owner.max(initial=-1)) + 1):
            if not self._path(bucket).exists():
                continue
            # All at once: Arrow takes as long to sort a few rows as thousands.
            rows = self._read(bucket).sort_by(self._order).combine_chunks()
            owners = rows[OWNER].to_numpy()
            rows = rows.drop_columns([OWNER])
            starts = np.flatnonzero(np.diff(owners, prepend=-1))
            stops = np.append(starts[1:], len(owners))
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield int(owners[start]), rows.slice(start, stop - start)

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket}.arrows"

    def _write_waiting(self) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        for bucket, tables in self._waiting.items():
            rows = pa.concat_tables(tables).combine_chunks()
            # One stream after the other in a file that is not kept open: there may be thousands.
            with (
                self._path(bucket).open("ab") as file,
                pa.ipc.new_stream(file, rows.schema, options=options) as stream,
            ):
                stream.write_table(rows)
        self._waiting, self._waiting_bytes = {}, 0

    def _read(self, bucket: int) -> pa.Table:
        tables, path = [], self._path(bucket)
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                with pa.ipc.open_stream(file) as stream:
                    tables.append(stream.read_all())
        return pa.concat_tables(tables)
