"""Who speaks: the table `speakers/`, of turns in each recording, and `voices/`, of persons.

Voices are committed with the outcomes of their parts, so that they survive whatever becomes of the
run; turns are rows of objects that a finish writes, each of whole recordings. `made_of` names what
the turns of a recording were made of: what is there already is not made again. Of a recording that
two objects hold, after a finish that was killed, the newest counts.

Which speakers of a corpus's recordings are one person is made of the mean embeddings in
`speakers/`, as a whole, so that no table of turns is ever rewritten for it: a finish puts a new
object of `voices/` and then removes the one before. Of two the newest counts here, too.
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
from corpus_asr.storage.run_state.manifest_columns import join_columns
from corpus_asr.storage.run_state.portions import Portion, portions_of
from corpus_asr.storage.run_state.recording_rows import (
    ROWS_PER_OBJECT,
    made_so_far,
    put_rows,
    rows_at,
    wanted,
)
from corpus_asr.storage.run_state.rewriting import named_numbers
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.tables import (
    SPEAKERS_FOLDER,
    SUFFIX,
    VOICES_FOLDER,
    OutputStore,
    projected,
)

_LOG = logging.getLogger(__name__)
# Of one output folder: all pairs of them take some 200 s of one core, and 435 MB.
MAX_COMPARED_SPEAKERS = 100_000
_TURN = ("recording_id", "channel", "start_s", "end_s", "speaker", "confidence")
_VOICES = (
    "recording_id", "uri", "part", "channel", "voice_spans", "voices", "overlap_spans",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class RecordingVoices:
    """Voices of a recording whose parts are all committed."""

    recording_id: str
    uri: str
    made_of: str
    numbers: Mapping[str, str | None] = field(default_factory=dict)
    """Numbers of speakers of its row of the manifest, by `SPEAKER_COUNTS`."""
    parts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Columns of voices of each part's row."""


@contextmanager
def voices_left(
    store: OutputStore, settings: Mapping[str, Any]
) -> Iterator[tuple[int, Iterator[Portion]]]:
    """Give how many complete recordings have no turns made of the same, and these in portions.

    A portion lies in as few objects as its recordings do. `settings` change turns.
    """
    names = store.names(SPEAKERS_FOLDER)
    known = made_so_far(store, names)
    with RunTables(store, columns=(*VERSION_COLUMNS, "metadata")) as tables:
        join_columns(store, tables, "outcomes")
        tables.add("made", known)
        chosen = json.dumps(settings, sort_keys=True)
        tables.add("wanted", tables.table(wanted(also=_ALSO), settings=chosen))
        [(number,)] = tables.rows("select count(*) from wanted")
        stale = tables.table(_STALE)
        # Of speakers who are no longer found, too: nobody else is to get their names.
        named = named_numbers(store) if stale.num_rows else {}

        def with_earlier(portion: Portion) -> Portion:
            own = pc.is_in(stale["recording_id"], pa.array([*portion.recordings], pa.string()))
            numbers = sorted(set(stale["number"].filter(own).to_pylist()))
            return replace(
                portion,
                earlier=[names[at] for at in numbers],
                named={each: named[each] for each in portion.recordings if each in named},
                numbers=dict(tables.rows(_NUMBERS_OF, ids=[*portion.recordings])),
            )

        yield number, map(with_earlier, portions_of(tables, "wanted"))


def read_voices_of(store: OutputStore, portion: Portion) -> Iterator[RecordingVoices]:
    """Yield recordings as their parts are read; in memory are those not yet read as a whole."""
    waiting: dict[str, RecordingVoices] = {}
    # One object at a time: several, read ahead, would be a gigabyte of voices.
    for name in sorted(portion.rows):
        for row in rows_at(store, name, portion.rows[name], _VOICES):
            made_of, num_parts = portion.recordings[row["recording_id"]]
            found = waiting.setdefault(
                row["recording_id"],
                RecordingVoices(
                    recording_id=row["recording_id"],
                    uri=row["uri"],
                    made_of=made_of,
                    numbers=portion.numbers[row["recording_id"]],
                ),
            )
            found.parts[row["part"]] = row
            if len(found.parts) == num_parts:
                yield waiting.pop(found.recording_id)


