"""Fuses two transcripts of a recording: selects the more probable phrase of each.

Input: the segments of one channel from two runs, with words. Output: the first run's segments with
the selected texts, and segments of text found only by the second run.

Words are aligned by edit distance; equal words at different times are different words. Between
words in both runs, each run has a phrase or nothing. A phrase has the joint probability of its
words; one that the other run lacks needs a probability above one half.

Source: Fiscus, "A post-processing system to yield reduced word error rates: Recognizer Output
Voting Error Reduction (ROVER)" (1997): voting by the maximum confidence.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, chain, groupby, pairwise

from corpus_asr.config.run import Select
from corpus_asr.report.scoring import WITHOUT_BLANKS, aligned, normalized, units
from corpus_asr.segments import Segment, Word

_SAME_WORD_S = 2.0  # models differ by tenths of a second, repetitions by more
# Minimum silence in seconds between phrases that are not alternatives.
_SILENCE_S = 1.0
# Maximum distance in seconds from a segment of the first run; other words form new segments.
_NEAR_S = 1.0
_ABSENT = 0.5  # probability of an absent phrase
_ROUNDING = 1e-6  # of confidences, stored in 32 bits
_NOWHERE = -1  # index for no segment
_WORDS_CACHED = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A segment with the selected text."""

    segment: Segment
    own: str | None
    """Text of the first run; None if only the second has a segment."""
    from_other: float | None
    """Fraction of words from the second run; None if nothing was selected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A word for comparison."""

    key: str
    word: Word
    """Text with adjacent words that are not compared, such as music symbols."""
    segment: Segment
    ours: bool
    confidence: float
    at: int = _NOWHERE
    """Index of the first run's segment that contains it or is near it."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A word in both runs, or each run's words between two of these."""

    own: Sequence[Token]
    other: Sequence[Token]


def chosen(
    segments: Sequence[Segment], others: Sequence[Segment], select: Select, language: str | None
) -> list[Choice]:
    """Return the segments of a channel, sorted by time, with the more probable texts.

    Manually corrected segments are kept; between different languages the more probable is selected.

    Args:
        segments: of the first run.
        others: of the second run.
        select: `fuse` selects phrases by the confidence of their words.
        language: of the recording, for word comparison.
    """
    if select == "own":
        return [Choice(segment=segment, own=segment.text, from_other=None) for segment in segments]
    spoken_places: set[int] = set()
    other_tokens: defaultdict[int, list[Token]] = defaultdict(list)
    likelier: defaultdict[int, list[Token]] = defaultdict(list)
    for phrase in phrases(segments, others, language):
        spoken_places.update(token.at for token in phrase.own)
        for token in phrase.other:
            other_tokens[token.at].append(token)
        for token in _likelier(phrase, language):
            likelier[token.at].append(token)
    choices = []
    for at, segment in enumerate(segments):
        whole = any(
            # Models without language detection may report none.
            None not in (token.segment.language, segment.language)
            and token.segment.language != segment.language
            for token in other_tokens[at]
        )
        tokens = other_tokens[at] if whole else likelier[at]
        if whole:
            changes = _confidence(tokens) > segment.confidence + _ROUNDING
        else:
            changes = bool(tokens) or at in spoken_places
        if changes and not segment.corrected:
            choices.append(_choice(segment, tokens, language, own=segment.text))
        else:
            choices.append(Choice(segment=segment, own=segment.text, from_other=0.0))
    for _, group in groupby(likelier[_NOWHERE], key=lambda token: id(token.segment)):
        tokens = list(group)
        first, last = tokens[0].word, tokens[-1].word
        segment = replace(tokens[0].segment, start_s=first.start_s, end_s=last.end_s)
        choices.append(_choice(segment, tokens, language, own=None))
    return sorted(choices, key=lambda choice: choice.segment.start_s)


