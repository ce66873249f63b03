"""Decode one window, and again at a higher temperature while the result fails a threshold."""

import math
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Search, WindowJob, WindowResult
from corpus_asr.transcription.windows import PartRequest


def mean_logprob(logprobs: Sequence[float], end_logprob: float | None) -> float:
    """Whisper's average: over the text and the end token, which counts even when cut off.

    Source: openai-whisper `decoding.py`, `sum_logprobs / (len(tokens) + 1)`.
    """
    return (math.fsum(logprobs) + (end_logprob or 0.0)) / (len(logprobs) + 1)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib form: repetition compresses well.

    Source: openai-whisper `utils.py`.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def search_at(settings: DecodingSettings, temperature: float) -> Search:
    """Beams are followed at temperature 0 alone: above it, sampling takes their place."""
    search = Search(
        temperature=temperature,
        repetition_penalty=settings.repetition_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        stop_loops=settings.stop_loops,
    )
    if temperature > 0 or settings.num_beams == 1:
        return search
    return replace(search, num_beams=settings.num_beams, length_penalty=settings.length_penalty)


def seed_of(part: PartRequest, frame: int, temperature: float) -> int:
    """A seed that names recording, window and temperature, and nothing about this run."""
    name: Sequence[object] = (part.recording_id, round(part.seconds(frame), 2), temperature)
    return int.from_bytes(blake2b(repr(name).encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedWindow:
    """A window's tokens with the scores the thresholds look at."""

    tokens: tuple[int, ...]
    """Text and timestamps, end token left out."""
    logprobs: tuple[float, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    looped: bool = False
    """Whether it was ended because it repeated itself."""


def decode_window(
    job_at: Callable[[float], WindowJob],
    settings: DecodingSettings,
    text: Callable[[Sequence[int]], str],
) -> Generator[WindowJob, WindowResult, DecodedWindow]:
    """Climb the temperature ladder until a result is good enough.

    Source: Radford et al. 2022, section 4.5; openai-whisper `decode_with_fallback`.
    """
    for temperature in settings.temperature:
        result = yield job_at(temperature)
        decoded = DecodedWindow(
            tokens=result.tokens,
            logprobs=result.logprobs,
            avg_logprob=mean_logprob(result.logprobs, result.end_logprob),
            no_speech_prob=result.score or 0.0,
            compression_ratio=compression_ratio(text(result.tokens).strip()),
            temperature=temperature,
            looped=result.looped,
        )
        if not _needs_fallback(decoded, settings):
            break
    return decoded


def is_silence(decoded: DecodedWindow, settings: DecodingSettings) -> bool:
    """Whether the window counts as silence: probably no speech, and an improbable text."""
    if settings.no_speech_threshold is None:
        return False
    if decoded.no_speech_prob <= settings.no_speech_threshold:
        return False
    return settings.logprob_threshold is None or decoded.avg_logprob <= settings.logprob_threshold


def _needs_fallback(decoded: DecodedWindow, settings: DecodingSettings) -> bool:
    improbable = (
        settings.logprob_threshold is not None and decoded.avg_logprob < settings.logprob_threshold
    )
    if (
        improbable
        and settings.no_speech_threshold is not None
        and decoded.no_speech_prob > settings.no_speech_threshold
    ):
        return False  # silence: an improbable text is expected, and is dropped later
    # A loop that was cut short no longer compresses so well; it is repetition all the same.
    repetitive = settings.compression_ratio_threshold is not None and (
        decoded.looped or decoded.compression_ratio > settings.compression_ratio_threshold
    )
    return improbable or repetitive
