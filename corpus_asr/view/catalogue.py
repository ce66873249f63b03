"""The recordings of an output folder, their transcripts, and a current view of both."""

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import CorpusAsrError
from corpus_asr.export.recordings import WORD_COLUMNS, Recording, model_of
from corpus_asr.export.speaker_names import SpeakerNames, name_speaker, read_names, with_voices
from corpus_asr.export.speakers import named
from corpus_asr.logs import event
from corpus_asr.schemas import OUTCOMES, RECORDINGS
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.parquet import conform
from corpus_asr.storage.run_state.corrections import (
    Correction,
    Corrections,
    Saved,
    key_of,
    read_saved,
    save_correction,
)
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, SUCCESS_NAME, outcomes_names
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.tables import (
    LABEL_ROWS,
    SEGMENT_ROWS,
    OutputStore,
    PartRows,
    projected,
)
from corpus_asr.storage.run_state.voices import read_voices
from corpus_asr.view.facets import Trees
from corpus_asr.view.index import Corrector, Index, index_of
from corpus_asr.view.texts import TextFiles, Texts
from corpus_asr.view.waveform import Pauses

# A look lists the names of commits.
REFRESH_S = 10.0
# About eight minutes of speech; a day of audio has 17,280 segments, too many for one page.
BLOCK_ROWS = 100
KEPT = 4  # transcripts in memory
SHOWN_LABELS = 3
_DETAILS_SCHEMA = projected(RECORDINGS, (
    "status", "error_stage", "error_kind", "error_message", "retryable", "codec", "sample_rate_hz",
    "channels", "decode_errors", "speech_s", "languages", "label", "label_probability", "run_id",
))  # fmt: skip
_DETAILS = f"""
select {", ".join(_DETAILS_SCHEMA.names)} from recordings order by uri, recording_id
"""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The recordings of a run at one moment."""

    rows: PartRows
    """Segments, or labels in their place."""
    index: Index
    recordings: pa.Table
    """Columns of the index and of the table of recordings, sorted by URI."""
    trees: Trees
    """Folders and months of the recordings."""
    finished: bool

    @property
    def classified(self) -> bool:
        """Whether the run wrote labels."""
        return self.rows is LABEL_ROWS

    def position_of(self, recording_id: str) -> int | None:
        """Return the position of a recording; None if there is none of this ID."""
        position = pc.index(self.recordings["recording_id"], recording_id).as_py()
        return None if position < 0 else int(position)

    def row(self, position: int) -> dict[str, Any]:
        """Return a recording's row of the table."""
        row: dict[str, Any] = self.recordings.slice(position, 1).to_pylist()[0]
        return row


def read_catalogue(store: OutputStore) -> Catalogue:
    """Read the outcomes of an output folder."""
    names = outcomes_names(store)
    classified = (store.read_json(CONFIG_NAME) or {}).get("pipeline") == CLASSIFY_AUDIO
    rows = LABEL_ROWS if classified else SEGMENT_ROWS
    with RunTables(store, names=names) as tables:
        index = index_of(store, tables, rows)
        recordings = index.recordings
        details = conform(tables.table(_DETAILS), _DETAILS_SCHEMA)
    for name in details.schema.names:
        recordings = recordings.append_column(name, details[name])
    trees = Trees.of(recordings)
    return Catalogue(rows, index, recordings, trees, finished=store.exists(SUCCESS_NAME))


@dataclass(frozen=True, kw_only=True)
class View:
    """An output folder at one moment."""

    catalogue: Catalogue
    texts: Texts | None
    """None until they have been read for the first time."""
    corrections: Corrections
    """What people said of segments; the texts have it."""
    given: SpeakerNames
    """Names of speakers, as people gave them."""
    voices: SpeakerNames
    """The same speakers across recordings; empty where they were not compared."""
    version: int
    """Higher with each change."""
    rows_read: int = 0
    """Of the texts, while they are read."""
    problem: str | None = None
    """Why the folder could not be refreshed."""

    @cached_property
    def names(self) -> SpeakerNames:
        """Names of speakers: given, or of their voice."""
        return with_voices(self.given, self.voices)


