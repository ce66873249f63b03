"""Speakers: the table `speakers/`, of turns in each recording, and `voices/`, of persons.

Voice embeddings are committed with the outcomes of their parts, so that they survive a run that is
killed; turns are written by a finish, in objects of whole recordings. `made_of` identifies the
inputs of turns: existing turns are not recomputed. If two objects hold a recording, after a finish
that was killed, the newest is current.

Speakers of different recordings are grouped to persons from the mean embeddings in `speakers/`, for
all recordings together, so that tables of turns are never rewritten for it: a finish writes a new
object of `voices/`, then removes the previous one. The newest is current.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.array_types import Float32, Int64
from corpus_asr.config.extraction import SPEAKER_COUNTS
from corpus_asr.logs import event
from corpus_asr.schemas import SPEAKERS, VOICES
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.run_state.annotations import named_numbers
from corpus_asr.storage.run_state.recording_rows import (
    ROWS_PER_OBJECT,
    Portion,
    made_so_far,
    portions_of,
    put_rows,
    rows_at,
    wanted,
)
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.table_names import SPEAKERS_FOLDER, SUFFIX, VOICES_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore, projected

_LOG = logging.getLogger(__name__)
# Per output folder: comparing all pairs takes some 200 s of one core, and 435 MB.
MAX_COMPARED_SPEAKERS = 100_000
_TURN = ("recording_id", "channel", "start_s", "end_s", "speaker", "confidence")
_VOICES = (
    "recording_id", "uri", "part", "channel", "voice_spans", "voices", "overlap_spans",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class RecordingVoices:
    """Voice windows of a complete recording."""

    recording_id: str
    uri: str
    made_of: str
    numbers: Mapping[str, str | None] = field(default_factory=dict)
    """Numbers of speakers from its manifest row, by `SPEAKER_COUNTS`."""
    parts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Voice columns of each part's row."""


@contextmanager
def voices_left(
    store: OutputStore, settings: Mapping[str, Any]
) -> Iterator[tuple[int, Iterator[Portion]]]:
    """Return the number of complete recordings with missing or outdated turns, and their portions.

    A portion spans as few objects as possible. `settings` are those that change turns.
    """
    names = store.names(SPEAKERS_FOLDER)
    made = made_so_far(store, names)
    with RunTables(store, columns=VERSION_COLUMNS, opened="false") as tables:
        tables.add("made", made)
        chosen = json.dumps(settings, sort_keys=True)
        keys = tables.table(wanted(also=_ALSO), settings=chosen)
        tables.add("wanted", keys)
        tables.open(keys["recording_id"])
        stale = tables.table(_STALE)
        # Includes speakers no longer found: their names must not pass to others.
        named = named_numbers(store) if stale.num_rows else {}

        def with_earlier(portion: Portion) -> Portion:
            is_of_portion = pc.is_in(
                stale["recording_id"], pa.array([*portion.recordings], pa.string())
            )
            numbers = sorted(set(stale["number"].filter(is_of_portion).to_pylist()))
            return replace(
                portion,
                earlier=[names[at] for at in numbers],
                named={
                    recording_id: named[recording_id]
                    for recording_id in portion.recordings
                    if recording_id in named
                },
                numbers=dict(tables.rows(_NUMBERS_OF, ids=[*portion.recordings])),
            )

        yield len(keys), map(with_earlier, portions_of(tables, "wanted"))


def read_voices_of(store: OutputStore, portion: Portion) -> Iterator[RecordingVoices]:
    """Yield recordings as their parts are read; memory holds incomplete ones only."""
    waiting: dict[str, RecordingVoices] = {}
    # One object at a time: read-ahead of several would take a gigabyte.
    for name in sorted(portion.rows):
        for row in rows_at(store, name, portion.rows[name], _VOICES):
            made_of, num_parts = portion.recordings[row["recording_id"]]
            recording = waiting.setdefault(
                row["recording_id"],
                RecordingVoices(
                    recording_id=row["recording_id"],
                    uri=row["uri"],
                    made_of=made_of,
                    numbers=portion.numbers[row["recording_id"]],
                ),
            )
            recording.parts[row["part"]] = row
            if len(recording.parts) == num_parts:
                yield waiting.pop(recording.recording_id)


# Turns to be recomputed: speakers known to people keep their labels.
_STALE = "select distinct recording_id, number from made semi join wanted using (recording_id)"
# Null for a row without numbers of speakers: its turns are not recomputed.
_NUMBER = "json_extract_string(metadata, {})"
_NUMBERS = _NUMBER.format([f"$.{name}" for name in SPEAKER_COUNTS])
_ALSO = f"coalesce(nullif({_NUMBERS}::varchar, '[NULL, NULL, NULL]'), '')"
_BY_NAME = ", ".join(f"{name}: " + _NUMBER.format(f"'$.{name}'") for name in SPEAKER_COUNTS)
_NUMBERS_OF = f"""
select recording_id, {{{_BY_NAME}}} from recorded where recording_id in (select unnest($ids))
"""


