"""The transcript of a recording, made of its parts once all of them are transcribed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime.in_flight import PartInFlight, RecordingInFlight
from corpus_asr.segments import Segment, SpeakerTurn
from corpus_asr.speakers.turns import diarize_parts, with_speakers
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.transcription.joined_text import joined_parts


def transcript_of(
    recording: RecordingInFlight,
    speakers: SpeakerSettings,
    *,
    model: str,
    calibrated: Callable[[Segment], Segment],
) -> Transcript:
    """Return what a recording says, by which model, each segment with its calibrated confidence.

    Raises:
        ItemError: a part could not be transcribed.
    """
    transcript = _Parts(model, calibrated).transcript(recording)
    if not speakers.wanted:
        return transcript
    found = diarize_parts(
        ((part.channel, part.voices) for part in recording.parts if part.voices is not None),
        speakers,
    )
    return _named(transcript, found.turns)


@dataclass(frozen=True, slots=True)
class _Parts:
    model: str
    calibrated: Callable[[Segment], Segment]

    def transcript(self, recording: RecordingInFlight) -> Transcript:
        parts = recording.parts
        numbers = sorted({part.channel for part in parts if part.channel is not None})
        of_file: dict[str, Any] = {
            "audio_track": recording.audio_track,
            "audio_tracks": recording.audio_tracks,
            "silent_tracks": recording.silent_tracks,
            "time_corrections": recording.time_corrections,
        }
        whole = replace(self.joined(parts, recording.audio.name), **of_file)
        if recording.text is not None:
            found = [part.transcript.result() for part in parts if part.transcript is not None]
            segments, missing = joined_parts(
                found, text=recording.text, name=redact_uri(recording.audio.name)
            )
            aligned = tuple(map(self.calibrated, segments))
            whole = replace(whole, segments=aligned, missing=missing)
        if recording.num_rows > 1:
            own = ([part for part in parts if part.channel == number] for number in numbers)
            channels = tuple(
                replace(self.joined(said, recording.audio.name, number), **of_file)
                for said, number in zip(own, numbers, strict=True)
            )
            by_time = sorted(whole.segments, key=lambda segment: segment.start_s)
            seconds = recording.decoded_s
            return replace(whole, segments=tuple(by_time), duration_s=seconds, channels=channels)
        return replace(whole, channel=numbers[0] if numbers else None)

    def joined(
        self, parts: Sequence[PartInFlight], uri: str, channel: int | None = None
    ) -> Transcript:
        futures = [part.transcript for part in parts if part.transcript is not None]
        found = [future.result() for future in futures]
        segments = tuple(self.calibrated(segment) for part in found for segment in part.segments)
        # Where parts have languages of their own, the first one's may be that of a jingle.
        spoken = [part for part in found if part.language is not None]
        language = spoken[0] if spoken else None
        if language is not None and any(part.language != language.language for part in spoken):
            from corpus_asr.transcription.whisper_prompt import spoken_most

            most = spoken_most(segments)
            language = next(
                (part for part in spoken if most and part.language == most.code), language
            )
        speech = [part.speech_s for part in parts]
        return Transcript(
            segments=segments,
            language=language.language if language else None,
            language_probability=language.language_probability if language else None,
            duration_s=sum(part.duration_s for part in parts),
            # Not detected in a part is not known of the whole.
            speech_s=None if None in speech else sum(filter(None, speech), 0.0),
            speech_without_text_s=None
            if None in speech
            else sum(part.speech_without_text_s or 0.0 for part in found),
            uri=uri,
            channel=channel,
            model=self.model,
        )


def _named(transcript: Transcript, turns: Sequence[SpeakerTurn]) -> Transcript:
    """Return a transcript whose segments and words have speakers, given all turns."""
    channels = tuple(
        _named(each, [turn for turn in turns if turn.channel == each.channel])
        for each in transcript.channels
    )
    if channels:
        said = [segment for each in channels for segment in each.segments]
        segments = tuple(sorted(said, key=lambda segment: segment.start_s))
    else:
        segments = with_speakers(transcript.segments, turns)
    return replace(transcript, segments=segments, channels=channels, turns=tuple(turns))