class Library:
    """Keeps a view of an output folder, refreshed in the background on use. Thread-safe."""

    def __init__(self, store: OutputStore, *, refresh_s: float = REFRESH_S) -> None:
        self.store = store
        self._refresh_s = refresh_s
        # Listed before their contents are read: objects that come in between are a change later.
        self._names = outcomes_names(store)
        # By object. Those are known here that were saved here, or seen in a listing.
        self._saved = read_saved(store)
        self._view = View(
            catalogue=read_catalogue(store),
            texts=None,
            corrections=Corrections(self._saved),
            given=read_names(store),
            voices=read_voices(store),
            version=0,
        )
        self._files = TextFiles()
        self._checked_s = -math.inf
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop reading, and remove the files of texts."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._files.close()

    def current(self) -> View:
        """Return the last view, and start reading a new one if it is old."""
        # Never waits: a large run takes minutes to read, and its last view is worth showing.
        with self._lock:
            due = time.monotonic() - self._checked_s >= self._refresh_s
            if due and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(
                    target=self._refresh, name="view-refresh", daemon=True
                )
                self._thread.start()
            return self._view

    def wait(self) -> View:
        """Return the view once reading is done."""
        self.current()
        if self._thread is not None:
            self._thread.join()
        return self._view

    def save(self, correction: Correction) -> str:
        """Write a correction; the view has it when this returns. Return its name."""
        name = save_correction(self.store, correction)
        with self._lock:
            self._saved = {**self._saved, name: correction}
            self._correct(self._view, self._saved)
        return name

    def name(self, uri: str, speaker: str, name: str, *, seen: str) -> str | None:
        """Name a speaker as `name_speaker` does; the view has it when this returns."""
        other = name_speaker(self.store, uri, speaker, name, seen=seen)
        given = read_names(self.store)
        with self._lock:
            self._view = replace(self._view, given=given, version=self._view.version + 1)
        return other

    def _correct(self, view: View, saved: Saved) -> None:
        # With the lock held.
        corrections, texts = Corrections(saved), view.texts
        if texts is not None:
            texts = texts.corrected(Corrector(corrections, view.catalogue.recordings))
        self._view = replace(view, corrections=corrections, texts=texts, version=view.version + 1)

    def _refresh(self) -> None:
        try:
            names, view, known = outcomes_names(self.store), self._view, self._saved
            catalogue, texts = view.catalogue, view.texts
            if names != self._names:
                catalogue = read_catalogue(self.store)
            elif catalogue.finished != (finished := self.store.exists(SUCCESS_NAME)):
                catalogue = replace(catalogue, finished=finished)
            if names != self._names or texts is None:
                texts = self._read_texts(catalogue)
            saved, given = read_saved(self.store, known), read_names(self.store)
            voices = view.voices
            if catalogue is not view.catalogue:  # only a finish makes others
                voices = read_voices(self.store)
            with self._lock:
                # What was saved here meanwhile need not be in the listing.
                meanwhile = {n: each for n, each in self._saved.items() if n not in known}
                saved = {**saved, **meanwhile}
                changed = catalogue is not view.catalogue or texts is not view.texts
                if self._view.given is not view.given:
                    given = dict(self._view.given)  # named here while the file was read
                changed |= (given, voices) != (self._view.given, self._view.voices)
                changed |= saved.keys() != self._saved.keys()
                if changed or view.problem:
                    # Together: the texts' owners are positions in this very catalogue.
                    self._saved = saved
                    fresh = replace(
                        self._view,
                        catalogue=catalogue,
                        texts=texts,
                        given=given,
                        voices=voices,
                        problem=None,
                    )
                    self._correct(fresh, saved)
            self._names = names
        except _ClosingError:
            event(_LOG, logging.DEBUG, "view_closed_while_reading")
        except (CorpusAsrError, OSError) as error:  # the latter: no room for the texts here
            event(_LOG, logging.WARNING, "view_not_refreshed", why=str(error))
            self._replace(problem=str(error))
        finally:
            self._checked_s = time.monotonic()

    def _read_texts(self, catalogue: Catalogue) -> Texts:
        self._replace(rows_read=0)

        def progress(count: int) -> None:
            if self._closing.is_set():
                raise _ClosingError
            self._replace(rows_read=self._view.rows_read + count)

        return self._files.update(self.store, catalogue.index, catalogue.rows, on_rows=progress)

    def _replace(self, **changes: object) -> None:
        with self._lock:
            self._view = replace(self._view, **changes)  # type: ignore[arg-type]


