"""Joins the aligned parts of a recording, so that each word of its known text occurs at most once.

Each part is aligned with the text independently. Where text repeats near a part boundary, two parts
may claim the same words, or a later part earlier ones. Conflicts are resolved in favor of the
claims that fit the audio best. Does not import torch: it is also used for committed parts.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

from corpus_asr.errors import AlignmentError
from corpus_asr.segments import MissingWord, PartTranscript, Segment
from corpus_asr.units import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A part's claim to a word of the text."""

    part: int
    """Index of the part, in the order of the recording."""
    index: int
    """Index of the word in the text."""
    probability: float
    """The model's probability of the word, in 0-1."""


def placed_once(claims: Sequence[Claim]) -> list[int]:
    """Return the positions of claims to keep, in the order of the recording, with ascending words.

    Claims without conflict are all kept. Of conflicting claims, the subset with the largest sum of
    probabilities is kept. Each claim counts with the mean of its part in that place, so that of two
    parts with the same words the better one gets them all.
    """
    indices = [claim.index for claim in claims]
    reached = [-1, *accumulate(indices, max)]
    ahead = [*accumulate(reversed(indices), min)][::-1]
    settled = [
        reached[at] < index and (at + 1 == len(indices) or index < ahead[at + 1])
        for at, index in enumerate(indices)
    ]
    weights = [1.0] * len(claims)
    keys = [(is_settled, claim.part) for is_settled, claim in zip(settled, claims, strict=True)]
    for (is_settled, _), run in groupby(range(len(claims)), key=keys.__getitem__):
        if not is_settled:
            positions = list(run)
            mean = sum(claims[at].probability for at in positions) / len(positions)
            for at in positions:
                weights[at] = max(mean, 1e-6)  # any word is better than none
    return _heaviest_ascending(indices, weights)


def _heaviest_ascending(values: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return the positions of the strictly ascending subsequence with the largest sum of weights.

    Source: the longest ascending subsequence of Fredman 1975, with weights in place of counts.
    """
    # Non-dominated subsequences by ascending last value, each heavier than those before.
    lasts: list[int] = []
    sums: list[float] = []
    ends: list[int] = []
    predecessors: list[int] = []
    for at, (value, weight) in enumerate(zip(values, weights, strict=True)):
        place = bisect_left(lasts, value)
        predecessors.append(ends[place - 1] if place else -1)
        total = weight + (sums[place - 1] if place else 0.0)
        stop = place
        while stop < len(lasts) and sums[stop] <= total:
            stop += 1
        if stop > place or place == len(lasts) or lasts[place] > value:
            lasts[place:stop], sums[place:stop], ends[place:stop] = [value], [total], [at]
    positions, at = [], ends[-1] if ends else -1
    while at >= 0:
        positions.append(at)
        at = predecessors[at]
    return positions[::-1]


def missing_words(words: Sequence[str], ends_s: Mapping[int, float]) -> tuple[MissingWord, ...]:
    """Return the words of a text that were not aligned, given the end times of those aligned."""
    missing, after_s = [], 0.0
    for index, word in enumerate(words):
        if index in ends_s:
            after_s = ends_s[index]
        else:
            missing.append(MissingWord(word=word, index=index, after_s=after_s))
    return tuple(missing)


def words_of_lengths(text: str, lengths: Sequence[int]) -> list[str]:
    """Split a text into words, given their lengths in characters.

    Raises:
        ValueError: the lengths do not match the text.
    """
    spelled = "".join(f" {chunk}" for chunk in text.split())
    if sum(lengths) != len(spelled):
        raise ValueError(
            f"cutting a text of {len(spelled)} characters into words: found lengths of "
            f"{sum(lengths)} in all, expected as many; align the recording again"
        )
    return [spelled[first:stop] for first, stop in pairwise(accumulate(lengths, initial=0))]


def text_not_found(name: str, found: int, given: int, instead: str) -> AlignmentError:
    """Return the error for a recording that contains too little of its text."""
    return AlignmentError(
        f"aligning the text of {name}: found {found} of its {counted(given, 'word')} "
        f"({found / max(1, given):.0%}) in the audio, with {instead}, expected most of them; "
        "check that the text is of this recording, and the language"
    )


def joined_parts(
    parts: Sequence[PartTranscript], *, text: str, name: str
) -> tuple[list[Segment], tuple[MissingWord, ...]]:
    """Join the parts of a recording: return their segments and the missing words of its text.

    Raises:
        AlignmentError: no part contains any of the text.
    """
    claimed = [
        (word, Claim(part=number, index=index, probability=word.probability))
        for number, part in enumerate(parts)
        if part.placed is not None
        for segment, indices in zip(part.segments, part.placed.indices, strict=True)
        for word, index in zip(segment.words or (), indices, strict=True)
    ]
    kept = placed_once([claim for _, claim in claimed])
    if not kept:
        raise text_not_found(name, 0, len(text.split()), "no speech that fits")
    words = next(part.placed.words for part in parts if part.placed is not None)
    ends_s = {claimed[at][1].index: claimed[at][0].end_s for at in kept}
    missing = missing_words(words, ends_s)
    if len(kept) == len(claimed):
        return [segment for part in parts for segment in part.segments], missing
    return list(_with_words(parts, {id(claimed[at][0]) for at in kept})), missing


def _with_words(parts: Sequence[PartTranscript], kept: Collection[int]) -> Iterator[Segment]:
    for segment in (segment for part in parts for segment in part.segments):
        words = tuple(word for word in segment.words or () if id(word) in kept)
        if words == segment.words:
            yield segment
        elif words:
            yield replace(
                segment,
                words=words,
                text="".join(word.word for word in words),
                tokens=(),  # tokens of the parts include dropped words
                start_s=words[0].start_s,
                end_s=max(words[0].start_s, words[-1].end_s),
            )


def text_columns(
    lengths: Sequence[int] | None, found: Iterable[tuple[int, float]]
) -> dict[str, object]:
    """Return the outcome columns with the words of the text that a part contains.

    `found` has the index of each word in the text, ascending, and its end in seconds; `lengths` has
    the number of characters of each word of the text.
    """
    spans: list[dict[str, float]] = []
    for index, end_s in found:
        if spans and spans[-1]["stop"] == index:
            spans[-1] |= {"stop": index + 1, "end_s": end_s}
        else:
            spans.append({"first": index, "stop": index + 1, "end_s": end_s})
    return {
        "text_words": None if lengths is None else len(lengths),
        "text_lengths": lengths,
        "text_spans": spans,
    }
