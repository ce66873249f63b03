"""Speakers of a run: their turns with the names that people gave, and the segments they say."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, replace

import pyarrow as pa

from corpus_asr.errors import ConfigError
from corpus_asr.export.recordings import Selection, Turns, open_selection, segment_from
from corpus_asr.export.speaker_names import SpeakerNames, read_names, with_voices
from corpus_asr.schemas import SEGMENTS
from corpus_asr.segments import Segment, SpeakerTurn
from corpus_asr.speakers.turns import with_speakers
from corpus_asr.storage.run_state.corrections import Corrections, Corrector
from corpus_asr.storage.run_state.speaker_turns import read_turns, read_voices
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import redact_uri

_SPEAKER = pa.field("speaker", pa.string(), metadata={"doc": "who says it; null: not known"})
_WORDS = SEGMENTS.field("words")
SPOKEN_SEGMENTS = SEGMENTS.set(
    SEGMENTS.get_field_index("words"),
    pa.field("words", pa.list_(pa.struct([*_WORDS.type.value_type, _SPEAKER]))),
).append(_SPEAKER)
"""SEGMENTS with the speakers of segments and words."""


def speakers_of(store: OutputStore, recording_ids: Collection[str] | None = None) -> Turns | None:
    """Return the turns of all recordings, or of these, by recording; None without speakers.

    Speakers are called as people named them, else by their voice with `speakers: corpus`.

    Raises:
        ConfigError: `speakers.csv` has no columns uri, speaker and name.
    """
    turns = read_turns(store, recording_ids)
    if turns is None:
        return None
    names = with_voices(read_names(store), read_voices(store))
    return {each: named(own, each, names) for each, own in turns.items()}


def persons_of(store: OutputStore) -> Turns | None:
    """Return the same with names that are one person's in all recordings.

    Without a name, speakers are called by the recording and their number in it.
    """
    turns = read_turns(store)
    if turns is None:
        return None
    names = with_voices(read_names(store), read_voices(store))
    return {each: named(own, each, names, unnamed=f"{each}-") for each, own in turns.items()}


def named(
    turns: Iterable[SpeakerTurn], recording_id: str, names: SpeakerNames, *, unnamed: str = ""
) -> list[SpeakerTurn]:
    """Return the turns of a recording with these names.

    `unnamed` stands before the number of those who have none.
    """
    return [
        replace(turn, speaker=names.get((recording_id, turn.speaker), f"{unnamed}{turn.speaker}"))
        for turn in turns
    ]


def refuse_speakers(store: OutputStore, selection: Selection, turns: Turns | None) -> None:
    """Refuse a selection of speakers where there are none of that name.

    Raises:
        ConfigError: the run looked for no speakers, or found nobody of a name that is asked for.
    """
    if not selection.speakers:
        return
    known = {turn.speaker for own in (turns or {}).values() for turn in own}
    missing = sorted({*selection.speakers} - known)
    if missing:
        found = "no speakers" if turns is None else f"{len(known)} others"
        raise ConfigError(
            f"selecting speakers of {redact_uri(store.uri)}: found {found}, expected "
            f"{', '.join(missing)}; correct --speaker, or transcribe with speakers: auto"
        )


def read_segments(
    uri: str, *, corrected: bool = True, speakers: bool = False, endpoint_url: str | None = None
) -> pa.Table:
    """Return the segments of a run as an Arrow table, in the order of its tables.

    With `corrected`, texts, words and confidences are as people corrected them in the viewer, as
    in `show` and `export`: segments whose whole text was removed are left out. Without, they are
    the model's, as in the Parquet tables.

    With `speakers`, segments and words have one more column, `speaker`, and segments with words are
    split where the speaker changes; pieces have no token ids. All of it is in memory: read larger
    runs object by object (docs/reading.md).

    Raises:
        ConfigError: speakers are asked for, and the run did not look for them.
    """
    store = OutputStore(uri, endpoint_url=endpoint_url)
    batches = [batch.cast(SEGMENTS) for batch in store.segments()]
    table = pa.Table.from_batches(batches, SEGMENTS)
    if corrected:
        table = _corrected(store, table)
    if not speakers:
        return table
    turns = speakers_of(store)
    if turns is None:
        raise ConfigError(
            f"reading the speakers of {redact_uri(store.uri)}: found no table speakers/, expected "
            "it; transcribe with speakers: auto, or leave speakers out"
        )
    rows = []
    for row in table.to_pylist():
        own = [
            turn for turn in turns.get(row["recording_id"], ()) if turn.channel == row["channel"]
        ]
        rows += [row | _columns(piece) for piece in with_speakers([segment_from(row)], own)]
    return pa.Table.from_pylist(rows, SPOKEN_SEGMENTS)


def _corrected(store: OutputStore, segments: pa.Table) -> pa.Table:
    corrections = Corrections.load(store)
    if not len(corrections):
        return segments
    with open_selection(store, Selection()) as tables:
        recordings = tables.table("select recording_id, etag, size_bytes from recordings")
    rows = Corrector(corrections, recordings).apply(segments)
    return rows.filter(pa.array(Selection().segments(rows))).drop_columns(["corrected"])


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
