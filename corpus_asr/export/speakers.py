"""Speakers of a run: their turns with the names that people gave, and the segments they say.

People name speakers in `speakers.csv` beside the tables: columns uri, speaker and name; others are
kept. They write the file with any program, the viewer a row at a time: it is replaced only if it
still is what was read, so that nothing that somebody else wrote meanwhile is lost. Tables are never
changed.
"""

import csv
import difflib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from corpus_asr.edits.corrected_segments import PLACED_COLUMNS, SEEN_SEGMENTS, SeenSegments
from corpus_asr.edits.corrections import (
    MAX_NAME_CHARS,
    Corrections,
    plain_text,
)
from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import (
    Selection,
    Turns,
    called,
    found_labels,
    open_selection,
    segment_from,
)
from corpus_asr.schemas import RECORDINGS, SEGMENTS
from corpus_asr.segments import Segment, SpeakerTurn
from corpus_asr.speakers.turns import with_speakers
from corpus_asr.storage.run_state.annotations import NAMES_NAME, SPEAKER_LABEL, said_speakers
from corpus_asr.storage.run_state.identities import Identities
from corpus_asr.storage.run_state.manifest_columns import columns_of, join_columns
from corpus_asr.storage.run_state.part_rows import kind_of
from corpus_asr.storage.run_state.run_files import open_run, outcomes_names
from corpus_asr.storage.run_state.speaker_turns import read_turns, read_voices
from corpus_asr.storage.run_state.table_names import LABEL_ROWS
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import public, redact_uri

if TYPE_CHECKING:
    import duckdb

_COLUMNS = ["uri", "speaker", "name"]
# Spreadsheets take a cell that begins so for a formula, and people open the file in them.
_FORMULA = ("=", "+", "-", "@")
# Others write it at the same moment; more often than this in a row they do not.
_ATTEMPTS = 8

SpeakerNames = Mapping[tuple[str, str], str]
"""Given names by `recording_id` and speaker."""


def read_names(store: OutputStore) -> dict[tuple[str, str], str]:
    """Return the names given by people; the last one per speaker is used.

    Raises:
        ConfigError: the file lacks one of the columns uri, speaker and name.
    """
    return _names(_rows(store, _read(store)), Identities.read(store))


def with_voices(given: SpeakerNames, voices: SpeakerNames) -> SpeakerNames:
    """Return the names of speakers: given names, or those of their voice.

    A given name applies to the voice in all recordings, unless it has several names; without any it
    is `V1` and so on. `voices` is empty if voices were not compared.
    """
    of_voice: dict[str, set[str]] = {}
    for key, name in given.items():
        if key in voices:
            of_voice.setdefault(voices[key], set()).add(name)
    shared = {voice: min(names) for voice, names in of_voice.items() if len(names) == 1}
    return {key: shared.get(voice, voice) for key, voice in voices.items()} | dict(given)


def name_speaker(store: OutputStore, uri: str, speaker: str, name: str, *, seen: str) -> str | None:
    """Set a speaker's name, or remove it if empty, provided that it is still `seen`.

    Returns:
        None, or the different name that someone else set meanwhile, which is kept.

    Raises:
        ConfigError: the name is too long or invalid, or the file has other columns.
        FetchError: the output folder is not writable.
    """
    name = plain_text("the name", name, MAX_NAME_CHARS)
    if name.startswith(_FORMULA):
        raise ConfigError(
            f"saving the name: found {name[0]} at its start, a formula in spreadsheets, expected "
            "a name; remove it"
        )
    address = store.address(NAMES_NAME)
    for _ in range(_ATTEMPTS):
        data = _read(store)
        rows, identities = _rows(store, data), Identities.read(store)
        current_name = _names(rows, identities).get((identities.id_of(uri), speaker), "")
        if current_name == name:
            return None
        if current_name != seen:
            return current_name
        text = _written(rows, uri, speaker, name, identities)
        if data is None:
            saved = filesystem.create(address, text, store.options)
        else:
            saved = filesystem.swap(address, text, data, store.options)
        if saved:
            return None
    raise ConfigError(
        f"saving the name in {redact_uri(address)}: found concurrent changes in {_ATTEMPTS} "
        "attempts, expected none; retry"
    )


def _read(store: OutputStore) -> bytes | None:
    if not store.exists(NAMES_NAME):
        return None
    return filesystem.read_bytes(store.address(NAMES_NAME), store.options)


