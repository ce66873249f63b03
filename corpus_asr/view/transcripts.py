"""The passages of one recording, block by block, with their words.

In: a view of an output folder and a recording. Out: what was said between two moments, and where
the next uncertain word is. A few recordings are kept in memory, as Arrow; of a long one only the
blocks that are asked for become Python values. Knows nothing of search and of sound.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.export.recordings import WORD_COLUMNS, Recording, segment_from
from corpus_asr.storage.results import LABEL_ROWS
from corpus_asr.storage.tables import OutputStore
from corpus_asr.view.catalogue import Catalogue

BLOCK_ROWS = 100
KEPT = 4
SHOWN_LABELS = 3
_ORDER = [(name, "ascending") for name in ("start_s", "channel", "part", "segment")]
_LABEL_ORDER = [(name, "ascending") for name in ("start_s", "channel", "part", "window", "rank")]
_LABEL_COLUMNS = ("part", "channel", "window", "start_s", "end_s", "rank", "label", "probability")


@dataclass(frozen=True)
class Transcript:
    """The passages of a recording in the order of time.

    Rows have start_s, end_s, text, language, confidence, channel and words, which are null where
    word times were not asked for.
    """

    rows: pa.Table

    @property
    def block_starts_s(self) -> list[float]:
        """Where each block begins."""
        starts: list[float] = self.rows["start_s"].to_numpy()[::BLOCK_ROWS].tolist()
        return starts

    @cached_property
    def has_words(self) -> bool:
        """Whether a passage has word times."""
        return bool(self.rows["words"].null_count < self.rows.num_rows)

    @cached_property
    def has_channels(self) -> list[int]:
        """The channels that were transcribed apart."""
        return sorted(self.rows["channel"].unique().drop_null().to_pylist())

    def block(self, number: int) -> list[dict[str, Any]]:
        """Return the passages of a block; none beyond the last."""
        found: list[dict[str, Any]] = self.rows.slice(number * BLOCK_ROWS, BLOCK_ROWS).to_pylist()
        return found

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """When each word begins and how sure it is, by time; of passages, without words."""
        if self.has_words:
            words = pc.list_flatten(self.rows["words"].combine_chunks())
            starts = pc.struct_field(words, "start_s").to_numpy(zero_copy_only=False)
            sure = pc.struct_field(words, "probability").to_numpy(zero_copy_only=False)
        else:
            starts = self.rows["start_s"].to_numpy()
            sure = self.rows["confidence"].to_numpy()
        order = np.argsort(starts, kind="stable")
        return starts[order], sure[order]

    def unsure(self, from_s: float, *, below: float, forward: bool = True) -> float | None:
        """Return when the next word, or the one before, that is less sure than `below` begins.

        Args:
            from_s: the moment to look from; a word that begins then is not meant.
            below: a probability.
            forward: whether to look at what comes later.
        """
        starts, sure = self._moments
        doubtful = starts[sure < below]
        if forward:
            at = int(np.searchsorted(doubtful, from_s, side="right"))
            return float(doubtful[at]) if at < len(doubtful) else None
        at = int(np.searchsorted(doubtful, from_s, side="left")) - 1
        return float(doubtful[at]) if at >= 0 else None


class Transcripts:
    """Reads transcripts and keeps the last few. Safe to use by threads."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._kept: OrderedDict[Any, Transcript] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, catalogue: Catalogue, position: int) -> Transcript:
        """Return the transcript of a recording.

        Raises:
            FetchError: the store does not answer, or a run is just finishing here; try again.
            CorpusAsrError: an object is no Parquet file.
        """
        places = tuple(catalogue.index.places(position))
        with self._lock:
            if places in self._kept:
                self._kept.move_to_end(places)
                return self._kept[places]
        columns = _LABEL_COLUMNS if catalogue.rows is LABEL_ROWS else WORD_COLUMNS
        schema = pa.schema([catalogue.rows.schema.field(name) for name in columns])
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, start, stop in places:
            ranges.setdefault(name, []).append((start, stop))
        tables = [self._store.rows(name, schema, some) for name, some in ranges.items()]
        rows = pa.concat_tables([schema.empty_table(), *tables])
        labelled = catalogue.rows is LABEL_ROWS
        transcript = Transcript(_windows(rows) if labelled else rows.sort_by(_ORDER))
        with self._lock:
            self._kept[places] = transcript
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return transcript


def _windows(labels: pa.Table) -> pa.Table:
    """Return a row per window, whose text is its likeliest labels."""
    windows: list[dict[str, Any]] = []
    rows = labels.filter(pc.less_equal(labels["rank"], SHOWN_LABELS)).sort_by(_LABEL_ORDER)
    for row in rows.to_pylist():
        told = f"{row['label']} {row['probability']:.0%}"
        if row["rank"] == 1:
            windows.append({**row, "text": told, "confidence": row["probability"]})
        else:
            windows[-1]["text"] += f" · {told}"
    return pa.Table.from_pylist(windows, schema=_WINDOWS)


_WINDOWS = pa.schema(
    [
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("confidence", pa.float32()),
        ("channel", pa.int32()),
        ("words", pa.list_(pa.null())),
    ]
)


def recording_of(catalogue: Catalogue, position: int, transcript: Transcript) -> Recording:
    """Return a recording as it is exported."""
    row = catalogue.recordings.slice(position, 1).to_pylist()[0]
    rows = transcript.rows.to_pylist()
    return Recording(
        recording_id=row["recording_id"],
        uri=row["uri"],
        duration_s=row["duration_s"],
        language=row["language"],
        failed=row["failed"],
        segments=tuple(segment_from(each) for each in rows),
        channels=tuple(each["channel"] for each in rows),
    )
