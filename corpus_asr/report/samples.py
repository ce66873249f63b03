"""What a page shows of segments and recordings: samples to read, lengths, a table of some.

Places of samples are chosen while segments are read; what is chosen is read again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.report.accuracy.scoring import WITHOUT_BLANKS
from corpus_asr.report.confidences import read_confidences
from corpus_asr.report.recordings import (
    RecordingRow,
    count_lengths,
    list_recordings,
    num_recordings,
    recordings_of,
)
from corpus_asr.schemas import LABELS, SEGMENTS
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, PartRows, projected

SAMPLES = 12  # of each sort
# Edges of bins by length: about even steps on a logarithmic scale, at lengths people say.
DURATION_EDGES_S = {
    "10 s": 10, "30 s": 30, "1 min": 60, "3 min": 180, "10 min": 600, "30 min": 1800, "1 h": 3600,
    "3 h": 10_800,
}  # fmt: skip
# Up to so many segments all their words are counted; of more, those around the samples.
COUNT_ALL_WORDS = 100_000
_AROUND = 500
# One recording of noise would else fill the list.
_MOST_OF_A_RECORDING = 2
_ALTERNATIVES = 3

_TEXT = projected(SEGMENTS, ("text", "language"))
_PLACE = ("recording_id", "uri", "channel", "start_s", "end_s")
_SAMPLE = projected(SEGMENTS, (*_PLACE, "text", "language", "confidence", "words"))
_WINDOW = projected(LABELS, (*_PLACE, "part", "window", "rank", "label", "probability"))
# Rows with the smallest keys so far. Of the unsure many more than are shown: most may be of one
# recording, of which two are taken.
_NONE = "create or replace table {table} (key double, source int, row bigint, recording_id varchar)"
_MOST = {"unsure": 50 * SAMPLES, "drawn": SAMPLES}
_SMALLEST = """
create or replace table {table} as
from (from {table} union all select {key}::double, source, row, recording_id from arrived
      where counts and confidence is not null)
order by key, source, row limit {most}
"""
_SHOWN = """
select name, row from {table} join sources using (source)
qualify row_number() over (partition by recording_id order by key, source, row) <= $most
order by key, source, row limit $samples
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A segment of a transcription, or a window of a classification."""

    recording_id: str
    uri: str
    channel: int | None
    start_s: float
    end_s: float
    text: str
    language: str | None
    confidence: float
    words: tuple[tuple[str, float], ...] = ()
    """With their probabilities; empty without word times."""
    labels: tuple[tuple[str, float], ...] = ()
    """The likeliest labels of a window, with their probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a page shows of single recordings."""

    durations: tuple[int, ...]
    """Recordings by length, in the bins between `DURATION_EDGES_S`."""
    recordings: tuple[RecordingRow, ...]
    """The least confident, the longest and the slowest."""
    num_recordings: int
    of_samples: Mapping[str, RecordingRow]
    """The recordings of the samples, by identity."""
    unsure: tuple[Sample, ...]
    """Those of least confidence, at most two of a recording."""
    random: tuple[Sample, ...]
    words: int | None
    """None for a classification."""
    words_estimated: bool


class Sampler:
    """Chooses samples from the segments or labels of a store while these are read."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._labels = False
        self._words: int | None = 0  # None where not all are read

    def read(self, tables: RunTables, rows: PartRows) -> None:
        """Read the confidences of all segments or labels, and choose."""
        self._labels = rows is LABEL_ROWS
        [(written,)] = tables.rows("select coalesce(sum(segments_written), 0) from outcomes")
        if self._labels or written > COUNT_ALL_WORDS:
            self._words = None
        for table in _MOST:
            tables.execute(_NONE.format(table=table))
        read_confidences(
            self._store, tables, rows,
            texts=() if self._words is None else _TEXT.names, each=partial(self._choose, tables),
        )  # fmt: skip

    def _choose(self, tables: RunTables) -> None:
        for table, key in (("unsure", "confidence"), ("drawn", "draw")):
            tables.execute(_SMALLEST.format(table=table, key=key, most=_MOST[table]))
        if self._words is not None:
            self._words += count_words(
                tables.table("select text, language from arrived where counts")
            )

    def details(self, tables: RunTables) -> Details:
        """Read what was chosen."""
        lowest, drawn = (
            tables.rows(_SHOWN.format(table=table), most=most, samples=SAMPLES)
            for table, most in (("unsure", _MOST_OF_A_RECORDING), ("drawn", SAMPLES))
        )
        unsure, random = (tuple(map(self._sample, places)) for places in (lowest, drawn))
        words, estimated = self._words, self._words is None and not self._labels
        return Details(
            durations=count_lengths(tables, list(DURATION_EDGES_S.values())),
            recordings=tuple(list_recordings(tables)),
            num_recordings=num_recordings(tables),
            of_samples=recordings_of(tables, {one.recording_id: () for one in (*unsure, *random)}),
            unsure=unsure,
            random=random,
            words=self._estimated_words(tables, drawn) if estimated else words,
            words_estimated=estimated,
        )

    def _estimated_words(self, tables: RunTables, drawn: Sequence[tuple[str, int]]) -> int:
        # The samples are drawn evenly over all rows, so the rows around them are a fair draw, too.
        total: int
        [(total,)] = tables.rows("select coalesce(sum(rows), 0)::bigint from scored where counts")
        words = rows = 0
        for name, place in drawn:
            start = max(0, place - _AROUND)
            table = self._store.rows(name, _TEXT, [(start, place + _AROUND)])
            words += count_words(table)
            rows += table.num_rows
        return round(total * words / max(1, rows))

    def _sample(self, chosen: tuple[str, int]) -> Sample:
        name, place = chosen
        if self._labels:
            rows = self._store.rows(name, _WINDOW, [(place, place + _ALTERNATIVES)]).to_pylist()
            return _window(rows)
        row = self._store.rows(name, _SAMPLE, [(place, place + 1)]).to_pylist()[0]
        words = tuple((word["word"], word["probability"]) for word in row.pop("words") or ())
        return Sample(**row, words=words)


def count_words(rows: pa.Table) -> int:
    """Count words in `text`; characters where the `language` writes no spaces between words."""
    letters = pc.is_in(rows["language"], value_set=pa.array(sorted(WITHOUT_BLANKS)))
    counts = pc.if_else(
        letters,
        pc.count_substring_regex(rows["text"], r"\S"),
        pc.count_substring_regex(rows["text"], r"\S+"),
    )
    return int(pc.sum(counts).as_py() or 0)


def _window(rows: Sequence[dict[str, Any]]) -> Sample:
    first = rows[0]
    same = ("recording_id", "part", "window")
    labels = [row for row in rows if all(row[key] == first[key] for key in same)]
    return Sample(
        **{name: first[name] for name in _PLACE},
        text="",
        language=None,
        confidence=first["probability"],
        labels=tuple((row["label"], row["probability"]) for row in labels),
    )
