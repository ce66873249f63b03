"""From the tables of a run to recordings, one after the other, sorted by address.

In: an output folder, finished or not, and what is asked for. Out: recordings with their segments,
in bounded memory however large the corpus is. Parts of a recording may lie in different objects,
and commits may hold some twice: rows that count are brought together through this machine's disk
(`spill.py`). Knows nothing of the shapes they are written in.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr import confidence
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.export.index import Claims, Index
from corpus_asr.export.recording import Recording, segment_from
from corpus_asr.export.spill import Spill
from corpus_asr.languages import resolve_language
from corpus_asr.schemas import SEGMENTS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

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
_INDEX_CHUNK_ROWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is asked for.

    Raises:
        ConfigError: there is no such language, or the bound is none.
    """

    languages: tuple[str, ...] = ()
    """Codes or names; segments in other languages are left out, and recordings without any."""
    uris: tuple[str, ...] = ()
    """Patterns as shells have them, of which a recording's address has to match one."""
    min_confidence: float = 0.0
    """Segments below are left out."""
    drop_known_hallucinations: bool = False
    """Whether segments marked by `known_hallucination` are left out."""
    partial: bool = False
    """Whether recordings are exported that are not done yet."""

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


def chosen(index: Index, selection: Selection) -> np.ndarray:
    """Tell which recordings of an index are asked for, as far as that shows without segments."""
    table = index.recordings
    wanted: np.ndarray = table["heard"].to_numpy().copy()
    if not selection.partial:
        wanted &= table["complete"].to_numpy()
    if selection.uris:
        wanted &= _matching(table["uri"], selection.uris)
    return wanted


def _matching(uris: pa.ChunkedArray, patterns: Sequence[str]) -> np.ndarray:
    return np.array(
        [
            any(fnmatch.fnmatchcase(uri.as_py(), pattern) for pattern in patterns)
            for chunk in uris.chunks
            for uri in chunk
        ],
        dtype=bool,
    )


def recordings(
    store: OutputStore,
    index: Index,
    wanted: np.ndarray,
    selection: Selection,
    *,
    columns: Sequence[str] = TEXT_COLUMNS,
) -> Iterator[tuple[int, Recording]]:
    """Yield the recordings asked for, with their positions in the index, by address.

    Args:
        store: the output folder.
        index: what it holds.
        wanted: which recordings of the index.
        selection: which of their segments.
        columns: of the segments table, `TEXT_COLUMNS` at least.

    Raises:
        CorpusAsrError: an object does not hold what its outcomes say.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    counts = np.where(wanted, index.recordings["segments"].to_numpy(), 0)
    with Spill(counts, order=_ORDER) as spill:
        schema = pa.schema([SEGMENTS.field(name) for name in columns])
        for _, rows, claims in claimed_rows(store, index, dict(index.objects()), schema):
            keep = claims.counts & wanted[claims.owners] & _selected(rows, selection)
            spill.add(rows.filter(pa.array(keep)), claims.owners[keep])
        found = spill.by_owner()
        following = next(found, None)
        for position, row in _wanted_rows(index, wanted):
            segments = None
            if following is not None and following[0] == position:
                segments, following = following[1], next(found, None)
            if segments is not None or not selection.languages:
                yield position, _recording(row, segments)


def claimed_rows(
    store: OutputStore, index: Index, claims: Mapping[str, Claims], schema: pa.Schema
) -> Iterator[tuple[str, pa.Table, Claims]]:
    """Yield the rows of objects, a bounded number at a time, each with what its rows are.

    Args:
        store: the output folder.
        index: what it holds.
        claims: the objects, of those that the index names.
        schema: the columns to read, `recording_id` among them.

    Raises:
        CorpusAsrError: an object does not hold what its outcomes say.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    ids = index.recordings["recording_id"].combine_chunks()
    seen = dict.fromkeys(claims, 0)
    for name, table in store.read_tables(claims, schema):
        theirs, start = claims[name], seen[name]
        stop = seen[name] = start + table.num_rows
        found = Claims(theirs.owners[start:stop], theirs.counts[start:stop])
        if stop > len(theirs.owners) or not _are_of(table, ids, found.owners, found.counts):
            raise _broken(store, name, theirs, stop)
        yield name, table, found
    for name, theirs in claims.items():
        if seen[name] != len(theirs.owners):
            raise _broken(store, name, theirs, seen[name])


def _are_of(table: pa.Table, ids: pa.Array, owners: np.ndarray, counts: np.ndarray) -> bool:
    expected = pa.chunked_array([ids.take(pa.array(owners[counts]))], pa.string())
    return bool(table["recording_id"].filter(pa.array(counts)).equals(expected))


def _broken(store: OutputStore, name: str, claims: Claims, found: int) -> CorpusAsrError:
    return CorpusAsrError(
        f"reading {redact_uri(store.address(name))}: found {found} rows or more, or those of other "
        f"recordings, expected the {len(claims.owners)} that its outcomes say; restore it, or "
        "remove it to have its recordings transcribed again"
    )


def _selected(rows: pa.Table, selection: Selection) -> np.ndarray:
    keep = np.ones(rows.num_rows, dtype=bool)
    if selection.languages:
        codes = pa.array(selection.languages, pa.string())
        keep &= pc.is_in(rows["language"], value_set=codes).to_numpy()
    if selection.min_confidence:
        sure = pc.greater_equal(rows["confidence"], selection.min_confidence)
        keep &= pc.fill_null(sure, False).to_numpy()
    if selection.drop_known_hallucinations:
        keep &= ~pc.fill_null(rows["known_hallucination"], False).to_numpy()
    return keep


def _wanted_rows(index: Index, wanted: np.ndarray) -> Iterator[tuple[int, dict[str, object]]]:
    for start in range(0, len(index), _INDEX_CHUNK_ROWS):
        rows = index.recordings.slice(start, _INDEX_CHUNK_ROWS).to_pylist()
        for position, row in enumerate(rows, start):
            if wanted[position]:
                yield position, row


def _recording(row: dict[str, object], segments: pa.Table | None) -> Recording:
    rows = [] if segments is None else segments.to_pylist()
    names = ("recording_id", "uri", "duration_s", "language", "failed")
    values: dict[str, object] = {name: row[name] for name in names}
    return Recording(
        **values,  # type: ignore[arg-type]
        segments=tuple(segment_from(row) for row in rows),
        channels=tuple(row["channel"] for row in rows),
    )
