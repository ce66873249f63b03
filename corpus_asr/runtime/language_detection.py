"""Which language a recording is in: its parts are extracted up to the first one with speech."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corpus_asr.audio.inputs import GivenAudio, given_audio
from corpus_asr.config.options import CallSettings
from corpus_asr.errors import ConfigError
from corpus_asr.runtime.in_flight import CallInFlight, ExtractorPool
from corpus_asr.units import SAMPLE_RATE_HZ

if TYPE_CHECKING:  # imports torch
    from corpus_asr.transcription.engine import Engine
    from corpus_asr.transcription.routing import RoutedEngine


class DetectedLanguage(NamedTuple):
    """The likeliest language of a recording."""

    language: str
    """Its code."""
    probability: float
    all_language_probs: list[tuple[str, float]]
    """Each language with its probability, the likeliest first."""


def detect(
    pool: ExtractorPool,
    engine: "Engine | RoutedEngine",
    audio: GivenAudio,
    settings: CallSettings,
) -> DetectedLanguage:
    """Detect the language that transcribing with these settings would detect.

    Raises:
        ConfigError: the checkpoint distinguishes no languages, or several answers are asked for.
        ItemError: the recording cannot be read, or holds no usable audio.
    """
    if not engine.languages:
        raise ConfigError(
            "detecting the language: this checkpoint does not distinguish languages, expected a "
            "multilingual Whisper checkpoint; use one, such as small instead of small.en"
        )
    if settings.extract.separate:
        raise ConfigError(
            f"detecting the language: found {settings.extract.separate}, expected one channel or "
            "track, or all channels mixed, since there is one answer; set one"
        )
    decoding = settings.decoding
    if isinstance(decoding.language, str) or len(decoding.language) == 1:
        settings = replace(settings, decoding=replace(decoding, language="auto"))
    found = _first_spoken(pool, engine, audio, settings)
    if not found:
        # The answer is the same for any length of silence, also for none.
        silence = given_audio(np.zeros(SAMPLE_RATE_HZ, np.int16), sampling_rate=SAMPLE_RATE_HZ)
        extract = settings.extract.model_copy(update={"vad_filter": False})
        found = _first_spoken(pool, engine, silence, replace(settings, extract=extract))
    return DetectedLanguage(*found[0], found)


def _first_spoken(
    pool: ExtractorPool,
    engine: "Engine | RoutedEngine",
    audio: GivenAudio,
    settings: CallSettings,
) -> list[tuple[str, float]]:
    """Return the languages of the first part with speech; none where nobody speaks."""
    with CallInFlight(pool, engine, settings, detect_only=True) as call:
        recording = call.begin(audio)
        while True:
            call.check()
            extracted = recording.extracted  # before the parts are looked at
            futures = [part.transcript for part in recording.parts if part.transcript is not None]
            if futures and futures[0].done():
                return list(futures[0].result().languages)
            if extracted and not futures:
                if recording.error is not None:
                    raise recording.error
                return []
            call.wait()
