"""Folder of a dataset: its layouts, shards and summary files.

data/ or audio/        the examples
selection/             every segment with its measures, and the rules that dropped it
README.md              the card, written last: a folder without it is incomplete
labels.json            its numbers
_run/                  settings, and a note for every shard
"""

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from threading import Event
from typing import Any

from corpus_asr.config.run import DatasetSettings, SelectionSettings
from corpus_asr.errors import CheckpointError, ConfigError, EngineError, ItemError
from corpus_asr.labelling.examples import Shard
from corpus_asr.labelling.writers import (
    AUDIO_FOLDER,
    DATA_FOLDER,
    MANIFESTS_FOLDER,
    WRITERS,
    ShardWriter,
)
from corpus_asr.schemas import SCHEMA_VERSION
from corpus_asr.scratch import scratch_folder
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.messages import CHANGED, CUT_SHORT, Clip
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import redact_uri, without_secrets
from corpus_asr.units import SAMPLE_RATE_HZ

NOTES_FOLDER = "_run/shards"
CUTTER = "corpus_asr.stages.cutting:ClipCutter"
UNREADABLE, UNREACHABLE = "unreadable", "unreachable"
LOSSES = {
    CHANGED: "the recording changed after it was transcribed",
    CUT_SHORT: "the recording ends earlier than when it was transcribed",
    UNREADABLE: "the recording cannot be read or decoded again",
    UNREACHABLE: "the recording could not be read; the same command retries",
}
_MESSAGES_KEPT = 5
SETTINGS_NAME = "_run/dataset.json"
SELECTION_FOLDER = "selection"
SELECTION_NAME = f"{SELECTION_FOLDER}/00000.parquet"
CARD_NAME, NUMBERS_NAME = "README.md", "labels.json"
# Settings of locations and speed, which do not change the files.
_NOT_IN_FILES = {"uri", "storage_options", "workers"}


def result_settings(
    selection: SelectionSettings, dataset: DatasetSettings, source: str
) -> dict[str, Any]:
    """Return all settings that determine the content of a dataset."""
    sections = {
        "selection": selection.model_dump(mode="json"),
        "dataset": dataset.model_dump(mode="json", exclude=_NOT_IN_FILES),
    }
    settings = {
        f"{section}.{key}": without_secrets(value) if isinstance(value, str) else value
        for section, values in sections.items()
        for key, value in values.items()
    }
    return settings | {"transcripts": source, "schema_version": SCHEMA_VERSION}


def begin(store: OutputStore, settings: dict[str, Any]) -> None:
    """Start a dataset in a folder, or resume it."""
    stored = store.read_json(SETTINGS_NAME)
    if stored is None:
        # The last three belong to runs and trainings: a dataset must not be mixed with them.
        for folder in (DATA_FOLDER, AUDIO_FOLDER, SELECTION_FOLDER,
                       "segments", "outcomes", "model"):  # fmt: skip
            for name in store.all_names(folder):
                raise ConfigError(
                    f"beginning a dataset in {redact_uri(store.uri)}: found {name} without "
                    f"{SETTINGS_NAME}, expected an empty folder or a dataset of this program; "
                    "choose another dataset.uri"
                )
        store.write_json(SETTINGS_NAME, settings)
        return
    if stored != settings:
        changes = ", ".join(
            _change(key, stored.get(key), settings.get(key))
            for key in sorted({*stored, *settings})
            if stored.get(key) != settings.get(key)
        )
        raise ConfigError(
            f"beginning a dataset in {redact_uri(store.uri)}: found one of other settings "
            f"({changes}), expected the same settings and transcripts; choose another "
            "dataset.uri, or remove this one"
        )


def _change(key: str, before: Any, now: Any) -> str:
    if key == "transcripts" and str(before).split(" ")[0] == str(now).split(" ")[0]:
        return (
            "transcripts: the run has other results, corrections or speakers by now, or the "
            "other run or the references changed"
        )
    return f"{key}: was {json.dumps(before)}, now {json.dumps(now)}"


def complete(
    store: OutputStore, *, card: str, numbers: dict[str, Any], splits: Iterable[str], layout: str
) -> None:
    """Write the summary files: the files of each split, the numbers, the card."""
    store.remove_temporary()
    manifest = WRITERS[layout].manifest
    for split in splits if manifest else ():
        _join(store, split, manifest.format(split=split))
    store.write_json(NUMBERS_NAME, numbers)
    store.write_bytes(CARD_NAME, card.encode("utf-8", "replace"))


