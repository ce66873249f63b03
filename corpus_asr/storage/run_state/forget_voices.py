"""Removes voices, embeddings and names of speakers from an output folder; the text stays.

Input: speakers, each as recording and S1, S2 ... Their turns stay as well, since the text implies
them. Names, by which speakers are selected, are removed last.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.parquet import with_column
from corpus_asr.storage.run_state.corrections import SPEAKER_LABEL
from corpus_asr.storage.run_state.lock import AtTheEnd, changing
from corpus_asr.storage.run_state.prune import refusals_explained
from corpus_asr.storage.run_state.rewriting import (
    folders_of,
    remove_names,
    rewrite_commits,
    rewrite_said_speakers,
    rewrite_table,
)
from corpus_asr.storage.run_state.speaker_turns import read_turns
from corpus_asr.storage.run_state.tables import SPEAKERS_FOLDER, VOICES_FOLDER, OutputStore
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX

Speaker = tuple[str, str]
"""`recording_id`, and S1, S2 ... in it, or a name given in corrections."""
FORGET_VOICES: Final = "remove --speaker"
_Turns = Mapping[str, Sequence[SpeakerTurn]]


def forget_voices(
    store: OutputStore,
    speakers: Collection[Speaker],
    names: Collection[str],
    *,
    at_the_end: AtTheEnd | None = None,
) -> None:
    """Remove the embeddings, voices and names of speakers; the caller holds the folder's lock.

    `names` are the names by which the user selected them.
    """
    speakers = {(recording, speaker) for recording, speaker in speakers}  # JSON notes hold lists
    noted = sorted(speakers)
    with (
        refusals_explained(store, "erasing voices from", {recording for recording, _ in speakers}),
        changing(store, FORGET_VOICES, at_the_end, speakers=noted, names=sorted(names)),
    ):
        named_speakers = {
            (recording, who) for recording, who in speakers if not SPEAKER_LABEL.fullmatch(who)
        }
        if voiced := {*speakers} - named_speakers:
            _forget_voices(store, voiced)
        rewrite_said_speakers(store, named_speakers)
        # Leftovers of killed writes may hold names.
        for name in list(store.all_names("")):
            if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
                store.remove(name)
        remove_names(store, lambda recording, who: (recording, who) in speakers)
        store.note_tables()


def _forget_voices(store: OutputStore, speakers: Collection[Speaker]) -> None:
    recordings = {recording for recording, _ in speakers}
    ids = pa.array(sorted(recordings), pa.string())
    for folder in folders_of(store):
        folder_turns = read_turns(folder, recordings) or {}
        # Earlier results may number the same person differently: all their speakers are removed.
        turns = {
            recording: [
                turn
                for turn in recording_turns
                if folder is not store or (recording, turn.speaker) in speakers
            ]
            for recording, recording_turns in folder_turns.items()
        }
        gone = {
            (recording, turn.speaker)
            for recording, recording_turns in turns.items()
            for turn in recording_turns
        }
        rewrite_commits(folder, ids, partial(_without_windows, turns))
        rewrite_table(folder, SPEAKERS_FOLDER, ids, partial(_without_embeddings, gone))
        rewrite_table(folder, VOICES_FOLDER, ids, partial(_others, gone))
        folder.remove_leftovers()


def _without_windows(turns: _Turns, rows: pa.Table) -> pa.Table:
    """Return outcomes without the voice windows in these turns; other rows unchanged."""
    if "voice_spans" not in rows.schema.names:
        return rows
    spans, data = rows["voice_spans"].to_pylist(), rows["voices"].to_pylist()
    keys = rows.select(["recording_id", "channel"]).to_pylist()
    for at, key in enumerate(keys):
        channel_turns = [turn for turn in turns.get(key["recording_id"], ())
                         if turn.channel == key["channel"]]  # fmt: skip
        if not channel_turns or not spans[at]:
            continue
        width = len(data[at]) // len(spans[at])
        kept_numbers = [number for number, span in enumerate(spans[at])
                        if not any(turn.start_s < span["end_s"] and turn.end_s > span["start_s"]
                                   for turn in channel_turns)]  # fmt: skip
        data[at] = b"".join(
            data[at][number * width : (number + 1) * width] for number in kept_numbers
        )
        spans[at] = [spans[at][number] for number in kept_numbers]
    return with_column(with_column(rows, "voice_spans", spans), "voices", data)


def _without_embeddings(gone: Collection[Speaker], rows: pa.Table) -> pa.Table:
    none = pa.scalar(None, rows["embedding"].type)
    return with_column(rows, "embedding", pc.if_else(_is_of(gone, rows), none, rows["embedding"]))


def _others(gone: Collection[Speaker], rows: pa.Table) -> pa.Table:
    return rows.filter(pc.invert(_is_of(gone, rows)))


def _is_of(speakers: Collection[Speaker], rows: pa.Table) -> pa.Array:
    keys = zip(*(rows[name].to_pylist() for name in ("recording_id", "speaker")), strict=True)
    return pa.array([key in speakers for key in keys], pa.bool_())
