"""Two transcripts of a recording made one: of each phrase the likelier.

In: the segments of one channel by two runs, with their words. Out: the first run's segments with
the texts that were chosen, and segments of what only the second run has.

Words are aligned by edit distance, and the same word at another time is another word. Between words
that both runs have, each run has a phrase or nothing. A phrase is as probable as all of its words
together; one that the other run lacks has to be likelier than not.

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
from corpus_asr.report.accuracy.scoring import WITHOUT_BLANKS, aligned, normalized, units
from corpus_asr.segments import Segment, Word

_SAME_WORD_S = 2.0  # word times of two models differ by some tenths; repeats are further away
# Phrases that such a silence separates are no alternatives to each other.
_SILENCE_S = 1.0
# Words further from all segments of the first run are a segment of their own.
_NEAR_S = 1.0
_ABSENT = 0.5  # probability of what a run does not have
_ROUNDING = 1e-6  # of confidences, which tables hold in 32 bits
_NOWHERE = -1  # number of no segment
_WORDS_CACHED = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A segment with the text that was chosen."""

    segment: Segment
    own: str | None
    """Text of the first run; None where only the second has a segment."""
    from_other: float | None
    """Share of its words that are the second run's; None where nothing was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A word as it is compared."""

    key: str
    word: Word
    """With words next to it that are not compared, such as signs for music."""
    segment: Segment
    ours: bool
    confidence: float
    at: int = _NOWHERE
    """Number of the first run's segment that it is in or near."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A word that both runs have, or what each has between two of them."""

    own: Sequence[Token]
    other: Sequence[Token]


def chosen(
    segments: Sequence[Segment], others: Sequence[Segment], select: Select, language: str | None
) -> list[Choice]:
    """Return the segments of a channel, sorted by time, with the texts of the likelier run.

    Segments that a person corrected stay; of those in different languages the likelier is chosen.

    Args:
        segments: of the first run.
        others: of the second run.
        select: `fuse` chooses phrases by their words' confidence.
        language: that of the recording, in which words are compared.
    """
    if select == "own":
        return [Choice(segment=each, own=each.text, from_other=None) for each in segments]
    said: set[int] = set()
    theirs: defaultdict[int, list[Token]] = defaultdict(list)
    likelier: defaultdict[int, list[Token]] = defaultdict(list)
    for phrase in phrases(segments, others, language):
        said.update(token.at for token in phrase.own)
        for token in phrase.other:
            theirs[token.at].append(token)
        for token in _likelier(phrase, language):
            likelier[token.at].append(token)
    choices = []
    for at, segment in enumerate(segments):
        whole = any(
            # Models that do not detect languages may name none.
            None not in (token.segment.language, segment.language)
            and token.segment.language != segment.language
            for token in theirs[at]
        )
        tokens = theirs[at] if whole else likelier[at]
        if whole:
            changes = _confidence(tokens) > segment.confidence + _ROUNDING
        else:
            changes = bool(tokens) or at in said
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
    """Return the words of the likelier run, each with its confidence now that both are known."""
    own, other = phrase.own, phrase.other
    if _plain(own, language) == _plain(other, language):
        # Words that both runs have are at least as probable as those of the more confident run.
        least = _confidence(other)
        return [replace(each, confidence=max(each.confidence, least)) for each in own]
    first, second = _probability(own), _probability(other)
    share = max(first, second) / max(first + second, 1e-9)
    return [replace(each, confidence=share) for each in (other if second > first else own)]


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
    """Return a segment with the text of tokens, and the worst scores of where they are from."""
    if not tokens:
        empty = replace(segment, text="", words=(), tokens=())
        return Choice(segment=empty, own=own, from_other=0.0)
    sources = [*{id(token.segment): token.segment for token in tokens}.values()]
    named = next((each for each in sources if each.language), segment)
    silences = [each.no_speech_prob for each in sources if each.no_speech_prob is not None]
    said = replace(
        segment,
        # Words of the second run may reach a little further.
        start_s=min(segment.start_s, tokens[0].word.start_s),
        end_s=max(segment.end_s, tokens[-1].word.end_s),
        text=text_of(tokens, language),
        language=named.language,
        language_probability=named.language_probability,
        words=tuple(token.word for token in tokens),
        tokens=(),
        confidence=_confidence(tokens),
        avg_logprob=min(each.avg_logprob for each in sources),
        no_speech_prob=max(silences, default=None),
        compression_ratio=max(each.compression_ratio for each in sources),
        temperature=max(each.temperature for each in sources),
        known_hallucination=all(each.known_hallucination for each in sources),
    )
    theirs = sum(not token.ours for token in tokens)
    return Choice(segment=said, own=own, from_other=theirs / len(tokens))


