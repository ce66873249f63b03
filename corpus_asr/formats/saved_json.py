"""Parses segments from the dictionaries of `Transcript.to_dict` and openai-whisper."""

from collections.abc import Mapping, Sequence
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.segments import MissingWord, Segment, SpeakerTurn, Word


def segment_of(saved: Mapping[str, Any], *, language: str | None) -> Segment:
    """Return a segment; fields that openai-whisper lacks are unknown."""
    start_s = float(_needed(saved, "start"))
    words = saved.get("words")
    return Segment(
        start_s=start_s,
        end_s=float(_needed(saved, "end")),
        text=str(_needed(saved, "text")),
        tokens=tuple(saved.get("tokens") or ()),
        language=saved.get("language", language),
        language_probability=saved.get("language_probability"),
        task=saved.get("task", "transcribe"),
        confidence=saved.get("confidence", float("nan")),
        avg_logprob=saved.get("avg_logprob", float("nan")),
        no_speech_prob=saved.get("no_speech_prob"),
        compression_ratio=saved.get("compression_ratio", float("nan")),
        temperature=saved.get("temperature", float("nan")),
        speech_fraction=saved.get("speech_fraction"),
        known_hallucination=bool(saved.get("known_hallucination")),
        words=None if words is None else tuple(map(_word, words)),
        corrected=bool(saved.get("corrected")),
        speaker=saved.get("speaker"),
    )


def turns_of(saved: Sequence[Mapping[str, Any]] | None) -> tuple[SpeakerTurn, ...] | None:
    """Return the speaker turns."""
    if saved is None:
        return None
    return tuple(
        SpeakerTurn(
            start_s=float(_needed(turn, "start")),
            end_s=float(_needed(turn, "end")),
            speaker=str(_needed(turn, "speaker")),
            confidence=turn.get("confidence", float("nan")),
            channel=turn.get("channel"),
        )
        for turn in saved
    )


def missing_of(saved: Sequence[Mapping[str, Any]] | None) -> tuple[MissingWord, ...] | None:
    """Return the words of a known text that are missing in the audio."""
    if saved is None:
        return None
    return tuple(
        MissingWord(
            word=_needed(word, "word"), index=_needed(word, "index"), after_s=_needed(word, "after")
        )
        for word in saved
    )


def _word(saved: Mapping[str, Any]) -> Word:
    return Word(
        word=_needed(saved, "word"),
        start_s=float(_needed(saved, "start")),
        end_s=float(_needed(saved, "end")),
        probability=saved.get("probability", float("nan")),
        speaker=saved.get("speaker"),
    )


def _needed(saved: Any, name: str) -> Any:
    try:
        return saved[name]
    except (KeyError, TypeError) as error:
        description = repr(saved) if isinstance(saved, str) else ", ".join(map(str, saved))
        raise ConfigError(
            f"reading a transcript: found {description or 'nothing'}, expected {name}, as "
            "Transcript.to_dict and openai-whisper write it; correct the dictionary"
        ) from error
