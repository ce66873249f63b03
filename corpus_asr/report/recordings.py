"""A page's table of single recordings: which of them it lists, and what it says of each.

Of all recordings some numbers are held, about 100 bytes each; the addresses of those that are
listed are read again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.storage.run_state.speaker_turns import SPEAKING
from corpus_asr.storage.run_state.tables import OutputStore

# Of each list; up to so many recordings as all lists together, all are listed. With 200 rows of
# 400 bytes the table takes 80 kB, whatever the size of the corpus.
LISTED = 50
LISTS: Mapping[str, tuple[str, str]] = {
    "confidence": ("confidence", "ascending"),
    "longest": ("duration_s", "descending"),
    "slowest": ("took_s", "descending"),
    "missing": ("missing_share", "descending"),
    "gaps": ("gaps_s", "descending"),
}
"""Lists by name, each with the column and the order that choose its recordings."""
STARTED = "partly done"
_SUMS = ("duration_s", "decode_s", "transcribe_s", "segments_written", "speech_without_text_s")
_SOURCE_COLUMNS = ("recording_id", "uri", "size_bytes", "etag")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRow:
    """A recording and what became of it."""

    recording_id: str
    uri: str
    size_bytes: int | None
    etag: str | None
    """With the size, the version that was transcribed."""
    status: str
    """As in the recordings table, or `STARTED`."""
    language: str | None
    """Of most of its parts; in a classification the label."""
    duration_s: float
    segments: int
    """Or labels."""
    confidence: float | None
    """Mean of its segments over time; None without any."""
    decode_errors: int
    extract_s: float
    transcribe_s: float
    """From submission to result, summed over parts."""
    speech_without_text_s: float = 0.0
    """Detected speech in gaps between segments."""
    speakers: int | None = None
    """None where they were not looked for."""
    most_share: float | None = None
    """Of speech, that of the speaker who speaks most; None without any."""
    missing_words: int | None = None
    """Words of its text that are not in the audio; None where no text was aligned."""
    text_words: int | None = None
    """Words of its text."""
    lists: tuple[str, ...] = ()
    """Of `LISTS`, those that it is in."""


class Recordings:
    """All recordings of a run as narrow columns; made from what `count_run` has read.

    Args:
        parts: rows of outcomes that count, in the order of their objects.
        folded: those by recording, of `reconciliation.by_recording`.
        confidence: recording_id, and the sums `weight` and `weighted` of its segments.
        objects: names of the objects of outcomes with their numbers of `parts`.
        speaking: rows of `SPEAKING`, or None.
    """

    def __init__(
        self,
        store: OutputStore,
        *,
        parts: pa.Table,
        folded: pa.Table,
        confidence: pa.Table,
        objects: Sequence[tuple[str, int]],
        speaking: pa.Table | None = None,
    ) -> None:
        self._store = store
        self._parts = parts
        self._objects = [name for name, _ in objects]
        counts = np.array([count for _, count in objects], dtype=np.int64)
        numbers = pa.array(np.repeat(np.arange(len(counts)), counts))
        grouped = (
            parts.select(["recording_id", *_SUMS])
            .append_column("object", numbers)
            .group_by("recording_id")
            .aggregate([*((name, "sum") for name in _SUMS), ("object", "min")])
        )
        ids = grouped["recording_id"].combine_chunks()
        sums = {name: pc.fill_null(grouped[f"{name}_sum"], 0) for name in _SUMS}
        status = pc.if_else(folded["processed"], folded["status"], STARTED)
        folded = folded.append_column("state", status)
        spoken = SPEAKING.empty_table() if speaking is None else speaking
        most, speech = (_aligned(ids, spoken, name) for name in ("most_s", "speech_s"))
        words, missing = (_aligned(ids, folded, name) for name in ("text_words", "missing_words"))
        weight, weighted = (_aligned(ids, confidence, name) for name in ("weight", "weighted"))
        self._table = pa.table(
            {
                "recording_id": ids,
                "object": grouped["object_min"],
                **sums,
                # None are no reason to be looked at; so it is with missing words.
                "gaps_s": pc.if_else(
                    pc.greater(sums["speech_without_text_s"], 0),
                    sums["speech_without_text_s"],
                    None,
                ),
                "took_s": pc.add(sums["decode_s"], sums["transcribe_s"]),
                "status": _aligned(ids, folded, "state"),
                "decode_errors": _aligned(ids, folded, "decode_errors"),
                "confidence": pc.divide(weighted, weight),
                "speakers": _aligned(ids, spoken, "speakers"),
                "most_share": pc.divide(most, speech),
                "text_words": words,
                "missing_words": missing,
                "missing_share": pc.if_else(
                    pc.greater(missing, 0), pc.divide(missing.cast(pa.float64()), words), None
                ),
            }
        )

    @property
    def num_recordings(self) -> int:
        """Recordings with any outcome."""
        return int(self._table.num_rows)

    @property
    def durations_s(self) -> np.ndarray:
        """The length of each, in no order."""
        return np.asarray(self._table["duration_s"])

    def listed(self) -> list[RecordingRow]:
        """Read the first of each of `LISTS`; all of them if they are few."""
        chosen: dict[str, list[str]] = {}
        for name, (column, order) in LISTS.items():
            known = self._table.filter(pc.is_valid(self._table[column]))
            known = known.sort_by([(column, order), ("recording_id", "ascending")])
            for identity in known["recording_id"].slice(0, LISTED).to_pylist():
                chosen.setdefault(identity, []).append(name)
        if self.num_recordings <= len(LISTS) * LISTED:
            for identity in self._table["recording_id"].sort().to_pylist():
                chosen.setdefault(identity, [])
        found = self.of(chosen)
        return [found[identity] for identity in chosen if identity in found]

    def of(self, identities: Mapping[str, Iterable[str]]) -> dict[str, RecordingRow]:
        """Read recordings by their identities, which come with the lists that they are in."""
        ids = pa.array(identities, pa.string())
        rows = self._table.filter(pc.is_in(self._table["recording_id"], value_set=ids))
        languages = self._languages(ids)
        sources = self._sources(rows, ids)
        return {
            row["recording_id"]: RecordingRow(
                **sources[row["recording_id"]],
                status=row["status"],
                language=languages.get(row["recording_id"]),
                duration_s=row["duration_s"],
                segments=row["segments_written"],
                confidence=row["confidence"],
                decode_errors=row["decode_errors"],
                extract_s=row["decode_s"],
                transcribe_s=row["transcribe_s"],
                speech_without_text_s=row["speech_without_text_s"],
                speakers=row["speakers"],
                most_share=row["most_share"],
                missing_words=row["missing_words"],
                text_words=row["text_words"],
                lists=tuple(identities[row["recording_id"]]),
            )
            for row in rows.to_pylist()
        }

    def _languages(self, ids: pa.Array) -> dict[str, str]:
        parts = self._parts.filter(pc.is_in(self._parts["recording_id"], value_set=ids))
        found: dict[str, Counter[str]] = {}
        for row in parts.select(["recording_id", "language", "label"]).to_pylist():
            name = row["label"] or row["language"]
            if name:
                found.setdefault(row["recording_id"], Counter())[name] += 1
        return {identity: names.most_common(1)[0][0] for identity, names in found.items()}

    def _sources(self, rows: pa.Table, ids: pa.Array) -> dict[str, dict[str, Any]]:
        # Each from its first object of outcomes: others have the same address.
        names = sorted({self._objects[number] for number in rows["object"].to_pylist()})
        sources: dict[str, dict[str, Any]] = {}
        for committed in self._store.committed(_SOURCE_COLUMNS, names):
            theirs = committed.rows.filter(pc.is_in(committed.rows["recording_id"], value_set=ids))
            sources |= {row["recording_id"]: row for row in theirs.to_pylist()}
        return sources


def _aligned(ids: pa.Array, table: pa.Table, column: str) -> pa.ChunkedArray:
    """Return a table's column in the order of these recordings; null for those it lacks."""
    places = pc.index_in(ids, value_set=table["recording_id"].combine_chunks())
    return table[column].take(places)