def text_of(tokens: Sequence[Token], language: str | None) -> str:
    """Return words as they are written."""
    parts = [token.word.word for token in tokens[:1]]
    for before, token in pairwise(tokens):
        word = token.word.word
        # Of one run, words that stick together are meant to.
        apart = before.ours == token.ours or language in WITHOUT_BLANKS or word[:1].isspace()
        parts.append(word if apart else f" {word}")
    return "".join(parts)


def phrases(
    segments: Sequence[Segment], others: Sequence[Segment], language: str | None
) -> Iterator[Phrase]:
    """Yield what both runs have in order, each word with its place among `segments`."""
    ours = _tokens(segments, language, ours=True)
    passed = 0
    for own, other in _aligned(ours, _tokens(others, language, ours=False)):
        # What only the second run has is between the words before and after it, if near enough.
        around = own or ours[max(0, passed - 1) : passed + 1]
        first = around[0].at if own or passed else 0
        passed += len(own)
        last = around[-1].at if own or passed < len(ours) else len(segments) - 1
        near_s = math.inf if own else _NEAR_S
        place = partial(_place, segments, range(first, last + 1), near_s=near_s)
        yield Phrase(own, [replace(each, at=place(each.word)) for each in other])


def _place(segments: Sequence[Segment], places: range, word: Word, *, near_s: float) -> int:
    """Return which of some segments is nearest to a word, if it is near."""
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
    """Yield the words that both have, and what each has between them."""
    start = other_start = 0
    for own, other in (*_pairs(ours, theirs), (len(ours), len(theirs))):
        yield from _without_silence([*ours[start:own], *theirs[other_start:other]])
        start, other_start = own + 1, other + 1
        if own < len(ours):
            yield ours[own:start], theirs[other:other_start]


def _pairs(ours: Sequence[Token], theirs: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of equal words that are said at about the same time."""
    if not ours or not theirs:
        return
    for chunk in aligned(*([each.key for each in side] for side in (ours, theirs))).alignments[0]:
        if chunk.type != "equal":
            continue
        for own in range(chunk.ref_start_idx, chunk.ref_end_idx):
            other = own - chunk.ref_start_idx + chunk.hyp_start_idx
            if abs(ours[own].word.start_s - theirs[other].word.start_s) <= _SAME_WORD_S:
                yield own, other


def _without_silence(
    tokens: list[Token],
) -> Iterator[tuple[Sequence[Token], Sequence[Token]]]:
    """Yield what each run has in each span that no silence divides."""
    tokens.sort(key=lambda token: token.word.start_s)
    start, ends_s = 0, list(accumulate((token.word.end_s for token in tokens), max))
    for at in range(1, len(tokens) + 1):
        if at == len(tokens) or tokens[at].word.start_s > ends_s[at - 1] + _SILENCE_S:
            span = tokens[start:at]
            yield [each for each in span if each.ours], [each for each in span if not each.ours]
            start = at


def _tokens(segments: Sequence[Segment], language: str | None, *, ours: bool) -> list[Token]:
    found: list[Token] = []
    for at, segment in enumerate(segments):
        for word in _whole_words(segment.words or (), language):
            key = _key(word.word, language)
            found.append(
                Token(
                    key=key,
                    word=word,
                    segment=segment,
                    ours=ours,
                    confidence=segment.confidence,
                    at=at if ours else _NOWHERE,
                )
            )
    return found


def _whole_words(words: Sequence[Word], language: str | None) -> list[Word]:
    """Join words that no blank separates, as `£81` and `,791`, and signs that are not compared.

    In scripts without blanks each character is a word.
    """
    sticky = language not in WITHOUT_BLANKS
    found: list[Word] = []
    for word in words if sticky else chain.from_iterable(map(_characters, words)):
        sticks = sticky and not word.word[:1].isspace()
        last = found[-1:]
        if last and (sticks or not all(_key(each.word, language) for each in (*last, word))):
            pair = (found.pop(), word)
            compared = [each.probability for each in pair if _key(each.word, language)]
            word = Word(
                word="".join(each.word for each in pair),
                start_s=pair[0].start_s,
                end_s=word.end_s,
                probability=min(compared, default=0.0),
            )
        found.append(word)
    return [word for word in found if _key(word.word, language)]


def _characters(word: Word) -> Iterator[Word]:
    step_s = (word.end_s - word.start_s) / max(1, len(word.word))
    for at, character in enumerate(word.word):
        yield Word(
            word=character,
            start_s=word.start_s + at * step_s,
            end_s=word.start_s + (at + 1) * step_s,
            probability=word.probability ** (1 / len(word.word)),  # whose product is the word's
        )


@lru_cache(_WORDS_CACHED)
def _key(word: str, language: str | None) -> str:
    return normalized(word, language)