# Turns that are made again: who speaks in them keeps the label, where people know it.
_STALE = "select distinct recording_id, number from made semi join wanted using (recording_id)"
# Nothing for a row without numbers of speakers: its turns are not made again.
_NUMBER = "json_extract_string(arg_min(metadata, part), {})"
_NUMBERS = _NUMBER.format([f"$.{name}" for name in SPEAKER_COUNTS])
_ALSO = f"coalesce(nullif({_NUMBERS}::varchar, '[NULL, NULL, NULL]'), '')"
_BY_NAME = ", ".join(f"{name}: " + _NUMBER.format(f"'$.{name}'") for name in SPEAKER_COUNTS)
_NUMBERS_OF = f"""
select recording_id, {{{_BY_NAME}}} from parts
where recording_id in (select unnest($ids)) group by all
"""


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
            put_rows(store, SPEAKERS_FOLDER, pa.Table.from_pylist(waiting, SPEAKERS))
            waiting = []
    if waiting:
        put_rows(store, SPEAKERS_FOLDER, pa.Table.from_pylist(waiting, SPEAKERS))
    return num_recordings


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
    store: OutputStore,
    recording_ids: Iterable[str] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> dict[str, list[SpeakerTurn]] | None:
    """Return the turns of recordings, all or these; None where the run looked for no speakers.

    `names` are the objects that hold them, where these are known.
    """
    names = store.names(SPEAKERS_FOLDER) if names is None else names
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


_SPOKEN = ("recording_id", "uri", "speaker", "embedding", "made_of")
Finder = Callable[
    [
        Float32[np.ndarray, "speaker width"],
        Int64[np.ndarray, " speaker"],
        Int64[np.ndarray, " speaker"],
    ],
    Int64[np.ndarray, " speaker"],
]
"""Returns a number for each speaker, given mean embeddings, numbers of recordings, and numbers of
the voices that are known, -1 where none is."""


def write_voices(store: OutputStore, find: Finder, *, settings: Any) -> int | None:
    """Write the voices of all speakers there are; return how many, or None if they are known.

    Speakers come in the order of URIs and of appearance, whatever the order of their commits.
    In memory are their embeddings, a kilobyte each. `settings` change voices. A voice that was
    found before stays one, unless somebody of it is gone or was found again. Of more than
    `MAX_COMPARED_SPEAKERS`, new ones are not compared, and have no voice.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8).hexdigest()
    speakers = _speakers(store)
    made_of = pc.binary_join_element_wise(digest, speakers["made_of"], "-")
    speakers = speakers.set_column(speakers.schema.names.index("made_of"), "made_of", made_of)
    names = store.names(VOICES_FOLDER)
    before = store.read_table(names[-1], VOICES) if names else VOICES.empty_table()
    known = _known_voices(speakers, before)
    if names and (known >= 0).all() and before.num_rows == len(known):
        store.remove_all(names[:-1])
        return None
    if speakers.num_rows > MAX_COMPARED_SPEAKERS:
        is_known = known >= 0
        event(
            _LOG, logging.WARNING, "voices_not_compared", speakers=len(known),
            expected=f"at most {MAX_COMPARED_SPEAKERS}", without_voice=int((~is_known).sum()),
            advice="texts and speakers are complete; set `speakers: auto`, or give recordings to "
            "several output folders",
        )  # fmt: skip
        speakers, numbers = speakers.filter(pa.array(is_known)), known[is_known] - 1
    else:
        ids = speakers["recording_id"].combine_chunks().dictionary_encode().indices
        numbers = find(_embeddings(speakers), ids.to_numpy().astype(np.int64), known)
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
    known = pc.fill_null(numbers.take(places), -1).to_numpy().copy()
    # Whoever is gone may have been what held the others together.
    gone = np.ones(before.num_rows, dtype=bool)
    gone[places.drop_null().to_numpy()] = False
    known[np.isin(known, numbers.to_numpy()[gone])] = -1
    found: Int64[np.ndarray, " speaker"] = known.astype(np.int64)
    return found


_SPEAKER = ("recording_id", "speaker", "made_of")


def remove_voices(store: OutputStore) -> None:
    """Remove what a run with other settings found."""
    store.remove_all(store.names(VOICES_FOLDER))


def read_voices(store: OutputStore) -> Mapping[tuple[str, str], str]:
    """Return the voice of each speaker by `recording_id` and speaker; empty without any."""
    names = store.names(VOICES_FOLDER)
    if not names:
        return {}
    table = store.read_table(names[-1], projected(VOICES, ("recording_id", "speaker", "voice")))
    ids, speakers, voices = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(ids, speakers, strict=True), voices, strict=True))


def _speakers(store: OutputStore) -> pa.Table:
    """Return each speaker with their embedding once, those of a recording from one object."""
    schema = projected(SPEAKERS, _SPOKEN)
    tables = [schema.empty_table()]
    known: set[str] = set()
    for name in reversed(store.names(SPEAKERS_FOLDER)):  # the newest first
        table = store.read_table(name, schema)
        ids = {*table["recording_id"].to_pylist()} - known
        known |= ids
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