def _rows(store: OutputStore, data: bytes | None) -> list[dict[str, str]]:
    """Return the rows; the first one has all columns."""
    address = redact_uri(store.address(NAMES_NAME))
    try:
        text = ",".join(_COLUMNS) if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"reading {address}: found bytes that are not UTF-8 ({error}), expected a CSV in "
            "UTF-8; convert it"
        ) from error
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    header = lines[0] if lines else []
    if not {*_COLUMNS} <= {*header}:
        raise ConfigError(
            f"reading {address}: found the columns {', '.join(header) or 'none'}, expected "
            f"{', '.join(_COLUMNS)}; correct its first line"
        )
    blank = dict.fromkeys(header, "")
    return [dict(zip(header, header, strict=True))] + [
        blank | dict(zip(header, line, strict=False)) for line in lines[1:]
    ]


def _names(rows: list[dict[str, str]], identities: Identities) -> dict[tuple[str, str], str]:
    keys = _keys(rows, identities)
    names = {key: row["name"].strip() for key, row in zip(keys, rows[1:], strict=True)}
    return {key: name for key, name in names.items() if name}


def _keys(rows: list[dict[str, str]], identities: Identities) -> list[tuple[str, str]]:
    ids = identities.ids_of([row["uri"] for row in rows[1:]])
    speakers = (row["speaker"].strip() for row in rows[1:])
    return list(zip(ids, speakers, strict=True))


def _written(
    rows: list[dict[str, str]], uri: str, speaker: str, name: str, identities: Identities
) -> bytes:
    new_row = {"uri": public(uri), "speaker": speaker, "name": name}
    named = (identities.id_of(uri), speaker)
    same = [at for at, key in enumerate(_keys(rows, identities), 1) if key == named]
    if same:
        rows[same[-1]]["name"] = name
    else:
        rows.append(dict.fromkeys(rows[0], "") | new_row)
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([*row.values()] for row in rows)
    return file.getvalue().encode()


_WORD_SPEAKER = pa.field("speaker", pa.string(), metadata={"doc": "who says it; null: not known"})
_WORDS = SEGMENTS.field("words")
_SEEN = SEEN_SEGMENTS.insert(SEGMENTS.get_field_index("model"), RECORDINGS.field("metadata"))
SPOKEN_SEGMENTS = _SEEN.set(
    _SEEN.get_field_index("words"),
    pa.field("words", pa.list_(pa.struct([*_WORDS.type.value_type, _WORD_SPEAKER]))),
)
"""Segments as people see them, with the speakers of all segments and words."""


def speakers_of(store: OutputStore, *, is_unique: bool = False) -> Turns | None:
    """Return the turns of all recordings, by ID; None without diarization.

    Speakers have their given names, else those of their voice with `speakers: corpus`. With
    `is_unique`, a name is that of one person in all recordings: unnamed speakers are called by the
    recording and their label in it.

    Raises:
        ConfigError: `speakers.csv` lacks one of the columns uri, speaker and name.
    """
    turns = read_turns(store)
    if turns is None:
        return None
    names = with_voices(read_names(store), read_voices(store))
    return {
        recording_id: named(
            recording_turns, recording_id, names, unnamed=f"{recording_id}-" if is_unique else ""
        )
        for recording_id, recording_turns in turns.items()
    }


def find_speakers(store: OutputStore, names: Collection[str]) -> set[tuple[str, str]]:
    """Return `recording_id` and speaker of all speakers with a given or voice name.

    For names that occur only in corrections, the speaker is that name.

    Raises:
        ConfigError: no speaker has the name; the message suggests similar names.
    """
    name_of = {key: key[1] for key in said_speakers(store) if not SPEAKER_LABEL.fullmatch(key[1])}
    name_of |= with_voices(read_names(store), read_voices(store))
    keys = {key for key, name in name_of.items() if name in names}
    missing = sorted({*names} - {*name_of.values()})
    if missing:
        near = [match for name in missing
                for match in difflib.get_close_matches(name, {*name_of.values()}, n=3)]  # fmt: skip
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"looking in {redact_uri(store.uri)} for speakers: found no {', '.join(missing)}, "
            f"expected a name in {NAMES_NAME} or in a correction, or a voice such as V1{meant}"
        )
    return keys


def named(
    turns: Iterable[SpeakerTurn], recording_id: str, names: SpeakerNames, *, unnamed: str = ""
) -> list[SpeakerTurn]:
    """Return the turns of a recording with these names.

    `unnamed` is the prefix for labels of unnamed speakers.
    """
    return [
        replace(
            turn,
            speaker=names.get((recording_id, turn.speaker), f"{unnamed}{turn.speaker}"),
            label=turn.speaker,
        )
        for turn in turns
    ]