def turn_rows(
    recording: RecordingVoices,
    turns: Iterable[SpeakerTurn],
    embeddings: Mapping[str, Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a recording's turns; one row without a speaker if it has none.

    The first turn of a speaker holds the mean embedding.
    """
    embedding_of = dict(embeddings or {})
    identity = {name: getattr(recording, name) for name in ("recording_id", "uri", "made_of")}
    rows = [
        identity
        | {"channel": turn.channel, "start_s": turn.start_s, "end_s": turn.end_s,
           "speaker": turn.speaker, "confidence": turn.confidence,
           "embedding": _stored(embedding_of.pop(turn.speaker, None))}
        for turn in turns
    ]  # fmt: skip
    return rows or [identity]


def _stored(embedding: Sequence[float] | None) -> bytes | None:
    return None if embedding is None else np.array(embedding, dtype="<f2").tobytes()


def write_turns(store: OutputStore, rows: Iterable[list[dict[str, Any]]]) -> int:
    """Write the rows of recordings to objects; return the number of recordings."""
    waiting: list[dict[str, Any]] = []
    num_recordings = 0
    for recording_rows in rows:
        waiting += recording_rows
        num_recordings += 1
        if len(waiting) >= ROWS_PER_OBJECT:
            put_rows(store, SPEAKERS_FOLDER, pa.Table.from_pylist(waiting, SPEAKERS))
            waiting = []
    if waiting:
        put_rows(store, SPEAKERS_FOLDER, pa.Table.from_pylist(waiting, SPEAKERS))
    return num_recordings


SPEAKING = pa.schema(
    [("recording_id", pa.string()), ("speakers", pa.int64()),
     ("speech_s", pa.float64()), ("most_s", pa.float64())]
)  # fmt: skip
"""Number of speakers, total speaking time and main speaker of each recording."""
_SPANS = ("recording_id", "speaker", "start_s", "end_s")


def speaking_times(store: OutputStore) -> pa.Table | None:
    """Return a row of `SPEAKING` per recording; None without diarization.

    Memory: turns of one object, and about 50 bytes per recording.
    """
    tables = []
    for at, name in enumerate(store.names(SPEAKERS_FOLDER)):  # in time order
        turns = store.read_table(name, projected(SPEAKERS, _SPANS))
        turns = turns.append_column("s", pc.subtract(turns["end_s"], turns["start_s"]))
        speaker_times = turns.group_by(["recording_id", "speaker"]).aggregate([("s", "sum")])
        recording_times = speaker_times.group_by("recording_id").aggregate(
            [("speaker", "count"), ("s_sum", "sum"), ("s_sum", "max")]
        )
        recording_times = recording_times.select(
            ["recording_id", "speaker_count", "s_sum_sum", "s_sum_max"]
        )
        recording_times = recording_times.rename_columns(SPEAKING.names).cast(SPEAKING)
        tables.append(
            recording_times.append_column("object", pa.repeat(at, recording_times.num_rows))
        )
    if not tables:
        return None
    # If two objects hold a recording, the newest is current.
    rows = pa.concat_tables(tables)
    newest = rows.group_by("recording_id").aggregate([("object", "max")])
    places = pc.index_in(rows["recording_id"], newest["recording_id"].combine_chunks())
    current = pc.equal(rows["object"], newest["object_max"].take(places))
    return rows.filter(current).drop_columns(["object"])


def read_turns(
    store: OutputStore,
    recording_ids: Iterable[str] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> dict[str, list[SpeakerTurn]] | None:
    """Return the turns of all or some recordings; None without diarization.

    `names` are the objects that hold them, if known.
    """
    names = store.names(SPEAKERS_FOLDER) if names is None else names
    if not names:
        return None
    only = None if recording_ids is None else pa.array([*recording_ids], pa.string())
    turns: dict[str, list[SpeakerTurn]] = {}
    schema = projected(SPEAKERS, _TURN)
    for name in names:  # in time order
        table = store.read_table(name, schema)
        if only is not None:
            table = table.filter(pc.is_in(table["recording_id"], value_set=only))
        turns |= {recording_id: [] for recording_id in table["recording_id"].unique().to_pylist()}
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


_SPOKEN = ("recording_id", "uri", "speaker", "embedding", "made_of")
Finder = Callable[
    [
        Float32[np.ndarray, "speaker width"],
        Int64[np.ndarray, " speaker"],
        Int64[np.ndarray, " speaker"],
    ],
    Int64[np.ndarray, " speaker"],
]
"""Returns a voice number for each speaker, given mean embeddings, recording numbers, and known
voice numbers, -1 if unknown."""


def write_voices(store: OutputStore, find: Finder, *, settings: Any) -> int | None:
    """Write the voices of all speakers; return their number, or None if they are up to date.

    Speakers come in the order of URIs and of appearance, independent of commits. Memory: their
    embeddings, a kilobyte each. `settings` are those that change voices. An existing voice is kept,
    unless one of its speakers was removed or recomputed. Beyond `MAX_COMPARED_SPEAKERS`, new
    speakers are not compared, and have no voice.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8).hexdigest()
    speakers = _speakers(store)
    made_of = pc.binary_join_element_wise(digest, speakers["made_of"], "-")
    speakers = speakers.set_column(speakers.schema.names.index("made_of"), "made_of", made_of)
    names = store.names(VOICES_FOLDER)
    old_voices = store.read_table(names[-1], VOICES) if names else VOICES.empty_table()
    known_numbers = _known_voices(speakers, old_voices)
    if names and (known_numbers >= 0).all() and old_voices.num_rows == len(known_numbers):
        store.remove_all(names[:-1])
        return None
    if speakers.num_rows > MAX_COMPARED_SPEAKERS:
        is_known = known_numbers >= 0
        event(
            _LOG, logging.WARNING, "voices_not_compared", speakers=len(known_numbers),
            expected=f"at most {MAX_COMPARED_SPEAKERS}", without_voice=int((~is_known).sum()),
            advice="texts and speakers are complete; set `speakers: auto`, or use several outputs",
        )  # fmt: skip
        speakers, numbers = speakers.filter(pa.array(is_known)), known_numbers[is_known] - 1
    else:
        ids = speakers["recording_id"].combine_chunks().dictionary_encode().indices
        numbers = find(_embeddings(speakers), ids.to_numpy().astype(np.int64), known_numbers)
    voices = [f"V{number + 1}" for number in numbers.tolist()]
    rows = speakers.append_column("voice", pa.array(voices, pa.string())).select(VOICES.names)
    store.write_table(f"{VOICES_FOLDER}/{store.stem()}{SUFFIX}", rows.cast(VOICES))
    store.remove_all(names)
    return len({*voices})


def _known_voices(speakers: pa.Table, before: pa.Table) -> Int64[np.ndarray, " speaker"]:
    """Return the number of each speaker's voice in an earlier table of voices, or -1."""
    keys, old = (
        pc.binary_join_element_wise(*(table[name] for name in _SPEAKER), "/")
        for table in (speakers, before)
    )
    places = pc.index_in(keys, value_set=old.combine_chunks())
    numbers = pc.cast(pc.utf8_slice_codeunits(before["voice"], 1), pa.int64())  # of V12: 12
    voice_numbers = pc.fill_null(numbers.take(places), -1).to_numpy().copy()
    # A removed speaker may have linked the others of a voice.
    gone = np.ones(before.num_rows, dtype=bool)
    gone[places.drop_null().to_numpy()] = False
    voice_numbers[np.isin(voice_numbers, numbers.to_numpy()[gone])] = -1
    speaker_numbers: Int64[np.ndarray, " speaker"] = voice_numbers.astype(np.int64)
    return speaker_numbers


_SPEAKER = ("recording_id", "speaker", "made_of")


def remove_voices(store: OutputStore) -> None:
    """Remove the voices found by a run with other settings."""
    store.remove_all(store.names(VOICES_FOLDER))


def read_voices(store: OutputStore) -> Mapping[tuple[str, str], str]:
    """Return the voice of each speaker by `recording_id` and speaker; empty without voices."""
    names = store.names(VOICES_FOLDER)
    if not names:
        return {}
    table = store.read_table(names[-1], projected(VOICES, ("recording_id", "speaker", "voice")))
    ids, speakers, voices = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(ids, speakers, strict=True), voices, strict=True))


