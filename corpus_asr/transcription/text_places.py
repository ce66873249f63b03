"""Candidate words of a known text for a part, with approximate times, from its recognized words.

Recognized words that match the text are anchors (`anchors`) and determine the span of the text that
the part contains. Words between anchors are accepted or rejected by the audio (`known_text`,
`word_placer`).
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
from corpus_asr.transcription.anchors import Pair, find_pairs, folded
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
    """A word of the text that the part may contain, with approximate times in seconds."""

    index: int
    start_s: float
    end_s: float
    anchor: bool


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
        """Return the words of the text that the part may contain, with approximate times."""
        text_words = self._text.words
        pairs = find_pairs([word.word for word in said], text_words, place=self._known.place)
        anchors = [pair for pair in pairs if pair.is_anchor]
        if len(anchors) < _MIN_FOUND * min(len(said), len(text_words)):
            anchors = []
        if not anchors and not (self._known.is_first and self._known.is_last):
            return []
        begin_s, end_s = self._speech()
        first, last = -1, len(text_words)
        if not self._known.is_first:
            earlier = range(anchors[0].given - 1, -1, -1)
            first = anchors[0].given - 1 - self._fitting(earlier, said[: anchors[0].said])
        if not self._known.is_last:
            later = range(anchors[-1].given + 1, len(text_words))
            last = anchors[-1].given + 1 + self._fitting(later, said[anchors[-1].said + 1 :])
        edges = [Pair(-1, first, 0.0, True), *anchors, Pair(len(said), last, 0.0, True)]
        places: list[TextPosition] = []
        for start, end in pairwise(edges):
            start_s = said[start.said].end_s if start.said >= 0 else begin_s
            stop_s = said[end.said].start_s if end.said < len(said) else end_s
            between_words = said[start.said + 1 : end.said]
            between = self._between(start, end, pairs if anchors else [], between_words)
            places += self._spread(between, start_s, max(start_s, stop_s))
            if end.said < len(said):
                word = said[end.said]
                places.append(
                    TextPosition(
                        index=end.given, start_s=word.start_s, end_s=word.end_s, anchor=True
                    )
                )
        return places

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

    def _between(
        self, before: Pair, after: Pair, pairs: Sequence[Pair], said: Sequence[Word]
    ) -> list[list[int]]:
        """Return the text's words between two anchors, and those that resemble recognized words.

        The second list is used if the first does not fit the time. It is the only one if the
        recognized words are much longer than the first list.
        """
        every = list(range(before.given + 1, after.given))
        alike = [pair.given for pair in pairs if before.said < pair.said < after.said]
        alike = [index for index in alike if before.given < index < after.given]
        too_few = (
            self._letters(every) < _MIN_OF_SAID * sum(len(w.word) for w in said) - _FEW_LETTERS
        )
        return [alike] if too_few else [every, alike]

    def _letters(self, indices: Iterable[int]) -> int:
        return sum(len(folded(self._text.spelled[index][0])) + 1 for index in indices)

    def _spread(
        self, choices: Sequence[Sequence[int]], start_s: float, end_s: float
    ) -> Iterator[TextPosition]:
        for indices in choices:
            letters = [self._letters([index]) for index in indices]
            if sum(letters) <= MAX_LETTERS_PER_S * (end_s - start_s + _SLACK_S):
                break
        else:
            return
        for index, (first_s, last_s) in zip(
            indices, spread_evenly(letters, start_s, end_s), strict=True
        ):
            yield TextPosition(index=index, start_s=first_s, end_s=last_s, anchor=False)

    def transcript(
        self,
        recognized: PartTranscript,
        placed: Sequence[PlacedWord],
        *,
        said: int,
        language: Language,
        task: str,
    ) -> PartTranscript:
        """Return the part's segments with words of the text in place of `said` recognized words.

        Raises:
            AlignmentError: the part is the whole recording and contains hardly any of the text.
        """
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


def spread_evenly(
    lengths: Sequence[int], start_s: float, end_s: float
) -> Iterator[tuple[float, float]]:
    """Yield consecutive spans that fill the time, in proportion to `lengths`."""
    edges = np.cumsum([0, *lengths]) / max(1, sum(lengths)) * (end_s - start_s) + start_s
    yield from pairwise(edges.tolist())