def _likelier(phrase: Phrase, language: str | None) -> list[Token]:
    """Return the words of the more probable run with confidences updated by both runs."""
    own_tokens, other_tokens = phrase.own, phrase.other
    if _plain(own_tokens, language) == _plain(other_tokens, language):
        # A word in both runs is at least as probable as in the more confident run.
        least = _confidence(other_tokens)
        return [replace(token, confidence=max(token.confidence, least)) for token in own_tokens]
    first, second = _probability(own_tokens), _probability(other_tokens)
    share = max(first, second) / max(first + second, 1e-9)
    return [
        replace(token, confidence=share)
        for token in (other_tokens if second > first else own_tokens)
    ]


def _plain(tokens: Sequence[Token], language: str | None) -> list[str]:
    if len(tokens) == 1:
        return [tokens[0].key]
    return units(normalized(text_of(tokens, language), language), language)


def _probability(tokens: Sequence[Token]) -> float:
    return math.prod(token.word.probability for token in tokens) if tokens else _ABSENT


def _confidence(tokens: Sequence[Token]) -> float:
    return math.fsum(token.confidence for token in tokens) / max(1, len(tokens))


def _choice(
    segment: Segment, tokens: Sequence[Token], language: str | None, *, own: str | None
) -> Choice:
    """Return a segment with the text of tokens, and the worst scores of their segments."""
    if not tokens:
        empty = replace(segment, text="", words=(), tokens=())
        return Choice(segment=empty, own=own, from_other=0.0)
    sources = [*{id(token.segment): token.segment for token in tokens}.values()]
    named = next((source for source in sources if source.language), segment)
    silences = [source.no_speech_prob for source in sources if source.no_speech_prob is not None]
    new_segment = replace(
        segment,
        # Words of the second run may extend slightly beyond the segment.
        start_s=min(segment.start_s, tokens[0].word.start_s),
        end_s=max(segment.end_s, tokens[-1].word.end_s),
        text=text_of(tokens, language),
        language=named.language,
        language_probability=named.language_probability,
        words=tuple(token.word for token in tokens),
        tokens=(),
        confidence=_confidence(tokens),
        avg_logprob=min(source.avg_logprob for source in sources),
        no_speech_prob=max(silences, default=None),
        compression_ratio=max(source.compression_ratio for source in sources),
        temperature=max(source.temperature for source in sources),
        known_hallucination=all(source.known_hallucination for source in sources),
    )
    num_of_other = sum(not token.ours for token in tokens)
    return Choice(segment=new_segment, own=own, from_other=num_of_other / len(tokens))


def text_of(tokens: Sequence[Token], language: str | None) -> str:
    """Return the text of words."""
    parts = [token.word.word for token in tokens[:1]]
    for last_token, token in pairwise(tokens):
        word = token.word.word
        # Words of one run without a space between them are kept together.
        apart = last_token.ours == token.ours or language in WITHOUT_BLANKS or word[:1].isspace()
        parts.append(word if apart else f" {word}")
    return "".join(parts)


def phrases(
    segments: Sequence[Segment], others: Sequence[Segment], language: str | None
) -> Iterator[Phrase]:
    """Yield the phrases of both runs in order, each word with its index in `segments`."""
    ours = _tokens(segments, language, ours=True)
    passed = 0
    for own_tokens, other_tokens in _aligned(ours, _tokens(others, language, ours=False)):
        # Words of the second run only join the previous or next word's segment, if near.
        around = own_tokens or ours[max(0, passed - 1) : passed + 1]
        first = around[0].at if own_tokens or passed else 0
        passed += len(own_tokens)
        last = around[-1].at if own_tokens or passed < len(ours) else len(segments) - 1
        near_s = math.inf if own_tokens else _NEAR_S
        place = partial(_place, segments, range(first, last + 1), near_s=near_s)
        yield Phrase(own_tokens, [replace(token, at=place(token.word)) for token in other_tokens])


