"""The table `speakers/`: who speaks when in each recording, made of what its parts carry.

Voices are committed with the outcomes of their parts, so that they survive whatever becomes of the
run; turns are rows of objects that a finish writes, each of whole recordings. `made_of` names what
the turns of a recording were made of: what is there already is not made again. Of a recording that
two objects hold, after a finish that was killed, the newest counts.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.array_types import Float16, Float64
from corpus_asr.schemas import SPEAKERS
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.run_state.ledger import Ledger, counted
from corpus_asr.storage.run_state.tables import (
    OUTCOMES_FOLDER,
    SPEAKERS_FOLDER,
    SUFFIX,
    OutputStore,
    projected,
)

# What an object holds at most: some ten MB.
ROWS_PER_OBJECT = 250_000
# More objects than this are merged into as few as hold them.
MAX_OBJECTS = 8

_LOG = logging.getLogger(__name__)
_VERSION = ("part", "run_id", "status", "etag", "size_bytes")
_LIGHT = ("recording_id", "last_part", *_VERSION)
_TURN = ("recording_id", "channel", "start_s", "end_s", "speaker", "confidence")
_VOICES = ("recording_id", "uri", "part", "channel", "voice_spans", "voices")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVoices:
    """Windows of one part's speech and their embeddings, as they are stored."""

    channel: int | None
    spans: tuple[tuple[float, float], ...]
    """Start and end of each window, in seconds of the recording."""
    data: bytes

    @property
    def spans_s(self) -> Float64[np.ndarray, "window border"]:
        """The same as an array."""
        return np.array(self.spans, dtype=np.float64).reshape(-1, 2)

    @property
    def embeddings(self) -> Float16[np.ndarray, "window width"]:
        """One row per window.

        Raises:
            ValueError: what is stored is not as many rows.
        """
        values = np.frombuffer(self.data, dtype="<f2").astype(np.float16)
        return values.reshape(len(self.spans), -1) if self.spans else values.reshape(0, 1)


@dataclass(slots=True, kw_only=True)
class RecordingVoices:
    """Voices of a recording whose parts are all committed."""

    recording_id: str
    uri: str
    made_of: str
    parts: dict[int, PartVoices] = field(default_factory=dict)


def voices_left(store: OutputStore, settings: Mapping[str, Any]) -> Iterator[RecordingVoices]:
    """Yield the complete recordings without turns made of the same, as their parts are read.

    In memory are the recordings whose parts are not all read yet, and a few hundred bytes of every
    other. `settings` change turns.
    """
    counts = Ledger.load(store).resolve(()).counts
    complete = _complete(store, settings, counts)
    known = _made(store)
    left = {each: key for each, key in complete.items() if known.get(each) != key.made_of}
    del complete, known
    waiting: dict[str, RecordingVoices] = {}
    wanted = pa.array([*left], pa.string())
    # One object at a time: several, read ahead, would be a gigabyte of voices.
    objects = store.names(OUTCOMES_FOLDER) if left else ()
    for batch, mask in (
        each for name in objects for each in counted(store, counts, _VOICES, [name])
    ):
        theirs = pc.is_in(batch["recording_id"], value_set=wanted)
        rows = batch.filter(pc.and_(theirs, pa.array(mask)))
        for row in rows.to_pylist():
            if (expected := left.get(row["recording_id"])) is None:
                continue  # a second commit of a part
            found = waiting.setdefault(
                row["recording_id"],
                RecordingVoices(
                    recording_id=row["recording_id"], uri=row["uri"], made_of=expected.made_of
                ),
            )
            found.parts[row["part"]] = _part_voices(row)
            if len(found.parts) == expected.num_parts:
                del left[found.recording_id]
                yield waiting.pop(found.recording_id)


class _Complete(NamedTuple):
    num_parts: int
    made_of: str


def _complete(
    store: OutputStore, settings: Mapping[str, Any], counts: Mapping[str, np.ndarray]
) -> dict[str, _Complete]:
    """Return the recordings whose parts are all there, and what their turns are made of."""
    chosen = json.dumps(settings, sort_keys=True)
    sums: dict[str, tuple[int, int, int]] = {}  # parts, number of the last or -1, sum of hashes
    for batch, mask in counted(store, counts, _LIGHT, store.names(OUTCOMES_FOLDER)):
        for row in batch.filter(pa.array(mask)).to_pylist():
            count, last, total = sums.get(row["recording_id"], (0, -1, 0))
            version = repr((chosen, *(row[name] for name in _VERSION))).encode()
            # In whatever order they are read, the same parts have the same sum.
            total += int.from_bytes(hashlib.blake2b(version, digest_size=8).digest(), "big")
            last = row["part"] if row["last_part"] else last
            sums[row["recording_id"]] = (count + 1, last, total % 2**64)
    return {
        each: _Complete(count, f"{total:016x}")
        for each, (count, last, total) in sums.items()
        if count == last + 1
    }


def _part_voices(row: Mapping[str, Any]) -> PartVoices:
    # Objects of earlier versions lack these columns.
    spans = tuple((each["start_s"], each["end_s"]) for each in row.get("voice_spans") or ())
    return PartVoices(channel=row["channel"], spans=spans, data=row.get("voices") or b"")


def _made(store: OutputStore) -> dict[str, str]:
    made: dict[str, str] = {}
    for name in store.names(SPEAKERS_FOLDER):
        for batch in store.batches(name, columns=["recording_id", "made_of"]):
            made |= zip(*(batch[column].to_pylist() for column in batch.schema.names), strict=True)
    return made


