"""The speakers of a run's recordings, found once all parts of a recording are committed.

With `speakers: corpus` their voices are then compared across recordings.
"""

import logging
from collections.abc import Iterator
from typing import Any

from corpus_asr.config.speakers import SpeakerSettings
from corpus_asr.logs import event
from corpus_asr.speakers.clustering import SpeakerBounds
from corpus_asr.speakers.corpus_voices import find_voices
from corpus_asr.speakers.turns import Diarization, diarize, likeness_of
from corpus_asr.speakers.windows import SpeechWindows
from corpus_asr.storage.run_state.speaker_turns import (
    RecordingVoices,
    tidy_turns,
    turn_rows,
    voices_left,
    write_turns,
)
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.run_state.voices import remove_voices, write_voices
from corpus_asr.storage.stores.uri import redact_uri

_LOG = logging.getLogger(__name__)


def find_speakers_of_run(store: OutputStore, settings: SpeakerSettings) -> int:
    """Write the turns of complete recordings that have none yet; return how many they are.

    May be repeated after being killed anywhere: voices are committed with their parts, and the same
    voices and settings give the same turns.
    """
    number = write_turns(store, _rows(store, settings))
    complete = [
        each
        for batch in store.outcomes(("recording_id",))
        for each in batch["recording_id"].unique().to_pylist()
    ]
    tidy_turns(store, complete)
    if number:
        event(_LOG, logging.INFO, "speakers_found", recordings=number)
    if settings.mode == "corpus":
        _find_voices(store, settings)
    else:
        remove_voices(store)
    return number


def _find_voices(store: OutputStore, settings: SpeakerSettings) -> None:
    same_above = likeness_of(settings.model).same_above
    number = write_voices(
        store,
        lambda centroids, recordings: find_voices(centroids, recordings, same_above=same_above),
        settings=(settings.model, same_above),
    )
    if number is not None:
        event(_LOG, logging.INFO, "voices_found", voices=number)


def _rows(store: OutputStore, settings: SpeakerSettings) -> Iterator[list[dict[str, Any]]]:
    # Voices across recordings change no turns.
    for recording in voices_left(store, settings.model_dump(mode="json", exclude={"mode"})):
        found = _speakers_of(recording, settings)
        yield turn_rows(recording, found.turns, found.voices)


def _speakers_of(recording: RecordingVoices, settings: SpeakerSettings) -> Diarization:
    bounds = SpeakerBounds.of(settings.num_speakers, settings.min_speakers, settings.max_speakers)
    try:
        channels: dict[int | None, list[SpeechWindows]] = {}
        for _, part in sorted(recording.parts.items()):
            windows = SpeechWindows(
                start_s=part.spans_s[:, 0], end_s=part.spans_s[:, 1], embeddings=part.embeddings
            )
            channels.setdefault(part.channel, []).append(windows)
        joined = {channel: SpeechWindows.joined(parts) for channel, parts in channels.items()}
        return diarize(joined, likeness_of(settings.model), bounds)
    except Exception as error:  # one recording's; its transcript is written, the others continue
        event(
            _LOG, logging.ERROR, "speakers_not_found", recording_id=recording.recording_id,
            uri=redact_uri(recording.uri), exc_info=error,
        )  # fmt: skip
        return Diarization(turns=(), voices={})