class _ClosingError(Exception):
    pass


_ORDER = [(name, "ascending") for name in ("start_s", "channel", "part", "segment")]
_LABEL_ORDER = [(name, "ascending") for name in ("start_s", "channel", "part", "window", "rank")]
_LABEL_COLUMNS = ("part", "channel", "window", "start_s", "end_s", "rank", "label", "probability")
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


@dataclass(frozen=True)
class Transcript:
    """The segments of a recording."""

    rows: pa.Table
    """start_s, end_s, text, language, confidence, channel, words (or null); sorted by time."""
    edits: Mapping[int, tuple[str, Correction]] = field(default_factory=dict)
    """By row: name and content of the correction that it has."""
    stale: Mapping[str, Correction] = field(default_factory=dict)
    """By name: corrections of segments that have changed."""

    def corrected(self, corrector: Corrector) -> "Transcript":
        """Return the transcript as people corrected it."""
        owners = np.zeros(self.rows.num_rows, dtype=np.int64)
        edits = {at: (name, each) for at, _, name, each in corrector.matches(self.rows, owners)}
        rows = corrector.apply(self.rows, owners) if edits else self.rows
        return Transcript(rows, edits, corrector.stale())

    @property
    def block_starts_s(self) -> list[float]:
        """Start of each block."""
        starts: list[float] = self.rows["start_s"].to_numpy()[::BLOCK_ROWS].tolist()
        return starts

    @cached_property
    def has_words(self) -> bool:
        """Whether a segment has word times."""
        return bool(self.rows["words"].null_count < self.rows.num_rows)

    @cached_property
    def channels(self) -> list[int]:
        """Channels that were transcribed separately."""
        return sorted(self.rows["channel"].unique().drop_null().to_pylist())

    def block(self, number: int) -> list[dict[str, Any]]:
        """Return the segments of a block, each with its key and its `edit`, or None."""
        return self.segments(number * BLOCK_ROWS, BLOCK_ROWS)

    def segments(self, first: int, count: int) -> list[dict[str, Any]]:
        """Return some segments as `block` does."""
        rows = self.rows.slice(first, count).to_pylist()
        return [
            row | {"key": str(key_of(self._original(at, row))), "edit": self.edits.get(at)}
            for at, row in enumerate(rows, first)
        ]

    def original(self, at: int) -> dict[str, Any]:
        """Return a row with the model's text."""
        return self._original(at, self.rows.slice(at, 1).to_pylist()[0])

    def _original(self, at: int, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"text": self.edits[at][1].original} if at in self.edits else row

    def number_of(self, key: str) -> int | None:
        """Return the number of the row with a key; None if there is none."""
        start_ms = key.split(".")[1] if key.count(".") == 3 else ""
        if not start_ms.isdecimal():
            return None
        starts_ms = np.rint(1000 * self.rows["start_s"].to_numpy())
        candidates = np.flatnonzero(starts_ms == int(start_ms)).tolist()
        return next((at for at in candidates if str(key_of(self.original(at))) == key), None)

    def pauses(self, duration_s: float) -> Pauses:
        """Return where nothing is said in a recording of this length."""
        if self.has_words:
            words = pc.list_flatten(self.rows["words"].combine_chunks())
            spans = [pc.struct_field(words, name) for name in ("start_s", "end_s")]
        else:
            spans = [self.rows[name] for name in ("start_s", "end_s")]
        starts_s, ends_s = (np.asarray(span, dtype=np.float64) for span in spans)
        order = np.argsort(starts_s, kind="stable")
        return Pauses(starts_s[order], ends_s[order], duration_s=duration_s)

    @cached_property
    def _scores(self) -> tuple[np.ndarray, np.ndarray]:
        # Start and probability of each word, by time; of each segment, without word times.
        if self.has_words:
            words = pc.list_flatten(self.rows["words"].combine_chunks())
            starts, scores = (
                pc.struct_field(words, name).to_numpy(zero_copy_only=False)
                for name in ("start_s", "probability")
            )
        else:
            starts, scores = (self.rows[name].to_numpy() for name in ("start_s", "confidence"))
        order = np.argsort(starts, kind="stable")
        return starts[order], scores[order]

    def low_confidence(self, from_s: float, *, below: float, forward: bool = True) -> float | None:
        """Return the start of the first word after or before `from_s` that is below a threshold."""
        starts, scores = self._scores
        doubtful = starts[scores < below]
        later = int(np.searchsorted(doubtful, from_s, side="right" if forward else "left"))
        at = later if forward else later - 1
        return float(doubtful[at]) if 0 <= at < len(doubtful) else None