def _place(segments: Sequence[Segment], places: range, word: Word, *, near_s: float) -> int:
    """Return the index of the segment nearest to a word, if it is near."""
    middle_s = (word.start_s + word.end_s) / 2
    distances = [
        (max(segments[at].start_s - middle_s, middle_s - segments[at].end_s, 0.0), at)
        for at in places
    ]
    distance_s, nearest = min(distances, default=(math.inf, _NOWHERE))
    return nearest if distance_s <= near_s else _NOWHERE


def _aligned(
    ours: Sequence[Token], theirs: Sequence[Token]
) -> Iterator[tuple[Sequence[Token], Sequence[Token]]]:
    """Yield words in both runs, and each run's words between them."""
    start = other_start = 0
    for place, other_place in (*_pairs(ours, theirs), (len(ours), len(theirs))):
        yield from _without_silence([*ours[start:place], *theirs[other_start:other_place]])
        start, other_start = place + 1, other_place + 1
        if place < len(ours):
            yield ours[place:start], theirs[other_place:other_start]


def _pairs(ours: Sequence[Token], theirs: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Yield the indices of equal words at about the same time."""
    if not ours or not theirs:
        return
    for chunk in aligned(*([token.key for token in side] for side in (ours, theirs))).alignments[0]:
        if chunk.type != "equal":
            continue
        for place in range(chunk.ref_start_idx, chunk.ref_end_idx):
            other_place = place - chunk.ref_start_idx + chunk.hyp_start_idx
            if abs(ours[place].word.start_s - theirs[other_place].word.start_s) <= _SAME_WORD_S:
                yield place, other_place


def _without_silence(
    tokens: list[Token],
) -> Iterator[tuple[Sequence[Token], Sequence[Token]]]:
    """Yield each run's words in every span without a long silence."""
    tokens.sort(key=lambda token: token.word.start_s)
    start, ends_s = 0, list(accumulate((token.word.end_s for token in tokens), max))
    for at in range(1, len(tokens) + 1):
        if at == len(tokens) or tokens[at].word.start_s > ends_s[at - 1] + _SILENCE_S:
            span = tokens[start:at]
            yield (
                [token for token in span if token.ours],
                [token for token in span if not token.ours],
            )
            start = at


def _tokens(segments: Sequence[Segment], language: str | None, *, ours: bool) -> list[Token]:
    tokens: list[Token] = []
    for at, segment in enumerate(segments):
        for word in _whole_words(segment.words or (), language):
            key = _key(word.word, language)
            tokens.append(
                Token(
                    key=key,
                    word=word,
                    segment=segment,
                    ours=ours,
                    confidence=segment.confidence,
                    at=at if ours else _NOWHERE,
                )
            )
    return tokens


def _whole_words(words: Sequence[Word], language: str | None) -> list[Word]:
    """Join words without a space between them, such as `£81` and `,791`, and uncompared symbols.

    In scripts without spaces each character is a word.
    """
    sticky = language not in WITHOUT_BLANKS
    whole_words: list[Word] = []
    for word in words if sticky else chain.from_iterable(map(_characters, words)):
        sticks = sticky and not word.word[:1].isspace()
        last = whole_words[-1:]
        if last and (sticks or not all(_key(part.word, language) for part in (*last, word))):
            pair = (whole_words.pop(), word)
            compared = [part.probability for part in pair if _key(part.word, language)]
            word = Word(
                word="".join(part.word for part in pair),
                start_s=pair[0].start_s,
                end_s=word.end_s,
                probability=min(compared, default=0.0),
            )
        whole_words.append(word)
    return [word for word in whole_words if _key(word.word, language)]


def _characters(word: Word) -> Iterator[Word]:
    step_s = (word.end_s - word.start_s) / max(1, len(word.word))
    for at, character in enumerate(word.word):
        yield Word(
            word=character,
            start_s=word.start_s + at * step_s,
            end_s=word.start_s + (at + 1) * step_s,
            probability=word.probability ** (1 / len(word.word)),  # their product is the word's
        )


@lru_cache(_WORDS_CACHED)
def _key(word: str, language: str | None) -> str:
    return normalized(word, language)
