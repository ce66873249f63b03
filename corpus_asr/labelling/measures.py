"""Measures of segments for selection: rows of the SELECTION table, whatever the rules are."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corpus_asr.export.recordings import Recording
from corpus_asr.report.accuracy.scoring import (
    WITHOUT_BLANKS,
    Errors,
    Reference,
    aligned,
    normalised,
    units,
)
from corpus_asr.segments import Segment

MAX_REPEATED_WORDS = 5
_MIN_WORDS = 10  # the share of different words among fewer says nothing
_HASH_BYTES = 8
_COPIED = (
    "start_s", "end_s", "text", "language_probability", "task", "confidence", "avg_logprob",
    "no_speech_prob", "compression_ratio", "temperature", "speech_fraction", "known_hallucination",
)  # fmt: skip


def errors_by_piece(pieces: Sequence[Sequence[str]], said: Sequence[str]) -> list[Errors]:
    """Return the errors of each piece, taking the other text for what was said.

    What was said between two pieces and is in neither counts against both: either may be the one
    that lacks it, and audio that reaches from one into the other holds it.
    """
    found = [word for piece in pieces for word in piece]
    piece_of_word = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    hits, substitutions, deletions, insertions = (
        np.zeros(len(pieces), dtype=np.int64) for _ in range(4)
    )
    if found and not said:
        np.add.at(insertions, piece_of_word, 1)
    elif found:
        for chunk in aligned(said, found).alignments[0]:
            theirs = piece_of_word[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "delete":
                beside = piece_of_word[max(0, chunk.hyp_start_idx - 1) : chunk.hyp_start_idx + 1]
                deletions[np.unique(beside)] += chunk.ref_end_idx - chunk.ref_start_idx
            elif chunk.type == "insert":
                np.add.at(insertions, theirs, 1)
            else:
                np.add.at(hits if chunk.type == "equal" else substitutions, theirs, 1)
    counts = zip(hits, substitutions, deletions, insertions, strict=True)
    return [Errors(*map(int, each)) for each in counts]


def rate(errors: Errors) -> float:
    """Return errors per word said; where nothing was said, 1 for any error."""
    return float(errors.errors > 0) if errors.rate is None else errors.rate


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
    """Measure the segments of a recording."""
    found: list[MeasuredSegment] = []
    reference = beside.reference
    for channel, segments in sorted(
        recording.by_channel().items(), key=lambda item: -1 if item[0] is None else item[0]
    ):
        words = [_words(segment.text, segment.language or recording.language)
                 for segment in segments]  # fmt: skip
        others = texts = None
        if beside.other is not None:
            others = [each.text for each in beside.other.by_channel().get(channel, [])]
        if reference is not None:
            texts = [reference.text]
        language = (reference.language if reference else None) or recording.language
        disagreement = _rates(segments, others, recording.language)
        wers = _rates(segments, texts, language)
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
    language = segment.language or recording.language
    has_blanks = language not in WITHOUT_BLANKS
    enough = has_blanks and len(words) >= _MIN_WORDS
    return {
        "recording_id": recording.recording_id,
        "uri": recording.uri,
        "recording_s": recording.duration_s,
        "language": language,
        **{name: getattr(segment, name) for name in _COPIED},
        "num_words": len(words),
        "num_letters": _letters(segment.text),
        "unique_words": len(set(words)) / len(words) if enough else None,
        "repeats": most_repeats(words),
        "longest_word": max(map(_letters, segment.text.split()), default=0) if has_blanks else None,
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


def _rates(
    segments: Sequence[Segment], texts: Sequence[str] | None, language: str | None
) -> Sequence[float | None]:
    """Compare segments with texts, all as if in one language, so that both are normalised alike."""
    if texts is None:
        return [None] * len(segments)
    pieces = [_words(segment.text, language) for segment in segments]
    return [rate(errors) for errors in errors_by_piece(pieces, _words(" ".join(texts), language))]
