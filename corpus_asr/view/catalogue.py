"""The recordings of an output folder, their transcripts, and a current view of both."""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc

from corpus_asr.confidence import WORD_EVIDENCE_COLUMNS, word_confidences
from corpus_asr.edits.corrected_segments import CorrectedRows, apply_corrections
from corpus_asr.edits.corrections import (
    Correction,
    Corrections,
    Saved,
    key_of,
    read_saved,
    save_correction,
)
from corpus_asr.errors import CorpusAsrError
from corpus_asr.export.recordings import Recording, found_labels
from corpus_asr.export.speakers import SpeakerNames, name_speaker, named, read_names, with_voices
from corpus_asr.export.write import common_folder
from corpus_asr.logs import event
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.run_state.forgotten import is_there
from corpus_asr.storage.run_state.identities import version_of_identities
from corpus_asr.storage.run_state.lock import SUCCESS_NAME
from corpus_asr.storage.run_state.part_rows import kind_of
from corpus_asr.storage.run_state.rewriting import rewrite_names
from corpus_asr.storage.run_state.run_files import outcomes_names
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.speaker_turns import read_turns, read_voices
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.view.texts import (
    Edits,
    Places,
    add_shown,
    add_texts,
    read_edits,
    segments_at,
)

# A look lists the names of commits.
REFRESH_S = 10.0
# About eight minutes of speech; a day of audio has 17,280 segments, too many for one page.
BLOCK_ROWS = 100
KEPT = 4  # transcripts in memory
_OUTCOMES = """
select distinct name from parts join objects using (object) where recording_id = $id
"""
# Rows of an object are in the order of its outcomes, whether these count or not.
_PLACES = """
with mine as (
  select id, object from parts where recording_id = $id and segments_written > 0)
select name, stop - segments_written, stop from (
  select id, object, segments_written,
         sum(segments_written) over (partition by object order by id) as stop
  from outcomes where object in (select object from mine)) join objects using (object)
where id in (select id from mine) order by id
"""

_LOG = logging.getLogger(__name__)
_numbers = itertools.count()


class GoneError(Exception):
    """Raised if the recording to change is gone."""

    def __init__(self) -> None:
        super().__init__("this recording was removed from the output folder; nothing was saved")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The recordings of a run at one moment."""

    number: int
    """Another one for each."""
    tables: RunTables
    """With those of `texts`."""
    folder: str
    """The common one of all recordings, with a slash."""
    finished: bool

    def recording(self, recording_id: str) -> dict[str, Any] | None:
        """Return a recording's row of `described`; None if the ID does not exist."""
        table = self.tables.table("from described where recording_id = $id", id=recording_id)
        return next(iter(table.to_pylist()), None)

    def objects(self, recording_id: str) -> list[str]:
        """Return the names of the outcomes objects that contain a recording."""
        return [name for (name,) in self.tables.rows(_OUTCOMES, id=recording_id)]

    def places(self, recording_id: str) -> Places:
        """Return where a recording's rows lie."""
        return tuple(self.tables.rows(_PLACES, id=recording_id))


def read_catalogue(store: OutputStore) -> Catalogue:
    """Read the outcomes of an output folder.

    Raises:
        ConfigError: it is no output folder of a run, or that of a classification.
    """
    names = outcomes_names(store)
    if kind_of(store, names) is LABEL_ROWS:
        raise found_labels(store)
    tables = RunTables(store, names=names)
    folder = common_folder(tables.table("select uri from recordings")["uri"])
    add_shown(tables)
    finished = store.exists(SUCCESS_NAME)
    return Catalogue(next(_numbers), tables, folder, finished)


@dataclass(frozen=True, kw_only=True)
class View:
    """An output folder at one moment."""

    catalogue: Catalogue
    searchable: bool = False
    """Whether the texts have been read."""
    corrections: Corrections
    """People's corrections of segments; already applied to the texts."""
    given: SpeakerNames
    """Names of speakers, as people gave them."""
    voices: SpeakerNames
    """The same speakers across recordings; empty where they were not compared."""
    version: int
    """Higher with each change."""
    rows_read: int = 0
    """Rows of the texts read so far."""
    problem: str | None = None
    """Reason why the folder could not be refreshed."""

    @cached_property
    def names(self) -> SpeakerNames:
        """Names of speakers: given names, or those of their voice."""
        return with_voices(self.given, self.voices)


