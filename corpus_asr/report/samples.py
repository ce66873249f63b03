"""What a page shows of segments and recordings: samples to read, lengths, a table of some.

Of each part some numbers are held, of each segment nothing: what is chosen is read again.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.report.accuracy.scoring import WITHOUT_BLANKS
from corpus_asr.report.failures import Failures
from corpus_asr.report.recordings import RecordingRow, Recordings
from corpus_asr.schemas import LABELS, SEGMENTS
from corpus_asr.storage.run_state.tables import LABEL_ROWS, OutputStore, part_rows_named, projected

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


class Gatherer:
    """Chooses recordings and samples from the rows of a store while `load_report` reads them."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self.counted: tuple[pa.Table, pa.Table, pa.Table] | None = None
        """Parts that count, in the order of their outcomes, these by recording, and the sums of
        confidences; set once all have been read."""
        self.speaking: pa.Table | None = None
        """Rows of `SPEAKING`; None where speakers were not looked for."""
        self.failures = Failures(keep=True)
        """Replaced by those that were read."""
        self._labels = False
        self._outcomes_seen: list[tuple[str, int]] = []
        self._rows_seen: dict[str, int] = {}
        # Seeded: the same output gives the same page.
        self._random = np.random.default_rng(0)
        # Many more than are shown: most may be of one recording, of which two are taken.
        self._unsure = _Smallest(50 * SAMPLES)
        self._drawn = _Smallest(SAMPLES)

    def outcomes(self, name: str, num_rows: int) -> None:
        """Take how many of an object's next outcomes count."""
        self._outcomes_seen.append((name, num_rows))

    def part_rows(self, name: str, confidence: pa.Array, ids: pa.Array) -> None:
        """Take the confidence and recording of an object's next rows; null is never chosen."""
        self._labels = part_rows_named([name]) is LABEL_ROWS
        start = self._rows_seen.get(name, 0)
        self._rows_seen[name] = start + len(confidence)
        places = np.flatnonzero(pc.is_valid(confidence).to_numpy(zero_copy_only=False))
        known = confidence.drop_null().to_numpy().astype(np.float64)
        ids = ids.take(pa.array(places))
        self._unsure.add(known, name, start + places, ids)
        self._drawn.add(self._random.random(len(places)), name, start + places, ids)

    def details(self) -> Details:
        """Read what was chosen."""
        assert self.counted is not None, "the rows have passed by"
        parts, folded, confidence = self.counted
        recordings = Recordings(
            self._store,
            parts=parts,
            folded=folded,
            confidence=confidence,
            objects=self._outcomes_seen,
            speaking=self.speaking,
        )
        seconds = recordings.durations_s
        bins = np.searchsorted(list(DURATION_EDGES_S.values()), seconds[seconds > 0], side="right")
        unsure = tuple(map(self._sample, _of_different(self._unsure.rows)))
        drawn = tuple(map(self._sample, self._drawn.rows))
        words, estimated = self._words()
        return Details(
            durations=tuple(np.bincount(bins, minlength=len(DURATION_EDGES_S) + 1).tolist()),
            recordings=tuple(recordings.listed()),
            num_recordings=recordings.num_recordings,
            of_samples=recordings.of({sample.recording_id: () for sample in (*unsure, *drawn)}),
            unsure=unsure,
            random=drawn,
            words=words,
            words_estimated=estimated,
        )

    def _words(self) -> tuple[int | None, bool]:
        total = sum(self._rows_seen.values())
        if self._labels:
            return None, False
        if total <= COUNT_ALL_WORDS:
            tables = self._store.read_tables(self._rows_seen, _TEXT)
            return sum(count_words(table) for _, table in tables), False
        counted = rows = 0
        # The samples are drawn evenly over all rows, so the rows around them are a fair draw, too.
        for _, name, place, _ in self._drawn.rows:
            start = max(0, place - _AROUND)
            table = self._store.rows(name, _TEXT, [(start, place + _AROUND)])
            counted += count_words(table)
            rows += table.num_rows
        return round(total * counted / max(1, rows)), True

    def _sample(self, chosen: "_Chosen") -> Sample:
        _, name, place, _ = chosen
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


_Chosen = tuple[float, str, int, str]  # key, object, row, recording


class _Smallest:
    # The rows with the smallest keys of any number, in order.
    def __init__(self, most: int) -> None:
        self._most = most
        self.rows: list[_Chosen] = []

    def add(self, keys: np.ndarray, name: str, places: np.ndarray, ids: pa.Array) -> None:
        # In NumPy first: after some batches, few rows need become Python values.
        limit = self.rows[-1][0] if len(self.rows) == self._most else np.inf
        best = np.flatnonzero(keys < limit)
        best = best[np.argsort(keys[best], kind="stable")][: self._most]
        owners = ids.take(pa.array(best)).to_pylist()
        rows = zip(keys[best].tolist(), repeat(name), places[best].tolist(), owners, strict=False)
        self.rows = heapq.nsmallest(self._most, [*self.rows, *rows])


def _of_different(rows: Sequence[_Chosen]) -> list[_Chosen]:
    seen: Counter[str] = Counter()
    chosen = []
    for row in rows:
        seen[row[3]] += 1
        if seen[row[3]] <= _MOST_OF_A_RECORDING:
            chosen.append(row)
    return chosen[:SAMPLES]


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
