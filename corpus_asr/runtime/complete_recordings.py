"""What needs all parts of a recording, once they are committed: its known text and its speakers.

Parts find their words of a text independently of one another. Where two of them claim the same
words, the part that fits worse is committed again without them, and its first commit removed. With
`speakers: corpus` the voices of recordings are then compared with one another.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.config.run import SpeakerSettings
from corpus_asr.logs import event
from corpus_asr.schemas import OUTCOMES, SEGMENTS
from corpus_asr.speakers.clustering import find_voices
from corpus_asr.speakers.turns import (
    Diarization,
    SpeechWindows,
    diarize_parts,
    likeness_of,
)
from corpus_asr.storage.run_state.finish import claimed_segments, keep_only
from corpus_asr.storage.run_state.run_tables import VERSION_COLUMNS, RunTables
from corpus_asr.storage.run_state.speaker_turns import (
    Portion,
    RecordingVoices,
    read_voices_of,
    remove_voices,
    tidy_turns,
    turn_rows,
    voices_left,
    write_turns,
    write_voices,
)
from corpus_asr.storage.run_state.tables import OUTCOMES_FOLDER, OutputStore, projected
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.transcription.joined_text import Claim, placed_once, text_columns

_LOG = logging.getLogger(__name__)

# Below, Ray takes longer to start than a core takes for them.
MANY_RECORDINGS = 2_000

Spread = Callable[[Callable[[Portion], int], Iterable[Portion]], Iterable[int]]
_Rows = list[dict[str, Any]]


# An earlier part that reaches further than the one after it contradicts that one, too.
_CONTESTED = """
with said as (
  select recording_id, text_spans[1].first <
         lag(text_spans[-1].stop) over (partition by recording_id order by part) as contested
  from parts semi join complete using (recording_id) where text_found > 0)