class Library:
    """Keeps a view of an output folder, refreshed in the background on use. Thread-safe."""

    def __init__(self, store: OutputStore, *, refresh_s: float = REFRESH_S) -> None:
        self.store = store
        self._refresh_s = refresh_s
        # Listed before their contents are read: objects added in between are a later change.
        self._names = outcomes_names(store)
        self._moved = version_of_identities(store)
        # By object: those saved here, or seen in a listing.
        self._saved: Saved = read_saved(store)
        self._view = View(
            catalogue=read_catalogue(store),
            corrections=Corrections(self._saved),
            given=read_names(store),
            voices=read_voices(store),
            version=0,
        )
        self._checked_s = -math.inf
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def close(self) -> None:
        """Stop reading, and free memory and disk."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._view.catalogue.tables.close()

    def current(self) -> View:
        """Return the last view, and start a refresh if it is old."""
        # Never blocks: a large run takes minutes to read, and an old view is still useful.
        with self._lock:
            due = time.monotonic() - self._checked_s >= self._refresh_s
            if due and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(
                    target=self._refresh, name="view-refresh", daemon=True
                )
                self._thread.start()
            return self._view

    def wait(self) -> View:
        """Return the view after reading is complete."""
        self.current()
        if self._thread is not None:
            self._thread.join()
        return self._view

    def look_again(self) -> View:
        """Return a new view once it is read, after a run replaced objects of the last one."""
        if self._thread is not None:
            self._thread.join()  # it may have listed them before
        self._checked_s = -math.inf
        return self.wait()

    def save(self, recording: Mapping[str, Any], make: Callable[[View], Correction]) -> View:
        """Save the correction that `make` returns for the current view; return the updated view.

        Saves are serialized, so that `make` may check what it replaces: if another server has saved
        one, that is read, and `make` is called again.

        Raises:
            GoneError: the recording was removed meanwhile; the correction is not kept.
        """
        with self._saving:
            while (
                name := save_correction(self.store, made := make(self._view), self._saved)
            ) is None:
                self._correct(read_saved(self.store, self._saved))
            try:
                self.check_there(recording)
            except GoneError:
                self.store.remove(name)
                raise
            return self._correct({**self._saved, name: made})

    def name(
        self, recording: Mapping[str, Any], speaker: str, name: str, *, seen: str
    ) -> str | None:
        """Name a speaker as `name_speaker` does, and update the view.

        Raises:
            GoneError: as for `save`.
        """
        uri = recording["uri"]
        other_name = name_speaker(self.store, uri, speaker, name, seen=seen)
        try:
            self.check_there(recording)
        except GoneError:
            if other_name is None:  # else nothing was saved
                rewrite_names(
                    self.store, lambda at, who: None if (at, who) == (uri, speaker) else at
                )
            raise
        speaker_names = read_names(self.store)
        with self._lock:
            self._view = replace(self._view, given=speaker_names, version=self._view.version + 1)
        return other_name

    def check_there(self, recording: Mapping[str, Any]) -> None:
        """Check that a recording, given its row, exists and is not being removed.

        Raises:
            GoneError: it does not exist, or is being removed.
        """
        recording_id = recording["recording_id"]
        if not is_there(self.store, recording_id, self._view.catalogue.objects(recording_id)):
            raise GoneError

    def _correct(self, saved: Saved, **changes: Any) -> View:
        # Serialized with saves. Pages are not blocked by reading.
        corrections = Corrections(saved)
        new_view = replace(self._view, **changes)
        edits = self._edits(new_view.catalogue, corrections) if new_view.searchable else None
        with self._lock:
            if edits is not None:
                edits.put(new_view.catalogue.tables)
            # Set last: unreadable objects are retried in the next refresh.
            self._saved = saved
            self._view = replace(
                self._view, corrections=corrections, version=self._view.version + 1, **changes
            )
            return self._view

    def _edits(self, catalogue: Catalogue, corrections: Corrections) -> Edits | None:
        return read_edits(self.store, catalogue.tables, catalogue.places, corrections)

    def _refresh(self) -> None:
        try:
            names, view, old_saves = outcomes_names(self.store), self._view, self._saved
            moved = version_of_identities(self.store)
            is_other = names != self._names or moved != self._moved
            catalogue = view.catalogue
            if is_other:
                catalogue = read_catalogue(self.store)
            elif catalogue.finished != (finished := self.store.exists(SUCCESS_NAME)):
                catalogue = replace(catalogue, finished=finished, number=next(_numbers))
            unseen = is_other or not view.searchable
            if unseen:
                self._read_texts(catalogue, view)
            saved: Saved = read_saved(self.store, old_saves)
            speaker_names = read_names(self.store)
            voices = view.voices
            if catalogue is not view.catalogue:  # only a finish changes it
                voices = read_voices(self.store)
            if unseen:  # saves wait only for a small rest of the reading
                edits = self._edits(catalogue, Corrections(saved))
                if edits is not None:
                    edits.put(catalogue.tables)
            with self._saving:
                # Corrections saved here meanwhile may be missing from the listing.
                meanwhile = {
                    n: correction for n, correction in self._saved.items() if n not in old_saves
                }
                saved = {**saved, **meanwhile}
                changed = unseen or catalogue is not view.catalogue
                if changed or self._view.problem or saved.keys() != self._saved.keys():
                    self._correct(
                        saved, catalogue=catalogue, searchable=True, voices=voices, problem=None
                    )
            with self._lock:
                # Unless a speaker was named here while the file was read.
                if self._view.given is view.given and speaker_names != view.given:
                    self._view = replace(
                        self._view, given=speaker_names, version=self._view.version + 1
                    )
            self._names, self._moved = names, moved
        except _ClosingError:
            event(_LOG, logging.DEBUG, "view_closed_while_reading")
        except (CorpusAsrError, OSError) as error:
            event(_LOG, logging.WARNING, "view_not_refreshed", why=str(error))
            self._replace(problem=str(error))
        finally:
            self._checked_s = time.monotonic()

    def _read_texts(self, catalogue: Catalogue, view: View) -> None:
        self._replace(rows_read=0)

        def progress(count: int) -> None:
            if self._closing.is_set():
                raise _ClosingError
            self._replace(rows_read=self._view.rows_read + count)

        catalogue_before = view.catalogue
        known_tables = catalogue_before.tables if view.searchable else None
        add_texts(self.store, catalogue.tables, known=known_tables, on_rows=progress)

    def _replace(self, **changes: object) -> None:
        with self._lock:
            self._view = replace(self._view, **changes)  # type: ignore[arg-type]


class _ClosingError(Exception):
    pass


class Transcript(CorrectedRows):
    """The segments of a recording: columns of `segments_at`, words may be null."""

    @property
    def block_starts_s(self) -> list[float]:
        """Start time of each block."""
        starts: list[float] = self.rows["start_s"].to_numpy()[::BLOCK_ROWS].tolist()
        return starts

    @cached_property
    def has_words(self) -> bool:
        """Whether any segment has word times."""
        return bool(self.rows["words"].null_count < self.rows.num_rows)

    @cached_property
    def channels(self) -> list[int]:
        """Channels that were transcribed separately."""
        return sorted(self.rows["channel"].unique().drop_null().to_pylist())

    def block(self, number: int) -> list[dict[str, Any]]:
        """Return the segments of a block, each with its `key`, `version`, and `edit` or None."""
        return self.segments(number * BLOCK_ROWS, BLOCK_ROWS)

    def segments(self, first: int, count: int) -> list[dict[str, Any]]:
        """Return a range of segments, as `block` does."""
        rows = self.rows.slice(first, count).to_pylist()
        return [self._named(at, row) for at, row in enumerate(rows, first)]

    def _named(self, at: int, row: dict[str, Any]) -> dict[str, Any]:
        edit = self.edits.get(at)
        key, version = (edit.key, edit.correction.id) if edit else (key_of(row), "")
        return row | {"key": key, "version": version, "edit": edit}

    def number_of(self, key: str) -> int | None:
        """Return the row number of a key; None if it does not exist."""
        number = next((at for at, edit in self.edits.items() if edit.key == key), None)
        start_ms = key.split(".")[1] if key.count(".") == 3 else ""
        if number is not None or not start_ms.isdecimal():
            return number
        starts_ms = np.rint(1000 * self.rows["start_s"].to_numpy())
        candidates = np.flatnonzero(starts_ms == int(start_ms)).tolist()
        return next((at for at in candidates if self.segments(at, 1)[0]["key"] == key), None)

    def between(self, channel: int | None, start_s: float, end_s: float) -> list[dict[str, Any]]:
        """Return the segments of a channel that overlap a time span."""
        starts, ends = (self.rows[name].to_numpy() for name in ("start_s", "end_s"))
        numbers = np.flatnonzero((starts < end_s) & (ends > start_s)).tolist()
        rows = [self.segments(at, 1)[0] for at in numbers]
        return [row for row in rows if row["channel"] == channel]

    def neighbors(
        self, numbers: Sequence[int]
    ) -> tuple[dict[str, Any] | None, list[int], dict[str, Any] | None]:
        """Return the segments before and after some of one channel, and the numbers between."""
        same = self.rows["channel"].to_pylist()
        of_channel = [at for at, channel in enumerate(same) if channel == same[numbers[0]]]
        first, last = of_channel.index(numbers[0]), of_channel.index(numbers[-1])
        between = [at for at in of_channel[first : last + 1] if at not in numbers]
        previous, following = of_channel[max(0, first - 1) : first], of_channel[last + 1 : last + 2]
        ends = [self.segments(at[0], 1)[0] if at else None for at in (previous, following)]
        return ends[0], between, ends[1]

    @cached_property
    def _scores(self) -> tuple[np.ndarray, np.ndarray]:
        # Start and confidence of each word, by time; of each segment if there are no word times.
        if self.has_words:
            words = pc.list_flatten(self.rows["words"].combine_chunks())
            starts = np.asarray(pc.struct_field(words, "start_s"))
            rows = self.rows.select(WORD_EVIDENCE_COLUMNS).to_pylist()
            scores = np.array([score for row in rows for score in word_confidences(row)])
        else:
            starts, scores = (np.asarray(self.rows[name]) for name in ("start_s", "confidence"))
        order = np.argsort(starts, kind="stable")
        return starts[order], scores[order]

    def low_confidence(self, from_s: float, *, below: float, forward: bool = True) -> float | None:
        """Return the start of the next or previous word from `from_s` that is below a threshold."""
        starts, scores = self._scores
        doubtful = starts[scores < below]
        later = int(np.searchsorted(doubtful, from_s, side="right" if forward else "left"))
        at = later if forward else later - 1
        return float(doubtful[at]) if 0 <= at < len(doubtful) else None

    def next_unchecked(self, from_s: float) -> float | None:
        """Return the start of the first unchecked segment after `from_s`."""
        starts = self.rows["start_s"].to_numpy()
        open_rows = starts > from_s
        for at, edit in self.edits.items():
            open_rows[at] &= not edit.segment.checked
        return min(starts[open_rows].tolist(), default=None)


class Transcripts:
    """Reads transcripts and keeps the last few, as Arrow. Thread-safe."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._transcript = lru_cache(KEPT)(self._read)
        self._corrected = lru_cache(KEPT)(self._correct)
        self._turns = lru_cache(KEPT)(self._read_turns)

    def read(self, view: View, row: Mapping[str, Any]) -> Transcript:
        """Return the transcript of a recording, given its row, as people corrected it."""
        places = view.catalogue.places(row["recording_id"])
        corrections = view.corrections.of(row["recording_id"])
        return self._corrected(places, corrections) if corrections else self._transcript(places)

    def turns(self, view: View, recording_id: str) -> tuple[SpeakerTurn, ...]:
        """Return the speaker turns of a recording, with the run's labels; empty if unknown."""
        return self._turns(recording_id, view.catalogue.number)

    def _read_turns(self, recording_id: str, catalogue: int) -> tuple[SpeakerTurn, ...]:
        # A running run makes new catalogues, possibly with other turns.
        turns = read_turns(self._store, [recording_id]) or {}
        return tuple(turns.get(recording_id, ()))

    def _read(self, places: Places) -> Transcript:
        return Transcript(segments_at(self._store, places))

    def _correct(self, places: Places, corrections: tuple[Correction, ...]) -> Transcript:
        corrected = apply_corrections(self._transcript(places).rows, corrections)
        return Transcript(corrected.rows, corrected.edits, corrected.unplaced)

    def recording(self, view: View, row: Mapping[str, Any]) -> Recording:
        """Return a recording for export, given its row."""
        transcript = self.read(view, row)
        rows = transcript.rows.to_pylist()
        # Segments whose text was removed by a person are not exported.
        kept = [row for at, row in enumerate(rows) if row["text"] or at not in transcript.edits]
        recording = Recording.of(row, kept)
        turns = self.turns(view, recording.recording_id)
        if not turns:
            return recording
        return recording.spoken_by(named(turns, recording.recording_id, view.names))
