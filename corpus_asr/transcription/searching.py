"""How a window is searched at a temperature, and what seeds the noise it is sampled with.

In: settings, and the name of a window. Out: a `Search` and a number. Knows no family and no text.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import Search
from corpus_asr.transcription.windows import PartRequest


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