def refuse_speakers(
    store: OutputStore,
    selection: Selection,
    turns: Turns | None,
    corrections: Corrections | None = None,
) -> None:
    """Raise an error for a selection of speakers that do not exist.

    Raises:
        ConfigError: neither the run nor a person uses a selected speaker name.
    """
    if not selection.speakers:
        return
    turns, corrections = turns or {}, corrections or Corrections({})
    speakers = {turn.speaker for recording_turns in turns.values() for turn in recording_turns}
    for recording_id in corrections.recording_ids:
        names = {turn.label or turn.speaker: turn.speaker for turn in turns.get(recording_id, ())}
        speakers |= {
            names.get(segment.speaker, segment.speaker)
            for correction in corrections.of(recording_id)
            for segment in correction.segments if segment.speaker
        }  # fmt: skip
    missing = sorted({*selection.speakers} - speakers)
    if missing:
        problem = f"{len(speakers)} others" if speakers else "no speakers"
        raise ConfigError(
            f"selecting speakers of {redact_uri(store.uri)}: found {problem}, expected "
            f"{', '.join(missing)}; correct --speaker, or transcribe with speakers: auto"
        )


def read_segments(
    uri: str, *, corrected: bool = True, speakers: bool = False, endpoint_url: str | None = None
) -> pa.Table:
    """Return the segments of a run as an Arrow table, corrected recordings last.

    With `corrected`, segments are as in the viewer, `show` and `export`: with corrected texts,
    times and speakers, without removed ones, and with the columns `corrected`, `checked`,
    `original` and `speaker`. Otherwise they are the model's, as in the Parquet tables. In both
    cases `metadata` has the latest columns of a manifest.

    With `speakers`, all segments and words have a `speaker` from the run's turns, and segments with
    words are split at speaker changes, without token IDs. The result is held in memory;
    `register_segments` stores it in a database.

    Raises:
        ConfigError: it is not the output folder of a transcription, or `speakers` is set for a run
            without diarization.
    """
    store = _run_at(uri, endpoint_url)
    table = pa.concat_tables([_SEEN.empty_table(), *_seen(store, corrected=corrected)])
    if not speakers:
        return table if corrected else table.drop_columns(PLACED_COLUMNS.names)
    turns = speakers_of(store)
    if turns is None:
        raise ConfigError(
            f"reading the speakers of {redact_uri(store.uri)}: found no table speakers/, expected "
            "one; transcribe with speakers: auto, or remove the speakers"
        )
    rows = []
    for row in table.to_pylist():
        recording_turns = turns.get(row["recording_id"], ())
        names = {turn.label or turn.speaker: turn.speaker for turn in recording_turns}
        segment = called(segment_from(row), names)
        recording_turns = [turn for turn in recording_turns if turn.channel == row["channel"]]
        rows += [row | _columns(piece) for piece in with_speakers([segment], recording_turns)]
    return pa.Table.from_pylist(rows, SPOKEN_SEGMENTS)


def register_segments(
    uri: str,
    database: "duckdb.DuckDBPyConnection",
    *,
    table: str = "segments",
    endpoint_url: str | None = None,
) -> None:
    """Create a DuckDB table of a run's segments, as returned by `read_segments`.

    Memory use is bounded for runs of any size.

    Raises:
        ConfigError: it is not the output folder of a transcription.
    """
    store = _run_at(uri, endpoint_url)
    name = '"' + table.replace('"', '""') + '"'
    database.register("corpus_asr_arriving", _SEEN.empty_table())
    database.execute(f"create or replace table {name} as from corpus_asr_arriving")
    for rows in _seen(store, corrected=True):
        database.register("corpus_asr_arriving", rows)
        database.execute(f"insert into {name} from corpus_asr_arriving")
    database.unregister("corpus_asr_arriving")


def _run_at(uri: str, endpoint_url: str | None) -> OutputStore:
    store = open_run(uri, endpoint_url=endpoint_url)
    outcomes_names(store)  # refuses other folders, of which no segments would be read
    if kind_of(store, store.commit_names()) is LABEL_ROWS:
        raise found_labels(store)
    return store


def _seen(store: OutputStore, *, corrected: bool) -> Iterator[pa.Table]:
    corrections = Corrections.load(store) if corrected else Corrections({})
    selection = Selection()
    with open_selection(store, selection) as tables:
        join_columns(store, tables)
        for rows in SeenSegments(store, tables, corrections).batches(SEGMENTS.names):
            kept = rows.filter(pa.array(selection.segments(rows)))
            columns = columns_of(tables, kept["recording_id"])
            yield kept.append_column("metadata", columns).select(_SEEN.names).cast(_SEEN)


def _columns(segment: Segment) -> dict[str, object]:
    words = segment.words
    return {
        "start_s": segment.start_s,
        "end_s": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "words": None if words is None else [asdict(word) for word in words],
        "speaker": segment.speaker,
    }