_VERSION = ("recording_id", "etag", "size_bytes")
_ONE = projected(OUTCOMES, _VERSION)


class Transcripts:
    """Reads transcripts and keeps the last few, as Arrow. Thread-safe."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._transcript = lru_cache(KEPT)(self._read)
        self._corrected = lru_cache(KEPT)(self._correct)
        self._turns = lru_cache(KEPT)(self._read_turns)

    def read(self, view: View, position: int) -> Transcript:
        """Return the transcript of a recording, as people corrected it."""
        catalogue = view.catalogue
        places = tuple(catalogue.index.places(position))
        version = tuple(catalogue.row(position)[name] for name in _VERSION)
        said = tuple(view.corrections.of(version[0]))
        if catalogue.classified or not said:
            return self._transcript(catalogue.classified, places)
        return self._corrected(places, version, said)

    def turns(self, view: View, position: int) -> tuple[SpeakerTurn, ...]:
        """Return who speaks when in a recording, as the run names them; nothing where unknown."""
        return self._turns(view.catalogue.row(position)["recording_id"], id(view.catalogue))

    def _read_turns(self, recording_id: str, catalogue: int) -> tuple[SpeakerTurn, ...]:
        # Another catalogue is read while a run continues: its turns may be others.
        found = read_turns(self._store, [recording_id]) or {}
        return tuple(found.get(recording_id, ()))

    def _correct(
        self,
        places: tuple[tuple[str, int, int], ...],
        version: tuple[Any, ...],
        said: tuple[tuple[str, Correction], ...],
    ) -> Transcript:
        recording = pa.Table.from_pylist([dict(zip(_VERSION, version, strict=True))], schema=_ONE)
        return self._transcript(False, places).corrected(
            Corrector(Corrections(dict(said)), recording)
        )

    def _read(self, labels: bool, places: tuple[tuple[str, int, int], ...]) -> Transcript:
        columns = _LABEL_COLUMNS if labels else WORD_COLUMNS
        schema = projected((LABEL_ROWS if labels else SEGMENT_ROWS).schema, columns)
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, start, stop in places:
            ranges.setdefault(name, []).append((start, stop))
        tables = [self._store.rows(name, schema, some) for name, some in ranges.items()]
        rows = pa.concat_tables([schema.empty_table(), *tables])
        return Transcript(_windows(rows) if labels else rows.sort_by(_ORDER))

    def recording(self, view: View, position: int) -> Recording:
        """Return a recording as it is exported."""
        transcript = self.read(view, position)
        rows = transcript.rows.to_pylist()
        # Of a segment whose text a person removed nothing is exported.
        kept = [row for at, row in enumerate(rows) if row["text"] or at not in transcript.edits]
        recording = Recording.of(view.catalogue.row(position), kept, model_of(self._store))
        turns = self.turns(view, position)
        if not turns:
            return recording
        return recording.spoken_by(named(turns, recording.recording_id, view.names))


def _windows(labels: pa.Table) -> pa.Table:
    # A row per window, whose text is its likeliest labels.
    windows: list[dict[str, Any]] = []
    rows = labels.filter(pc.less_equal(labels["rank"], SHOWN_LABELS)).sort_by(_LABEL_ORDER)
    for row in rows.to_pylist():
        text = f"{row['label']} {row['probability']:.0%}"
        if row["rank"] == 1:
            windows.append({**row, "text": text, "confidence": row["probability"]})
        else:
            windows[-1]["text"] += f" · {text}"
    return pa.Table.from_pylist(windows, schema=_WINDOWS)
