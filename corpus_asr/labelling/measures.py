"""What is measured of a segment before anything is decided: rows of the SELECTION table.

In: a recording of a run, the same recording of another run, its existing transcript. Out: a row per
segment, by channel and time. Knows no bound: rows hold for any selection.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corpus_asr.export.recordings import Recording
from corpus_asr.labelling.alignment import errors_by_piece, rate
from corpus_asr.report.accuracy import WITHOUT_BLANKS, normalised, units
from corpus_asr.report.accuracy_references import Reference
from corpus_asr.segments import Segment

MAX_REPEATED_WORDS = 5
_ENOUGH_WORDS = 10
_HASH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """What the segments of a recording are compared with."""

    other: Recording | None = None
    """The same recording of another run."""
    reference: Reference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSegment:
    """A segment's row, and the number of its text: equal for texts that say the same."""

    row: dict[str, Any]
    text_hash: int


def measured(
    recording: Recording,
    version: Mapping[str, Any],
    beside: Comparisons,
    *,
    listed: frozenset[int] = frozenset(),
) -> list[MeasuredSegment]:
    """Measure the segments of a recording.

    Args:
        recording: of the run.
        version: `size_bytes` and `etag` of what was transcribed.
        beside: what it is compared with.
        listed: hashes of texts that are told apart.

    Raises:
        ConfigError: there is something to compare with, and jiwer is not installed.
    """
    found: list[MeasuredSegment] = []
    reference = beside.reference
    for channel, segments in sorted(
        recording.by_channel().items(), key=lambda item: -1 if item[0] is None else item[0]
    ):
        words = [_words(segment.text, segment.language or recording.language)
                 for segment in segments]  # fmt: skip
        disagreement = _disagreements(recording, channel, segments, beside.other)
        wers = _word_error_rates(recording, segments, reference)
        for at, segment in enumerate(segments):
            text_hash = hash_of(" ".join(words[at]))
            row = _row(recording, segment, words[at]) | {
                "size_bytes": version["size_bytes"],
                "etag": version["etag"],
                "channel": channel,
                "listed": text_hash in listed,
                "disagreement": disagreement[at],
                "wer": wers[at],
                "reference_language": reference.language if reference else None,
                "reference": reference.text if reference and not found else None,
            }
            found.append(MeasuredSegment(row=row, text_hash=text_hash))
    return found


def hash_of(words: str) -> int:
    """Return a number for a normalised text."""
    data = words.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_HASH_BYTES).digest())


def listed_hashes(texts: Iterable[str]) -> frozenset[int]:
    """Return the hashes of texts to be told apart, whatever language they are found in."""
    return frozenset(
        hash_of(" ".join(_words(text, language))) for text in texts for language in ("en", "zh", "")
    )


def _words(text: str, language: str | None) -> list[str]:
    return units(normalised(text, language), language)


def _row(recording: Recording, segment: Segment, words: Sequence[str]) -> dict[str, Any]:
    parted = (segment.language or recording.language) not in WITHOUT_BLANKS
    spoken = segment.text.split()
    return {
        "recording_id": recording.recording_id,
        "uri": recording.uri,
        "recording_s": recording.duration_s,
        "start_s": segment.start_s,
        "end_s": segment.end_s,
        "text": segment.text,
        "language": segment.language or recording.language,
        "language_probability": segment.language_probability,
        "task": segment.task,
        "confidence": segment.confidence,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
        "compression_ratio": segment.compression_ratio,
        "temperature": segment.temperature,
        "speech_fraction": segment.speech_fraction,
        "known_hallucination": segment.known_hallucination,
        "num_words": len(words),
        "num_letters": _letters(segment.text),
        "unique_words": (
            len(set(words)) / len(words) if parted and len(words) >= _ENOUGH_WORDS else None
        ),
        "repeats": most_repeats(words),
        "longest_word": max(map(_letters, spoken), default=0) if parted else None,
    }


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def most_repeats(words: Sequence[str]) -> int:
    """Return how often the same one to five words stand in a row, at most."""
    most = 1 if words else 0
    for size in range(1, MAX_REPEATED_WORDS + 1):
        run = 0
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            most = max(most, run // size + 1)
    return most


def _disagreements(
    recording: Recording,
    channel: int | None,
    segments: Sequence[Segment],
    other: Recording | None,
) -> list[float | None]:
    if other is None:
        return [None] * len(segments)
    heard = [segment.text for segment in other.by_channel().get(channel, [])]
    return _rates(segments, heard, recording.language)


def _word_error_rates(
    recording: Recording, segments: Sequence[Segment], reference: Reference | None
) -> list[float | None]:
    if reference is None:
        return [None] * len(segments)
    return _rates(segments, [reference.text], reference.language or recording.language)


def _rates(
    segments: Sequence[Segment], said: Sequence[str], language: str | None
) -> list[float | None]:
    """Compare segments with texts, all as if in one language, so that both are normalised alike."""
    pieces = [_words(segment.text, language) for segment in segments]
    return [rate(errors) for errors in errors_by_piece(pieces, _words(" ".join(said), language))]
