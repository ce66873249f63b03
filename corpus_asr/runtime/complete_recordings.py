"""Steps that need all committed parts of a recording: its known text and its speakers.

Parts find their words of a text independently of one another. Where two of them claim the same
words, the part that fits worse is committed again without them, in place of its first commit. With
`speakers: corpus` the voices of recordings are then compared with one another.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.logs import event
from corpus_asr.schemas import OUTCOMES, SEGMENTS, SPEAKERS
from corpus_asr.speakers.clustering import SAME_VOICE_ABOVE
from corpus_asr.speakers.turns import (
    Diarization,
    SpeechWindows,
    diarize_parts,
)
from corpus_asr.speakers.voices import find_voices
from corpus_asr.storage.run_state.finish import merge
from corpus_asr.storage.run_state.part_rows import nested, part_rows
from corpus_asr.storage.run_state.recording_rows import LostPortion, Portion, portions_of, tidy
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RowPlace, RunTables
from corpus_asr.storage.run_state.speaker_turns import (
    RecordingVoices,
    read_turns,
    read_voices_of,
    remove_voices,
    turn_rows,
    voices_left,
    write_turns,
    write_voices,
)
from corpus_asr.storage.run_state.table_names import SEGMENT_ROWS, SPEAKERS_FOLDER
from corpus_asr.storage.run_state.tables import OutputStore, projected
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.transcription.joined_text import Claim, placed_once, text_columns

_LOG = logging.getLogger(__name__)

# Below, Ray takes longer to start than a core takes for them.
MANY_RECORDINGS = 2_000

Spread = Callable[[Callable[[Portion], int], Iterable[Portion]], Iterable[int | LostPortion]]
"""Has portions of work done elsewhere, in any order."""

_Rows = list[dict[str, Any]]


# An earlier part that reaches further than the one after it contradicts that one, too.
_CONTESTED = """
with said as (
  select recording_id, count(*) over (partition by recording_id) as parts,
         text_spans[1].first <
         lag(text_spans[-1].stop) over (partition by recording_id order by part) as contested
  from parts semi join complete using (recording_id) where len(text_spans) > 0)
select distinct recording_id, '' as made_of, parts from said where contested
"""
_WORD_COLUMNS = ("recording_id", "part", "words")
_CLAIM_COLUMNS = ("recording_id", "part", "text_spans")


_LostWords = dict[int, set[int]]
"""Indices of the words to remove from a part, counted from 0, by the part's row of its object."""


def place_words_once(store: OutputStore, run: RunTables) -> int:
    """Put parts without the words of a text that another part has in place of these; count them.

    May be repeated after being killed anywhere: until a first commit is replaced it counts, and the
    second does not. `run` are the tables; recordings are those whose parts are all committed.
    """
    columns = (*VERSION_COLUMNS, "text_spans")
    lost: dict[str, _LostWords] = {}
    with RunTables(store, columns=columns, listing=run.batches("from listing")) as tables:
        tables.add("complete", pa.table({"recording_id": run.ids("complete")}))
        tables.add("contested", tables.table(_CONTESTED))
        for portion in portions_of(tables, "contested"):
            for name, rows in _lost_words(store, portion).items():
                lost.setdefault(name, {}).update(rows)
    # An object may have parts of several portions, and is written again once, after all of them.
    written = [new for name, rows in sorted(lost.items()) for new in _without(store, name, rows)]
    if lost:
        store.replace([*lost], written)
    return sum(map(len, lost.values()))


def _lost_words(store: OutputStore, portion: Portion) -> dict[str, _LostWords]:
    """Return the words that parts of a portion's recordings lose, by object of the parts."""
    claims: dict[str, list[tuple[Claim, str, int, int]]] = {}
    for name, rows in portion.rows.items():
        for at, row, segments in _parts(store, name, rows, columns=_CLAIM_COLUMNS):
            recording_claims = claims.setdefault(row["recording_id"], [])
            recording_claims += (
                (claim, name, at, word) for word, claim in enumerate(_claims(row, segments))
            )
    lost: dict[str, _LostWords] = {}
    for recording_claims in claims.values():
        recording_claims.sort(key=lambda row: (row[0].part, row[0].index))
        kept = {*placed_once([claim for claim, *_ in recording_claims])}
        for number, (_, name, at, word) in enumerate(recording_claims):
            if number not in kept:
                lost.setdefault(name, {}).setdefault(at, set()).add(word)
    return lost


