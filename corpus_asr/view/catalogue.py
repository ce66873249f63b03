"""The recordings of an output folder, and how that view of it is kept up to date.

In: an output folder, of a run that is done, goes on or was stopped. Out: its recordings with their
states, and its texts ready to be searched. What is asked for is answered from the last view while
a new one is read. Knows nothing of pages and requests.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.errors import CorpusAsrError
from corpus_asr.export.recordings import Index, index_of, outcomes_names
from corpus_asr.logs import event
from corpus_asr.schemas import OUTCOMES
from corpus_asr.storage.beginning import CONFIG_NAME, SUCCESS_NAME
from corpus_asr.storage.ledger import Ledger, Settlement, counted
from corpus_asr.storage.recordings import PART_COLUMNS, RECORDINGS_PER_OBJECT, aggregate
from corpus_asr.storage.results import LABEL_ROWS, SEGMENT_ROWS, PartRows
from corpus_asr.storage.tables import OutputStore
from corpus_asr.view.texts import TextFiles, Texts

REFRESH_S = 10.0
_DETAILS = (
    "recording_id", "status", "error_stage", "error_kind", "error_message", "retryable", "etag",
    "size_bytes", "codec", "sample_rate_hz", "channels", "decode_errors", "speech_s", "languages",
    "label", "label_probability",
)  # fmt: skip

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The recordings at one moment."""

    rows: PartRows
    """What the run writes: segments, or labels in their place."""
    index: Index
    recordings: pa.Table
    """The columns of the index and those of the table of recordings, sorted by address."""
    finished: bool

    def position_of(self, recording_id: str) -> int | None:
        """Return where a recording stands; None if there is no such recording."""
        position = pc.index(self.recordings["recording_id"], recording_id).as_py()
        return None if position < 0 else int(position)


def read_catalogue(store: OutputStore) -> Catalogue:
    """Read the outcomes of an output folder.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    names = outcomes_names(store)
    classified = (store.read_json(CONFIG_NAME) or {}).get("pipeline") == CLASSIFY_AUDIO
    rows = LABEL_ROWS if classified else SEGMENT_ROWS
    settlement = Ledger.load(store).settle(())
    index = index_of(store, names, settlement, rows)
    ids = index.recordings["recording_id"].combine_chunks()
    details = _details(store, names, settlement, ids)
    recordings = index.recordings
    for name in _DETAILS[1:]:
        recordings = recordings.append_column(name, details[name])
    return Catalogue(rows, index, recordings, finished=store.exists(SUCCESS_NAME))


def _details(
    store: OutputStore, names: Sequence[str], settlement: Settlement, ids: pa.Array
) -> pa.Table:
    """Return what parts say together, in the order of `ids`; so many at a time fit in memory."""
    schema = pa.schema([OUTCOMES.field(name) for name in PART_COLUMNS])
    found = []
    for start in range(0, max(1, len(ids)), RECORDINGS_PER_OBJECT):
        some = ids.slice(start, RECORDINGS_PER_OBJECT)
        tables = [schema.empty_table()]
        for batch, counts in counted(store, settlement.keep, PART_COLUMNS, names):
            theirs = pc.is_in(batch.column("recording_id"), value_set=some)
            wanted = pc.and_(theirs, pa.array(counts))
            tables.append(pa.Table.from_batches([batch]).filter(wanted).cast(schema))
        found.append(aggregate(pa.concat_tables(tables)).select(_DETAILS))
    details = pa.concat_tables(found)
    return details.take(pc.index_in(ids, value_set=details["recording_id"].combine_chunks()))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known of an output folder at one moment."""

    catalogue: Catalogue
    texts: Texts | None
    """None until they have been read for the first time."""
    version: int
    """One more with each change."""
    rows_read: int = 0
    """Of the texts, when they were read last."""
    problem: str | None = None
    """Why the folder could not be read anew."""


class Library:
    """Keeps a view of an output folder; nothing is read while nobody asks. Safe to use by threads.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """

    def __init__(self, store: OutputStore, *, refresh_s: float = REFRESH_S) -> None:
        self.store = store
        self._refresh_s = refresh_s
        # Looked at before what they hold is: what comes meanwhile is a change later.
        self._names = outcomes_names(store)
        self._view = View(catalogue=read_catalogue(store), texts=None, version=0)
        self._files = TextFiles()
        self._checked_s = -math.inf
        self._busy = False
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
        """Return the last view, and have a new one made if it is old."""
        with self._lock:
            due = time.monotonic() - self._checked_s >= self._refresh_s
            if due and not self._busy:
                self._busy = True
                self._thread = threading.Thread(
                    target=self._refresh, name="view-refresh", daemon=True
                )
                self._thread.start()
            return self._view

    def wait(self) -> View:
        """Return the view when what is being read now has been."""
        self.current()
        if self._thread is not None:
            self._thread.join()
        return self._view

    def _refresh(self) -> None:
        try:
            names, view = outcomes_names(self.store), self._view
            catalogue, texts = view.catalogue, view.texts
            if names != self._names:
                catalogue = read_catalogue(self.store)
            elif catalogue.finished != (finished := self.store.exists(SUCCESS_NAME)):
                catalogue = replace(catalogue, finished=finished)
            if names != self._names or texts is None:
                texts = self._read_texts(catalogue)
            if catalogue is not view.catalogue or texts is not view.texts or view.problem:
                # Together: the texts' owners are positions in this very catalogue.
                self._replace(
                    catalogue=catalogue, texts=texts, problem=None, version=view.version + 1
                )
            self._names = names
        except _ClosingError:
            event(_LOG, logging.DEBUG, "view_closed_while_reading")
        except (CorpusAsrError, OSError) as error:  # the latter: no room for the texts here
            event(_LOG, logging.WARNING, "view_not_refreshed", why=str(error))
            self._replace(problem=str(error))
        finally:
            with self._lock:
                self._checked_s = time.monotonic()
                self._busy = False

    def _read_texts(self, catalogue: Catalogue) -> Texts:
        self._replace(rows_read=0)

        def told(count: int) -> None:
            if self._closing.is_set():
                raise _ClosingError
            self._replace(rows_read=self._view.rows_read + count)

        return self._files.update(self.store, catalogue.index, catalogue.rows, on_rows=told)

    def _replace(self, **changes: object) -> None:
        with self._lock:
            self._view = replace(self._view, **changes)  # type: ignore[arg-type]


class _ClosingError(Exception):
    """Nobody waits for what is being read."""