def _speakers(store: OutputStore) -> pa.Table:
    """Return each speaker once with the embedding, those of a recording from one object."""
    schema = projected(SPEAKERS, _SPOKEN)
    tables = [schema.empty_table()]
    seen_ids: set[str] = set()
    for name in reversed(store.names(SPEAKERS_FOLDER)):  # newest first
        table = store.read_table(name, schema)
        ids = {*table["recording_id"].to_pylist()} - seen_ids
        seen_ids |= ids
        fresh = pc.is_in(table["recording_id"], value_set=pa.array([*ids], pa.string()))
        tables.append(table.filter(pc.and_(fresh, pc.is_valid(table["embedding"]))))
    table = pa.concat_tables(tables)
    number = pc.cast(pc.utf8_slice_codeunits(table["speaker"], 1), pa.int64())  # of S12: 12
    order = [(name, "ascending") for name in ("uri", "recording_id", "number")]
    return table.append_column("number", number).sort_by(order)


def _embeddings(speakers: pa.Table) -> Float32[np.ndarray, "speaker width"]:
    data = b"".join(speakers["embedding"].to_pylist())
    values = np.frombuffer(data, dtype="<f2").astype(np.float32)
    return values.reshape(speakers.num_rows, -1) if data else np.zeros((0, 1), dtype=np.float32)
