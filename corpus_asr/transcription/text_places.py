"""Candidate words of a known text for a part, with approximate times, from its recognized words.

Recognized words that match the text are anchors (`anchors`) and determine the span of the text that
the part contains. Words between anchors are accepted or rejected by the audio (`known_text`,
`word_placer`).
"""

import re
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.errors import AlignmentError
from corpus_asr.segments import PartTranscript, PlacedText, Segment, Word
from corpus_asr.text.words import (
    AFTER_A_WORD,
    NOTHING,
    Spelled,
    ends_sentence,
    joined,
    split_characters,
)
from corpus_asr.transcription.anchors import SAME, Pair, find_pairs, folded
from corpus_asr.transcription.joined_text import text_not_found
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import KnownText, Language, PartRequest
from corpus_asr.transcription.words import sentences
from corpus_asr.units import FRAMES_PER_SECOND, counted

MAX_LETTERS_PER_S = 30.0
"""Maximum speaking rate: words that would exceed it are not all spoken. Fast speech is 25."""
_USUAL_LETTERS_PER_S = 18.0
# Recognized word times are accurate to a few tenths of a second.
_SLACK_S = 0.5
# Words of the text that replace other recognized words need at least this fraction of the
# recognized characters, within a tolerance of about one word.
_MIN_OF_SAID, _FEW_LETTERS = 0.5, 10
# An equal word further from an anchor than this is another one, such as a later "the".
_NEAR_WORDS = 5
# Words of the text further apart have silence between them, or speech outside the text.
_HOLE_S = 2.0
# Shortest pause that counts between words that are not anchors; it ranks as zero between anchors.
_UNSURE_PAUSE_S = 1.0
# Minimum fraction of matched words; common words of an unrelated text match less.
_MIN_FOUND = 0.1


def words_of(text: str) -> list[str]:
    """Split a text at spaces, or into characters in scripts without; joined, they are the text.

    Standalone punctuation is attached to the word before it, opening marks to the word after it.
    """
    pieces = (
        (piece, NOTHING)
        for chunk in re.findall(r"\s*\S+", text.rstrip())
        for piece in (re.findall(r"\s*\S", chunk) if _has_no_blanks(chunk) else [chunk])
    )
    return [written for written, _ in _with_marks(pieces)]


@dataclass(frozen=True, slots=True)
class TextWords:
    """A text as words that each have a letter or digit, with their tokens."""

    words: tuple[str, ...]
    """Words with their spaces and punctuation; joined, they are the text."""
    spelled: tuple[Spelled, ...]
    """Words as they are tokenized: without quotation marks, brackets, dashes and standalone
    symbols, which are not spoken and would take time from neighboring words."""
    has_blanks: bool
    """Whether spaces separate words; false if any of the text is in a script without spaces."""

    @classmethod
    def of(cls, known: KnownText, prompt_format: PromptFormat) -> "TextWords":
        """Split a text at spaces, or by the characters that tokens spell in scripts without spaces.

        Raises:
            AlignmentError: the text has no letter or digit, or contains control tokens.
        """
        pieces: list[tuple[str, Spelled]] = []
        spelled: dict[str, list[tuple[str, Spelled]]] = {}
        for chunk in known.text.split():
            if chunk not in spelled:
                try:
                    spelled[chunk] = list(_pieces(chunk, prompt_format))
                except ValueError as error:
                    raise AlignmentError(
                        f"aligning the text of {known.name}: {error}", kind="no_text"
                    ) from error
            pieces += spelled[chunk]
        return cls._of_words(_with_marks(pieces), known)

    @classmethod
    def without_tokens(cls, known: KnownText) -> "TextWords":
        """Split a text as `words_of` does, for a model that does not share this tokenizer.

        Raises:
            AlignmentError: the text has no letter or digit.
        """
        words = words_of("".join(f" {chunk}" for chunk in known.text.split()))
        return cls._of_words([(word, (word, ())) for word in words], known)

    @classmethod
    def _of_words(cls, words: Sequence[tuple[str, Spelled]], known: KnownText) -> "TextWords":
        if not any(map(str.isalnum, "".join(written for written, _ in words))):
            raise AlignmentError(
                f"aligning the text of {known.name}: found {known.text.strip()[:60]!r}, expected "
                "words with letters or digits; correct the text",
                kind="no_text",
            )
        written, spelled = zip(*words, strict=True)
        return cls(written, spelled, not _has_no_blanks(known.text))