select distinct recording_id from said where contested
"""
_NAMES = """
select distinct name from outcomes join objects using (object) semi join contested
using (recording_id) order by name
"""


def place_words_once(store: OutputStore, complete_ids: pa.Array) -> int:
    """Remove from parts the words of a text that another part has; return how many parts.

    `complete_ids` are recordings whose parts are all committed, each once. May be repeated after
    being killed anywhere: until a first commit is removed it counts, and the second does not.
    """
    columns = (*VERSION_COLUMNS, "text_found", "text_spans")
    with RunTables(store, columns=columns, names=store.names(OUTCOMES_FOLDER)) as tables:
        tables.add("complete", pa.table({"recording_id": complete_ids}))
        tables.add("contested", tables.table(_CONTESTED))
        contested = tables.table("from contested")["recording_id"].combine_chunks()
        names = [name for (name,) in tables.rows(_NAMES)]
    claims: dict[str, list[Claim]] = {}
    for name in names:
        for row, segments in _parts(store, name, contested):
            claims.setdefault(row["recording_id"], []).extend(_claims(row, segments))
    kept: dict[str, set[Claim]] = {}
    for recording_id, own in claims.items():
        own.sort(key=lambda claim: (claim.part, claim.index))
        kept[recording_id] = {own[at] for at in placed_once(own)}
    return sum(_rewritten(store, name, contested, kept) for name in names)


def _parts(
    store: OutputStore, name: str, recordings: pa.Array
) -> Iterator[tuple[dict[str, Any], _Rows]]:
    """Yield the outcomes rows of these recordings in an object, each with its segments."""
    outcomes = store.read_table(name, OUTCOMES)
    wanted = pc.is_in(outcomes["recording_id"], value_set=recordings).to_numpy()
    owners = np.repeat(np.arange(outcomes.num_rows), outcomes["segments_written"].to_numpy())
    segments: dict[int, _Rows] = {}
    start = 0
    for table in claimed_segments(store, outcomes):
        theirs = owners[start : start + table.num_rows]
        start += table.num_rows
        chosen = wanted[theirs]
        rows = table.filter(pa.array(chosen)).to_pylist()
        for owner, row in zip(theirs[chosen].tolist(), rows, strict=True):
            segments.setdefault(owner, []).append(row)
    for position in np.flatnonzero(wanted).tolist():
        row = outcomes.slice(position, 1).to_pylist()[0]
        if row["text_found"]:
            yield row, segments.get(position, [])


def _claims(row: Mapping[str, Any], segments: _Rows) -> list[Claim]:
    indices = [index for each in row["text_spans"] for index in range(each["first"], each["stop"])]
    words = [word for segment in segments for word in segment["words"]]
    return [
        Claim(part=row["part"], index=index, probability=word["probability"])
        for index, word in zip(indices, words, strict=True)
    ]


def _rewritten(
    store: OutputStore, name: str, recordings: pa.Array, kept: Mapping[str, set[Claim]]
) -> int:
    """Commit the parts of an object that lose words again, and remove them from it."""
    outcomes: _Rows = []
    segments: _Rows = []
    for row, own in _parts(store, name, recordings):
        claims = _claims(row, own)
        keep = [claim in kept[row["recording_id"]] for claim in claims]
        if all(keep):
            continue
        marks = iter(keep)
        pieces = (_with_words(each, [w for w in each["words"] if next(marks)]) for each in own)
        left = [each | {"segment": at} for at, each in enumerate(filter(None, pieces))]
        ends_s = [word["end_s"] for each in left for word in each["words"]]
        indices = [claim.index for claim, is_kept in zip(claims, keep, strict=True) if is_kept]
        found = zip(indices, ends_s, strict=True)
        columns = text_columns(row["text_lengths"], found)
        outcomes.append(row | columns | {"segments_written": len(left)})
        segments += left
        event(
            _LOG, logging.INFO, "words_claimed_twice", recording_id=row["recording_id"],
            part=row["part"], words=len(keep) - sum(keep),
        )  # fmt: skip
    if outcomes:
        store.write_commit(
            pa.Table.from_pylist(outcomes, OUTCOMES), [pa.Table.from_pylist(segments, SEGMENTS)]
        )
        changed = {(row["recording_id"], row["part"]) for row in outcomes}
        # A failure of a newer version of the recording has no words, and stays.
        keys = ("recording_id", "part", "status")
        rows = store.read_table(name, projected(OUTCOMES, keys)).to_pylist()
        kept_rows = [
            row["status"] == "failed" or (row["recording_id"], row["part"]) not in changed
            for row in rows
        ]
        keep_only(store, {name: np.array(kept_rows)})
    return len(outcomes)


def _with_words(segment: dict[str, Any], words: _Rows) -> dict[str, Any] | None:
    if len(words) == len(segment["words"]):
        return segment
    if not words:
        return None
    return segment | {
        "words": words,
        "text": "".join(word["word"] for word in words),
        "tokens": [],  # they are of all its words
        "start_s": words[0]["start_s"],
        "end_s": max(words[0]["start_s"], words[-1]["end_s"]),
    }


def find_speakers_of_run(
    store: OutputStore, settings: SpeakerSettings, spread: Spread | None = None
) -> int:
    """Write the turns of complete recordings that have none yet; return how many they are.

    May be repeated after being killed anywhere: voices are committed with their parts, and the same
    voices and settings give the same turns.

    Args:
        store: the output folder.
        settings: how speakers are found.
        spread: has portions of recordings done elsewhere, where there are many.
    """
    # Voices across recordings change no turns.
    chosen = settings.model_dump(mode="json", exclude={"mode"})
    with voices_left(store, chosen) as (left, portions):
        if spread is not None and left >= MANY_RECORDINGS:
            number = sum(spread(partial(_write_speakers, store, settings), portions))
        else:
            found = (_rows_of(store, settings, portion) for portion in portions)
            number = write_turns(store, chain.from_iterable(found))
    tidy_turns(store, (batch["recording_id"] for batch in store.outcomes(("recording_id",))))
    if number:
        event(_LOG, logging.INFO, "speakers_found", recordings=number)
    if settings.mode != "corpus":
        remove_voices(store)
        return number
    same_above = likeness_of(settings.model).same_above
    voices = write_voices(
        store,
        lambda centroids, recordings, known: find_voices(
            centroids, recordings, same_above=same_above, known=known
        ),
        settings=(settings.model, same_above),
    )
    if voices is not None:
        event(_LOG, logging.INFO, "voices_found", voices=voices)
    return number


def _write_speakers(store: OutputStore, settings: SpeakerSettings, portion: Portion) -> int:
    return write_turns(store, _rows_of(store, settings, portion))


def _rows_of(
    store: OutputStore, settings: SpeakerSettings, portion: Portion
) -> Iterator[list[dict[str, Any]]]:
    for recording in read_voices_of(store, portion):
        found = _speakers_of(recording, settings)
        yield turn_rows(recording, found.turns, found.voices)


def _speakers_of(recording: RecordingVoices, settings: SpeakerSettings) -> Diarization:
    windows = (
        (
            part.channel,
            SpeechWindows(
                start_s=part.spans_s[:, 0], end_s=part.spans_s[:, 1], embeddings=part.embeddings
            ),
        )
        for _, part in sorted(recording.parts.items())
    )
    try:
        return diarize_parts(windows, settings)
    except Exception as error:  # one recording's; its transcript is written, the others continue
        event(
            _LOG, logging.ERROR, "speakers_not_found", recording_id=recording.recording_id,
            uri=redact_uri(recording.uri), exc_info=error,
        )  # fmt: skip
        return Diarization(turns=(), voices={})
