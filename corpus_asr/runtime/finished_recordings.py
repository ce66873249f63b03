"""Results of a `Transcriber`'s recordings: a transcript, or a language."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from corpus_asr.config.decoding import other_language_notice
from corpus_asr.config.extraction import SpeakerSettings
from corpus_asr.config.options import CallSettings
from corpus_asr.errors import ConfigError
from corpus_asr.formats.transcript import Transcript
from corpus_asr.runtime.in_flight import RecordingInFlight
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.speakers.turns import SpeechWindows, diarize_parts, with_speakers
from corpus_asr.stages.measures import measured_columns
from corpus_asr.stages.parts import PartRow
from corpus_asr.storage.stores.uri import redact_uri
from corpus_asr.transcription.joined_text import joined_parts

_LOG = logging.getLogger(__name__)


class DetectedLanguage(NamedTuple):
    """The most probable language of a recording."""

    language: str
    """Language code."""
    probability: float
    all_language_probs: list[tuple[str, float]]
    """Each language with its probability, highest first."""


def detecting(settings: CallSettings, languages: Collection[str]) -> CallSettings:
    """Return settings that detect the same language as transcription with `settings`.

    Raises:
        ConfigError: the checkpoint distinguishes no languages, or several answers are asked for.
    """
    if not languages:
        raise ConfigError(
            "detecting the language: found a checkpoint of one language, expected a multilingual "
            "Whisper checkpoint; use one, such as small instead of small.en"
        )
    if settings.extract.separate:
        raise ConfigError(
            f"detecting the language: found {settings.extract.separate}, expected one channel or "
            "track, or all channels mixed; set one"
        )
    decoding = settings.decoding
    if isinstance(decoding.language, str) or len(decoding.language) == 1:
        return replace(settings, decoding=replace(decoding, language="auto"))
    return settings


def transcript_of(
    recording: RecordingInFlight,
    speakers: SpeakerSettings,
    model: str,
    calibrated: Callable[[Segment], Segment],
) -> Transcript:
    """Return a recording's transcript with the model name and calibrated segment confidences.

    Raises:
        ItemError: extraction, or transcription of a part, failed.
    """
    if recording.error is not None:
        raise recording.error
    parts, last = recording.parts, recording.last
    name = redact_uri(recording.audio.name)
    if any(part.transcript.result().other_language for part in parts):
        _LOG.warning("%s", other_language_notice(name))
    turns = None
    if speakers.wanted:
        voices = (
            (part.row["channel"], windows)
            for part in parts
            if (windows := _voices(part.row)) is not None
        )
        turns = diarize_parts(voices, speakers, name=name).turns

    def joined(channel: int | None) -> Transcript:
        chosen = [part for part in parts if channel in (None, part.row["channel"])]
        results = [part.transcript.result() for part in chosen]
        segments: Sequence[Segment] = [segment for result in results for segment in result.segments]
        language, probability = _language(results, segments)
        missing = extra_words = None
        if recording.text is not None:
            segments, missing = joined_parts(results, text=recording.text, name=name)
            extra_words = sum(part.placed.extra_words for part in results if part.placed)
        segments = [calibrated(segment) for segment in segments]
        speech = [part.row["speech_s"] for part in chosen]
        # Unknown for the whole if unknown for a part.
        is_detected = None not in speech
        without_text = (result.speech_without_text_s or 0.0 for result in results)
        turns_of_channel = None
        if turns is not None:
            turns_of_channel = tuple(turn for turn in turns if turn.channel == channel)
            segments = with_speakers(segments, turns_of_channel)
        return Transcript(
            segments=tuple(segments),
            language=language,
            language_probability=probability,
            duration_s=sum(part.duration_s for part in chosen),
            speech_s=sum(filter(None, speech), 0.0) if is_detected else None,
            speech_without_text_s=sum(without_text) if is_detected else None,
            uri=recording.audio.name,
            channel=channel,
            audio_track=last.get("audio_track"),
            audio_tracks=last.get("audio_tracks") or (),
            silent_tracks=last.get("silent_tracks", ()),
            time_corrections=last.get("time_corrections", 0),
            model=model,
            turns=turns_of_channel,
            missing=missing,
            extra_words=extra_words,
        )

    channels = [part.row["channel"] for part in parts]
    numbers = sorted({channel for channel in channels if channel is not None})
    if recording.num_rows == 1:
        return joined(numbers[0] if numbers else None)
    transcripts = tuple(map(joined, numbers))
    segments = [segment for transcript in transcripts for segment in transcript.segments]
    return replace(
        joined(None),
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        duration_s=recording.decoded_s,
        channels=transcripts,
        turns=turns,
    )


def _language(
    results: Sequence[PartTranscript], segments: Sequence[Segment]
) -> tuple[str | None, float | None]:
    """Return the language of most of a recording, and its probability."""
    spoken = [result for result in results if result.language is not None]
    if not spoken:
        return None, None
    chosen = spoken[0]
    # If parts differ in language, the first one may be that of a jingle.
    if any(result.language != chosen.language for result in spoken):
        from corpus_asr.transcription.whisper_prompt import spoken_most

        most = spoken_most(segments)
        chosen = next(
            (result for result in spoken if most and result.language == most.code), chosen
        )
    return chosen.language, chosen.language_probability


def _voices(part: PartRow) -> SpeechWindows | None:
    """Return the speech windows of a part; None without diarization."""
    voices = [measured for measured in part["measured"] if measured["name"] == "voices"]
    columns = measured_columns(voices, (), (), start_s=part["part_start_s"])
    return SpeechWindows.of_columns(columns) if "voices" in columns else None