def _pieces(chunk: str, prompt_format: PromptFormat) -> Iterator[tuple[str, Spelled]]:
    """Yield text pieces as written, each with its spoken form and tokens."""
    tokens = prompt_format.encode(chunk)
    if _has_no_blanks(chunk):
        for piece in split_characters(tokens, prompt_format.text):
            # Without spaces, each punctuation mark is a piece of its own; it is tokenized.
            text = piece[0].strip()
            is_read = not text or (_said(text) and (_has_letters(text) or text in AFTER_A_WORD))
            yield piece[0], piece if is_read else NOTHING
    elif (spoken := _said(chunk)) and _has_letters(spoken):
        yield f" {chunk}", (f" {spoken}", prompt_format.encode(spoken))
    else:
        yield f" {chunk}", NOTHING


def _said(chunk: str) -> str:
    """Return the chunk without quotation marks, brackets and dashes, except within words."""
    return "".join(
        sign
        for at, sign in enumerate(chunk)
        if not (sign in "\"'" or unicodedata.category(sign) in _UNSAID)
        or (
            (sign in "'\u2019" or unicodedata.category(sign) == "Pd")
            and _has_letters(chunk[:at][-1:])
            and _has_letters(chunk[at + 1 :][:1])
        )
    )


_UNSAID = frozenset({"Ps", "Pe", "Pi", "Pf", "Pd"})


def _has_letters(text: str) -> bool:
    return any(map(str.isalnum, text))


def _with_marks(pieces: Iterable[tuple[str, Spelled]]) -> list[tuple[str, Spelled]]:
    """Join pieces so that each has a letter or digit, if any piece has one."""
    words: list[tuple[str, Spelled]] = []
    quotes: list[str] = []  # open ones
    opening, opening_read = "", NOTHING
    for written, read in pieces:
        text = written.strip()
        opens = _opens(text, quotes) or not text
        if _has_letters(text):
            words.append((opening + written, joined(opening_read, read)))
            opening, opening_read = "", NOTHING
        elif not words or opening or opens or _begins_speech(text, words[-1][0]):
            opening, opening_read = opening + written, joined(opening_read, read)
        else:
            previous, read_before = words[-1]
            words[-1] = previous + written, joined(read_before, read)
    if words:
        words[-1] = words[-1][0] + opening, words[-1][1]
    return words or ([(opening, NOTHING)] if opening else [])


def _begins_speech(sign: str, before: str) -> bool:
    # A dash, as in dialogue.
    return unicodedata.category(sign[0]) == "Pd" and ends_sentence(before)


# Quotation marks that close another one; one without an open counterpart opens.
_CLOSING = {
    "\u201e": "\u201c\u201d", "\u201a": "\u2018\u2019", "\u201c": "\u201d", "\u2018": "\u2019",
    "\u201d": "\u201d", "\xab": "\xbb", "\xbb": "\xab\xbb", "\u2039": "\u203a",
    "\u203a": "\u2039\u203a", '"': '"', "\uff02": "\uff02",
}  # fmt: skip


def _opens(text: str, quotes: list[str]) -> bool:
    """Whether symbols belong to the word after them, given the open `quotes`."""
    opens = False
    for sign in text:
        if quotes and sign in _CLOSING[quotes[-1]]:
            quotes.pop()
        elif sign in _CLOSING:
            quotes.append(sign)
            opens = True
        elif unicodedata.category(sign) in ("Ps", "Pi") or sign in "\xbf\xa1":
            opens = True
    return opens


# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana and Chinese characters.
_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def _has_no_blanks(text: str) -> bool:
    return any(first <= ord(letter) <= last for letter in text for first, last in _RANGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPosition:
    """A word that the part may contain, with approximate times in seconds.

    Recognized words outside the text are among them: they are read along, so that the words next
    to them do not take their time, and then dropped.
    """

    index: int | None
    """Its index in the text; None for a recognized word that matches no word of the text."""
    word: str
    start_s: float
    end_s: float
    anchor: bool
    """Whether it is certainly spoken at this point."""
    rivals: frozenset[int] = frozenset()
    """Of a recognized word: words of the text that may be what is spoken in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWord:
    """A word of the text that the part contains."""

    index: int
    word: Word
    logprobs: tuple[float, ...]


class TextPlaces:
    """Finds candidate words of a known text in a part; builds segments of those accepted."""

    def __init__(self, part: PartRequest, known: KnownText, words: TextWords) -> None:
        self._part = part
        self._known = known
        self._text = words

    def find(self, said: Sequence[Word]) -> list[TextPosition]:
        """Return what the part may contain in order: words of the text, other recognized words."""
        text_words = self._text.words
        said = [word for word in said if _has_letters(word.word)]
        pairs = find_pairs([word.word for word in said], text_words, place=self._known.place)
        anchors = [pair for pair in pairs if pair.is_anchor]
        if len(anchors) < _MIN_FOUND * min(len(said), len(text_words)):
            anchors, pairs = [], []
        if not anchors and not (self._known.is_first and self._known.is_last):
            return [_other(word, ()) for word in said]
        first, last = -1, len(text_words)
        if not self._known.is_first:
            earlier = range(anchors[0].given - 1, -1, -1)
            first = anchors[0].given - 1 - self._fitting(earlier, said[: anchors[0].said])
        if not self._known.is_last:
            later = range(anchors[-1].given + 1, len(text_words))
            last = anchors[-1].given + 1 + self._fitting(later, said[anchors[-1].said + 1 :])
        edges = [Pair(-1, first, 0.0, True), *anchors, Pair(len(said), last, 0.0, True)]
        positions: list[TextPosition] = []
        for start, end in pairwise(edges):
            positions += self._in_gap(start, end, pairs, said)
            if end.said < len(said):
                positions.append(self._position(end.given, _span(said[end.said]), anchor=True))
        return positions

    def _in_gap(
        self, start: Pair, end: Pair, pairs: Sequence[Pair], said: Sequence[Word]
    ) -> Iterator[TextPosition]:
        """Yield the words between two anchors, those of the text where similar ones are said."""
        begin_s, end_s = self._speech()
        alike = [
            pair
            for pair in pairs
            if start.said < pair.said < end.said and start.given < pair.given < end.given
        ]
        # Before the first anchor and after the last one, the recording may go on without the text:
        # only recognized words next to the anchor may be others of the text.
        same = [pair.said for pair in alike if pair.similarity > SAME]
        num_letters = self._letters(range(start.given + 1, end.given))
        low, high = start.said + 1, end.said
        if low and high == len(said):
            high = low + _num_covered(said[low:], num_letters)
            high = max([high, *(at + 1 for at in same if at <= high + _NEAR_WORDS)])
        elif not low and high < len(said):
            low = high - _num_covered(said[low:high][::-1], num_letters)
            low = min([low, *(at for at in same if at >= low - _NEAR_WORDS)])
        alike = [pair for pair in alike if low <= pair.said < high]
        start_s = said[low - 1].end_s if low else begin_s
        stop_s = said[high].start_s if high < len(said) else end_s
        indices = self._fitting_words(start, end, alike, said[low:high], stop_s - start_s)
        yield from (_other(word, ()) for word in said[start.said + 1 : low])
        fixed = [pair for pair in alike if pair.given in indices]
        before, from_s = Pair(low - 1, start.given, 0.0, True), start_s
        for after in (*fixed, Pair(high, end.given, 0.0, True)):
            until_s = said[after.said].start_s if after in fixed else stop_s
            between = [index for index in indices if before.given < index < after.given]
            others = [_other(word, between) for word in said[before.said + 1 : after.said]]
            spread = self._spread(between, from_s, max(from_s, until_s))
            yield from sorted([*others, *spread], key=lambda position: position.start_s)
            if after in fixed:
                word = said[after.said]
                yield _other(word, [after.given])
                yield self._position(after.given, _span(word), anchor=False)
                from_s = word.end_s
            before = after
        yield from (_other(word, ()) for word in said[high : end.said])

    def _fitting(self, indices: Iterable[int], said: Sequence[Word]) -> int:
        """Count words of the text that unmatched words at a part boundary may correspond to."""
        # As many as a usual speaking rate allows: the rest belongs to the adjacent part.
        num_letters = _USUAL_LETTERS_PER_S * (said[-1].end_s - said[0].start_s) if said else 0.0
        count = 0
        for index in indices:
            num_letters -= self._letters([index])
            if num_letters < 0:
                break
            count += 1
        return count

    def _speech(self) -> tuple[float, float]:
        spans = self._part.speech
        begin_s, end_s = self.bounds()
        if not spans:
            return begin_s, end_s
        return max(begin_s, spans[0].start_s), min(end_s, spans[-1].end_s)

    def bounds(self) -> tuple[float, float]:
        """Return the span of the part that the text covers, in seconds."""
        first_s, last_s = self._known.clip
        return max(self._part.start_s, first_s), min(self._part.end_s, last_s)

    def _fitting_words(
        self, start: Pair, end: Pair, alike: Sequence[Pair], said: Sequence[Word], time_s: float
    ) -> list[int]:
        """Return the text's words between two anchors, or those that resemble recognized words.

        The second list is used if the first does not fit the time, or is much shorter than the
        recognized words.
        """
        every = list(range(start.given + 1, end.given))
        resembling = [pair.given for pair in alike]
        num_said = sum(len(word.word) for word in said)
        too_few = self._letters(every) < _MIN_OF_SAID * num_said - _FEW_LETTERS
        for indices in [resembling] if too_few else [every, resembling]:
            if self._letters(indices) <= MAX_LETTERS_PER_S * (max(0.0, time_s) + _SLACK_S):
                return indices
        return []

    def _letters(self, indices: Iterable[int]) -> int:
        return sum(len(folded(self._text.spelled[index][0])) + 1 for index in indices)

    def _spread(
        self, indices: Sequence[int], start_s: float, end_s: float
    ) -> Iterator[TextPosition]:
        letters = [self._letters([index]) for index in indices]
        for index, span in zip(indices, spread_evenly(letters, start_s, end_s), strict=True):
            yield self._position(index, span, anchor=False)

    def _position(self, index: int, span: tuple[float, float], *, anchor: bool) -> TextPosition:
        start_s, end_s = span
        return TextPosition(
            index=index, word=self._text.words[index], start_s=start_s, end_s=end_s, anchor=anchor
        )

    def transcript(
        self,
        recognized: PartTranscript,
        positions: Sequence[TextPosition],
        placed: Sequence[PlacedWord],
        language: Language,
        task: str,
    ) -> PartTranscript:
        """Return the part's segments with words of the text in place of the recognized words.

        Raises:
            AlignmentError: the part is the whole recording and contains hardly any of the text.
        """
        said = sum(position.index is None or position.anchor for position in positions)
        if self._known.is_first and self._known.is_last:
            # A fraction of the text, or of the recognized words if these are fewer: a recording may
            # contain a small excerpt of its text.
            num_words = len(self._text.spelled)
            if not placed or len(placed) < _MIN_FOUND * min(num_words, said):
                instead = f"{counted(said, 'word')} recognized in it"
                raise text_not_found(self._known.name, len(placed), num_words, instead)
        groups = [placed[sentence] for sentence in sentences([word.word for word in placed])]
        return replace(
            recognized,
            segments=tuple(self._segment(group, language, task) for group in groups),
            placed=PlacedText(
                words=self._text.words,
                indices=tuple(tuple(word.index for word in group) for group in groups),
                extra_words=len(words_to_read(positions, (), {word.index for word in placed})),
            ),
        )

    def _segment(self, group: Sequence[PlacedWord], language: Language, task: str) -> Segment:
        text = "".join(placed_word.word.word for placed_word in group)
        logprobs = [value for placed_word in group for value in placed_word.logprobs]
        start_s, end_s = group[0].word.start_s, group[-1].word.end_s
        end_s = max(end_s, start_s + 1 / FRAMES_PER_SECOND)
        data = text.strip().encode()
        mean = mean_logprob_of(logprobs) or 0.0
        return with_confidence(
            Segment(
                start_s=start_s,
                end_s=end_s,
                text=text,
                tokens=tuple(
                    t for placed_word in group for t in self._text.spelled[placed_word.index][1]
                ),
                language=language.code,
                language_probability=language.probability,
                task=task,
                confidence=0.0,
                avg_logprob=mean,
                text_logprob=mean,
                no_speech_prob=None,
                compression_ratio=len(data) / len(zlib.compress(data)),
                temperature=0.0,
                speech_fraction=self._part.speech_fraction(start_s, end_s),
                words=tuple(placed_word.word for placed_word in group),
            )
        )


def stretches(positions: Sequence[TextPosition]) -> Iterator[list[TextPosition]]:
    """Yield positions without a hole between words of the text.

    Recognized words outside the text are kept next to words of the text alone.
    """
    in_text = [at for at, position in enumerate(positions) if position.index is not None]
    holes = [
        number
        for number, (at, next_at) in enumerate(pairwise(in_text), start=1)
        if sure_pause_s(positions[at], positions[next_at]) > _HOLE_S
    ]
    for first, stop in pairwise([0, *holes, len(in_text)] if in_text else []):
        begin_s = positions[in_text[first]].start_s - _HOLE_S / 2
        end_s = positions[in_text[stop - 1]].end_s + _HOLE_S / 2
        low = in_text[first - 1] + 1 if first else 0
        high = in_text[stop] if stop < len(in_text) else len(positions)
        yield [
            position
            for position in positions[low:high]
            if position.index is not None
            or (begin_s <= position.start_s and position.end_s <= end_s)
        ]


def sure_pause_s(before: TextPosition, after: TextPosition) -> float:
    """Return the time between two positions, less what it may be off."""
    pause_s = after.start_s - before.end_s
    return pause_s if before.anchor and after.anchor else pause_s - _UNSURE_PAUSE_S


def words_to_read(
    positions: Iterable[TextPosition], chosen: Collection[int], possible: Collection[int]
) -> list[TextPosition]:
    """Return the chosen words of the text, and the recognized words that are read along.

    These are all but those where `possible` words of the text may be what is spoken.
    """
    return [
        position
        for position in positions
        if position.index in chosen
        or (position.index is None and position.rivals.isdisjoint(possible))
    ]


def _other(word: Word, rivals: Iterable[int]) -> TextPosition:
    """Return the position of a recognized word that is outside the text, or is one of `rivals`."""
    possible = frozenset(rivals)
    return TextPosition(
        index=None, word=word.word, start_s=word.start_s, end_s=word.end_s, anchor=not possible,
        rivals=possible,
    )  # fmt: skip


def _span(word: Word) -> tuple[float, float]:
    return word.start_s, word.end_s


def _num_covered(said: Sequence[Word], num_letters: int) -> int:
    """Count the first recognized words that this many letters of the text can be."""
    letters_before = accumulate((len(word.word) for word in said), initial=0)
    return sum(letters < num_letters for letters, _ in zip(letters_before, said, strict=False))


def spread_evenly(
    lengths: Sequence[int], start_s: float, end_s: float
) -> Iterator[tuple[float, float]]:
    """Yield consecutive spans that fill the time, in proportion to `lengths`."""
    edges = np.cumsum([0, *lengths]) / max(1, sum(lengths)) * (end_s - start_s) + start_s
    yield from pairwise(edges.tolist())
