"""Shards to files in a store: each whole or not at all, and none twice.

In: shards. Out: their files, and for each a note of what is in it and what was lost, which is put
last: a shard with a note is done. Decoding happens in child processes that may crash: what cannot
be decoded again is lost and counted, and the rest goes on.
"""

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from corpus_asr.config.labelling import DatasetSettings
from corpus_asr.errors import CheckpointError, ConfigError, EngineError, ItemError
from corpus_asr.labelling.cutting import CHANGED, CUT_SHORT, Clip
from corpus_asr.labelling.layouts import WRITERS, ShardWriter
from corpus_asr.labelling.origin import Origin
from corpus_asr.labelling.shards import Shard
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ

NOTES_FOLDER = "_run/shards"
CUTTER = "corpus_asr.labelling.cutting:ClipCutter"
UNREADABLE, UNREACHABLE = "unreadable", "unreachable"
LOSSES = {
    CHANGED: "the recording is no longer what was transcribed",
    CUT_SHORT: "the recording ends earlier than when it was transcribed",
    UNREADABLE: "the recording cannot be read or decoded again",
    UNREACHABLE: "the recording could not be read now; the same command tries again",
}
_MESSAGES_KEPT = 5
_SHOWN = 5


@dataclass(slots=True)
class Note:
    """What a shard holds, and what it lost; saved beside it."""

    name: str
    split: str
    digest: str
    examples: int = 0
    seconds: float = 0.0
    lost: dict[str, list[float]] = field(default_factory=dict)
    """By reason: how many examples, and their seconds."""
    messages: list[str] = field(default_factory=list)
    """Why, of some."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Some examples, to be read."""

    def lose(self, reason: str, rows: Iterable[dict[str, Any]], message: str) -> None:
        """Count examples that could not be cut."""
        counts = self.lost.setdefault(reason, [0, 0.0])
        for row in rows:
            counts[0] += 1
            counts[1] += row["end_s"] - row["start_s"]
        if len(self.messages) < _MESSAGES_KEPT:
            self.messages.append(without_secrets(message))


class ShardMaker:
    """Write shards to a data set's folder.

    Args:
        store: the folder.
        settings: of the data set.
        origin: the run that heard what is said.
        cutter: arguments of `ClipCutter`.
        timeout_s: how long a decoder may take for one clip.
        workers: how many work side by side, each with a decoder of its own.
    """

    def __init__(
        self,
        store: OutputStore,
        settings: DatasetSettings,
        origin: Origin,
        *,
        cutter: dict[str, Any],
        timeout_s: float,
        workers: int,
    ) -> None:
        self._store = store
        self._settings = settings
        self._origin = origin
        self._workers = workers
        self._stopping = Event()
        self._cutters: SimpleQueue[IsolatedGenerator] = SimpleQueue()
        self._all = [
            IsolatedGenerator(CUTTER, init_kwargs=cutter, timeout_s=timeout_s)
            for _ in range(workers)
        ]
        for each in self._all:
            self._cutters.put(each)

    def write(self, shards: Iterable[Shard]) -> Iterator[Note]:
        """Write what is not there yet; yield the note of every shard as it is done.

        Raises:
            EngineError: decoding cannot go on for any recording.
            FetchError: the data set's store failed beyond its retries.
        """
        waiting: set[Future[Note]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="shards") as pool:
            try:
                for shard in shards:
                    waiting.add(pool.submit(self._make, shard))
                    if len(waiting) > self._workers:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                # Decoders that are killed now are no fault of what they decode: nothing of their
                # shards is noted.
                self._stopping.set()
                for cutter in self._all:
                    cutter.close()

    def _make(self, shard: Shard) -> Note:
        name = f"{NOTES_FOLDER}/{shard.name}.json"
        digest = shard.digest()
        found = self._store.read_json(name)
        if found is not None and found["digest"] == digest and UNREACHABLE not in found["lost"]:
            return Note(**found)
        note = Note(name=shard.name, split=shard.split, digest=digest)
        with tempfile.TemporaryDirectory(prefix="corpus-asr-shard-") as folder:
            writer = WRITERS[self._settings.format](
                Path(folder), shard.name, self._settings.audio_format
            )
            self._fill(writer, shard, note)
            writer.close()
            if note.examples:
                for file, path in writer.files.items():
                    filesystem.upload(str(path), self._store.address(file), self._store.options)
        self._store.write_json(name, asdict(note))
        return note

    def _fill(self, writer: ShardWriter, shard: Shard, note: Note) -> None:
        cutter = self._cutters.get()
        try:
            for cuts in shard.cuts:
                left = dict(enumerate(cuts.rows))
                try:
                    for clip in cutter.run(cuts.request):
                        self._add(writer, left.pop(clip.number), clip, note)
                except (CheckpointError, ConfigError, EngineError):
                    raise
                except Exception as error:  # whatever one recording did costs its examples alone
                    if self._stopping.is_set():
                        raise
                    note.lose(_reason(error), left.values(), str(error))
        finally:
            self._cutters.put(cutter)

    def _add(self, writer: ShardWriter, row: dict[str, Any], clip: Clip, note: Note) -> None:
        seconds = clip.num_samples / SAMPLE_RATE_HZ
        row = row | self._origin.model(row["language"]) | {"duration_s": seconds}
        writer.add(row, clip.data)
        note.examples += 1
        note.seconds += seconds
        if len(note.shown) < _SHOWN:
            note.shown.append({name: row[name] for name in ("example_id", "whisper_transcript")})


def _reason(error: Exception) -> str:
    if not isinstance(error, ItemError):
        return UNREADABLE
    if error.kind in (CHANGED, CUT_SHORT):
        return error.kind
    return UNREACHABLE if error.retryable else UNREADABLE