def _parts(
    store: OutputStore, name: str, rows: Sequence[int], *, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any], _Rows]]:
    """Yield rows of an outcomes object that have words, with their number and their segments.

    With some `columns` of outcomes, segments have only their words.
    """
    outcomes = store.read_table(name, projected(OUTCOMES, columns))
    segments: dict[int, _Rows] = {}
    wanted = None if columns is None else _WORD_COLUMNS
    for _, table, owners in part_rows(store, [name], SEGMENT_ROWS, wanted):
        chosen = np.isin(owners, rows)
        part_segments = table.filter(pa.array(chosen)).to_pylist()
        for at, segment in zip(owners[chosen].tolist(), part_segments, strict=True):
            segments.setdefault(at, []).append(segment)
    for at, row in zip(rows, outcomes.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
        if row["text_spans"]:
            yield at, row, segments.get(at, [])


def _claims(row: Mapping[str, Any], segments: _Rows) -> list[Claim]:
    indices = [index for span in row["text_spans"] for index in range(span["first"], span["stop"])]
    words = [word for segment in segments for word in segment["words"]]
    return [
        Claim(part=row["part"], index=index, probability=word["probability"])
        for index, word in zip(indices, words, strict=True)
    ]


def _without(store: OutputStore, name: str, lost: _LostWords) -> list[str]:
    """Write an object again whose parts lose words; return the new names."""
    outcomes: _Rows = []
    segments: _Rows = []
    for at, row, segments_of_part in _parts(store, name, sorted(lost)):
        claims = _claims(row, segments_of_part)
        keep = [word not in lost[at] for word in range(len(claims))]
        marks = iter(keep)
        pieces = (
            _with_words(segment, [w for w in segment["words"] if next(marks)])
            for segment in segments_of_part
        )
        pieces_left = [
            piece | {"segment": place} for place, piece in enumerate(filter(None, pieces))
        ]
        ends_s = [word["end_s"] for piece in pieces_left for word in piece["words"]]
        indices = [claim.index for claim, is_kept in zip(claims, keep, strict=True) if is_kept]
        places = zip(indices, ends_s, strict=True)
        columns = text_columns(row["text_lengths"], places)
        outcomes.append(row | columns | {"segments_written": len(pieces_left)})
        segments += pieces_left
        event(
            _LOG, logging.INFO, "words_claimed_twice", recording_id=row["recording_id"],
            part=row["part"], words=len(lost[at]),
        )  # fmt: skip
    rows = pa.Table.from_pylist(segments, SEGMENTS)
    again = store.put_commit(nested(pa.Table.from_pylist(outcomes, OUTCOMES), rows, SEGMENT_ROWS))
    kept = np.ones(store.read_table(name, projected(OUTCOMES, ("part",))).num_rows, dtype=int)
    kept[[*lost]] = RowPlace.nowhere
    return [again, *merge(store, [name], {name: kept})]


def _with_words(segment: dict[str, Any], words: _Rows) -> dict[str, Any] | None:
    if len(words) == len(segment["words"]):
        return segment
    if not words:
        return None
    return segment | {
        "words": words,
        "text": "".join(word["word"] for word in words),
        "tokens": [],  # token IDs refer to all words
        "start_s": words[0]["start_s"],
        "end_s": max(words[0]["start_s"], words[-1]["end_s"]),
    }


def find_speakers_of_run(
    store: OutputStore, settings: SpeakerSettings, spread: Spread | None = None
) -> int:
    """Write the missing turns of complete recordings; return the number of recordings.

    Safe to repeat after a kill: voices are committed with their parts, and the same voices and
    settings give the same turns.

    Args:
        store: the output folder.
        settings: of diarization.
        spread: distributes portions of many recordings.
    """
    # Comparison across recordings does not change turns; networks only affect extraction.
    chosen = settings.model_dump(mode="json", exclude={"mode", "segmentation"})
    with voices_left(store, chosen) as (num_left, portions):
        if spread is not None and num_left >= MANY_RECORDINGS:
            number = 0
            for outcome in spread(partial(_write_speakers, store, settings), portions):
                if isinstance(outcome, LostPortion):
                    raise outcome.error
                number += outcome
        else:
            recording_rows = (_rows_of(store, settings, portion) for portion in portions)
            number = write_turns(store, chain.from_iterable(recording_rows))
    ids = (batch["recording_id"] for batch in store.outcomes(("recording_id",)))
    tidy(store, SPEAKERS_FOLDER, SPEAKERS, ids)
    if number:
        event(_LOG, logging.INFO, "speakers_found", recordings=number)
    if settings.mode != "corpus":
        remove_voices(store)
        return number
    voices = write_voices(
        store,
        lambda centroids, recordings, known: find_voices(
            centroids, recordings, same_above=SAME_VOICE_ABOVE, known=known
        ),
        settings=(settings.model, SAME_VOICE_ABOVE),
    )
    if voices is not None:
        event(_LOG, logging.INFO, "voices_found", voices=voices)
    return number


def _write_speakers(store: OutputStore, settings: SpeakerSettings, portion: Portion) -> int:
    return write_turns(store, _rows_of(store, settings, portion))


def _rows_of(
    store: OutputStore, settings: SpeakerSettings, portion: Portion
) -> Iterator[list[dict[str, Any]]]:
    earlier_turns = read_turns(store, portion.recordings, names=portion.earlier) or {}
    for recording in read_voices_of(store, portion):
        speakers = _speakers_of(recording, settings)
        if (turns := earlier_turns.get(recording.recording_id)) is not None:
            speakers = speakers.named_as(turns, number=portion.named.get(recording.recording_id, 0))
        yield turn_rows(recording, speakers.turns, speakers.voices)


def _speakers_of(recording: RecordingVoices, settings: SpeakerSettings) -> Diarization:
    rows = (row for _, row in sorted(recording.parts.items()))
    try:
        windows = ((row["channel"], SpeechWindows.of_columns(row)) for row in rows)
        return diarize_parts(
            windows, settings.of_recording(recording.numbers), name=redact_uri(recording.uri)
        )
    except Exception as error:  # fails one recording's speakers only
        event(
            _LOG, logging.ERROR, "speakers_not_found", recording_id=recording.recording_id,
            uri=redact_uri(recording.uri), exc_info=error,
        )  # fmt: skip
        return Diarization(turns=(), voices={})