def turn_rows(
    recording: RecordingVoices,
    turns: Iterable[SpeakerTurn],
    embeddings: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a recording's turns; one without a speaker says that it has none.

    The first turn of a speaker has the mean embedding.
    """
    left = dict(embeddings or {})
    identity = {name: getattr(recording, name) for name in ("recording_id", "uri", "made_of")}
    rows = [
        identity
        | {"channel": turn.channel, "start_s": turn.start_s, "end_s": turn.end_s,
           "speaker": turn.speaker, "confidence": turn.confidence,
           "embedding": _stored(left.pop(turn.speaker, None))}
        for turn in turns
    ]  # fmt: skip
    return rows or [identity]


def _stored(embedding: Sequence[float] | None) -> bytes | None:
    return None if embedding is None else np.array(embedding, dtype="<f2").tobytes()


def write_turns(store: OutputStore, rows: Iterable[list[dict[str, Any]]]) -> int:
    """Put the rows of recordings in objects; return how many recordings."""
    waiting: list[dict[str, Any]] = []
    num_recordings = 0
    for own in rows:
        waiting += own
        num_recordings += 1
        if len(waiting) >= ROWS_PER_OBJECT:
            _put(store, pa.Table.from_pylist(waiting, SPEAKERS))
            waiting = []
    if waiting:
        _put(store, pa.Table.from_pylist(waiting, SPEAKERS))
    return num_recordings


def _put(store: OutputStore, table: pa.Table) -> None:
    store.write_table(f"{SPEAKERS_FOLDER}/{store.stem()}{SUFFIX}", table)


def tidy_turns(store: OutputStore, recording_ids: Iterable[str]) -> None:
    """Keep of each of these recordings the newest turns, and of others none, in few objects."""
    names = store.names(SPEAKERS_FOLDER)
    wanted = set(recording_ids)
    newest: dict[str, str] = {}
    rows_of: dict[str, set[str]] = {}
    for name in names:
        ids = store.read_table(name, projected(SPEAKERS, ("recording_id",)))["recording_id"]
        rows_of[name] = set(ids.to_pylist())
        newest |= dict.fromkeys(rows_of[name], name)
    stale = [
        name
        for name, ids in rows_of.items()
        if not ids <= wanted or any(newest[each] != name for each in ids)
    ]
    rewritten = names if len(names) > MAX_OBJECTS else stale
    if not rewritten:
        return
    kept = [SPEAKERS.empty_table()]
    for name in rewritten:
        ids = [each for each in rows_of[name] if newest[each] == name and each in wanted]
        table = store.read_table(name, SPEAKERS)
        mask = pc.is_in(table["recording_id"], value_set=pa.array(ids, pa.string()))
        kept.append(table.filter(mask))
    table = pa.concat_tables(kept)
    # First what replaces, then what is replaced: a reader sees rows twice, and never misses one.
    for start in range(0, table.num_rows, ROWS_PER_OBJECT):
        _put(store, table.slice(start, ROWS_PER_OBJECT))
    store.remove_all(rewritten)


SPEAKING = pa.schema(
    [("recording_id", pa.string()), ("speakers", pa.int64()),
     ("speech_s", pa.float64()), ("most_s", pa.float64())]
)  # fmt: skip
"""How many speak in each recording, how long all do, and the one who speaks most."""
_SPANS = ("recording_id", "speaker", "start_s", "end_s")


def speaking_times(store: OutputStore) -> pa.Table | None:
    """Return a row of `SPEAKING` per recording; None where speakers were not looked for.

    Turns of one object at a time are in memory, and some 50 bytes of every recording.
    """
    tables = []
    for at, name in enumerate(store.names(SPEAKERS_FOLDER)):  # in order of time
        turns = store.read_table(name, projected(SPEAKERS, _SPANS))
        turns = turns.append_column("s", pc.subtract(turns["end_s"], turns["start_s"]))
        said = turns.group_by(["recording_id", "speaker"]).aggregate([("s", "sum")])
        own = said.group_by("recording_id").aggregate(
            [("speaker", "count"), ("s_sum", "sum"), ("s_sum", "max")]
        )
        own = own.select(["recording_id", "speaker_count", "s_sum_sum", "s_sum_max"])
        own = own.rename_columns(SPEAKING.names).cast(SPEAKING)
        tables.append(own.append_column("object", pa.repeat(at, own.num_rows)))
    if not tables:
        return None
    # Of a recording in two objects the newest counts.
    rows = pa.concat_tables(tables)
    newest = rows.group_by("recording_id").aggregate([("object", "max")])
    places = pc.index_in(rows["recording_id"], newest["recording_id"].combine_chunks())
    current = pc.equal(rows["object"], newest["object_max"].take(places))
    return rows.filter(current).drop_columns(["object"])


def read_turns(
    store: OutputStore, recording_ids: Iterable[str] | None = None
) -> dict[str, list[SpeakerTurn]] | None:
    """Return the turns of recordings, all or these; None where the run looked for no speakers."""
    names = store.names(SPEAKERS_FOLDER)
    if not names:
        return None
    only = None if recording_ids is None else pa.array([*recording_ids], pa.string())
    turns: dict[str, list[SpeakerTurn]] = {}
    schema = projected(SPEAKERS, _TURN)
    for name in names:  # in order of time
        table = store.read_table(name, schema)
        if only is not None:
            table = table.filter(pc.is_in(table["recording_id"], value_set=only))
        turns |= {each: [] for each in table["recording_id"].unique().to_pylist()}
        for row in table.filter(pc.is_valid(table["speaker"])).to_pylist():
            turns[row["recording_id"]].append(
                SpeakerTurn(
                    start_s=row["start_s"],
                    end_s=row["end_s"],
                    speaker=row["speaker"],
                    confidence=row["confidence"],
                    channel=row["channel"],
                )
            )
    return turns