def _join(store: OutputStore, split: str, target: str) -> None:
    of_split = re.compile(rf"(.*/)?{split}-[0-9]+\.jsonl")
    # Until now one file per shard: objects in a store cannot be appended to.
    store.relist(MANIFESTS_FOLDER)
    names = sorted(filter(of_split.fullmatch, store.all_names(MANIFESTS_FOLDER)))
    if not names:
        return
    with scratch_folder() as folder:
        path = folder / "manifest"
        with path.open("wb") as file:
            for name in names:
                file.write(filesystem.read_bytes(store.address(name), store.options))
        filesystem.upload(str(path), store.address(target), store.options)


@dataclass(slots=True)
class Note:
    """Contents and losses of a shard; saved next to it."""

    name: str
    split: str
    digest: str
    examples: int = 0
    seconds: float = 0.0
    lost: dict[str, list[float]] = field(default_factory=dict)
    """By reason: number of lost examples, and their seconds."""
    messages: list[str] = field(default_factory=list)
    """Messages of some losses."""

    def lose(self, reason: str, rows: Iterable[dict[str, Any]], message: str) -> None:
        """Count examples that could not be cut."""
        counts = self.lost.setdefault(reason, [0, 0.0])
        for row in rows:
            counts[0] += 1
            counts[1] += row["end_s"] - row["start_s"]
        if len(self.messages) < _MESSAGES_KEPT:
            self.messages.append(without_secrets(message))


class ShardMaker:
    """Writes the shards of a dataset atomically, and each only once.

    Audio is decoded again in child processes that may crash; examples that fail are counted.
    """

    def __init__(
        self,
        store: OutputStore,
        settings: DatasetSettings,
        *,
        cutter: dict[str, Any],
        timeout_s: float,
        workers: int,
    ) -> None:
        self._store = store
        self._settings = settings
        self._stopping = Event()
        self._all = [
            IsolatedGenerator(CUTTER, init_kwargs=cutter, timeout_s=timeout_s)
            for _ in range(workers)
        ]
        self._cutters: SimpleQueue[IsolatedGenerator] = SimpleQueue()
        for child in self._all:
            self._cutters.put(child)

    def write(self, shards: Iterable[Shard]) -> Iterator[Note]:
        """Write missing shards; yield the note of each shard when it is complete."""
        waiting: set[Future[Note]] = set()
        with ThreadPoolExecutor(len(self._all), thread_name_prefix="shards") as pool:
            try:
                for shard in shards:
                    waiting.add(pool.submit(self._make, shard))
                    if len(waiting) > len(self._all):
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in as_completed(waiting))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                # Decoders killed now are not the fault of their recordings: no notes are written
                # for their shards.
                self._stopping.set()
                for cutter in self._all:
                    cutter.close()

    def _make(self, shard: Shard) -> Note:
        name = f"{NOTES_FOLDER}/{shard.name}.json"
        digest = shard.digest()
        stored = self._store.read_json(name)
        # Unreachable recordings are retried.
        if stored is not None and stored["digest"] == digest and UNREACHABLE not in stored["lost"]:
            return Note(**stored)
        note = Note(name=shard.name, split=shard.split, digest=digest)
        with scratch_folder() as folder:
            writer = WRITERS[self._settings.format](folder, shard.name, self._settings.audio_format)
            self._fill(writer, shard, note)
            writer.close()
            # A shard that lost everything has no file.
            if note.examples:
                for file, path in writer.files.items():
                    filesystem.upload(str(path), self._store.address(file), self._store.options)
        # Written last: the note marks the files as complete.
        self._store.write_json(name, asdict(note))
        return note

    def _fill(self, writer: ShardWriter, shard: Shard, note: Note) -> None:
        cutter = self._cutters.get()
        try:
            for cuts in shard.cuts:
                # Clips arrive in any order; those missing when a recording fails are lost.
                open_rows = dict(enumerate(cuts.rows))
                try:
                    for clip in cutter.run(cuts.request):
                        self._add(writer, open_rows.pop(clip.number), clip, note)
                # Errors of settings or the machine affect all recordings.
                except (CheckpointError, ConfigError, EngineError):
                    raise
                except Exception as error:  # any other error costs only this recording's examples
                    if self._stopping.is_set():
                        raise
                    note.lose(_reason(error), open_rows.values(), str(error))
        finally:
            self._cutters.put(cutter)

    def _add(self, writer: ShardWriter, row: dict[str, Any], clip: Clip, note: Note) -> None:
        seconds = clip.num_samples / SAMPLE_RATE_HZ
        row = row | {"duration_s": seconds}
        writer.add(row, clip.data)
        note.examples += 1
        note.seconds += seconds


def _reason(error: Exception) -> str:
    if not isinstance(error, ItemError):
        return UNREADABLE
    if error.kind in (CHANGED, CUT_SHORT):
        return error.kind
    return UNREACHABLE if error.retryable else UNREADABLE
