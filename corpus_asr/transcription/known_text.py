"""Where the words of a known text are said in a part: its seams, its windows, what is not said.

The part is recognized first, as any other, with word times. Recognized words that are the text's
are anchors (`anchors`): they tell which span of the text the part says, and where that can be cut
into windows. In each window the model then reads the given words in place of its own, and its
cross-attention times them, as it times recognized ones (`words`). Words between anchors that were
not recognized are kept only where the audio bears them out: reading them must not cost more than
passing over them.
"""

import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np

from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import AlignJob, AlignResult
from corpus_asr.decoding.tasks import Gather, Steps
from corpus_asr.errors import AlignmentError
from corpus_asr.segments import Segment, Word
from corpus_asr.text.words import (
    BEFORE_A_WORD,
    NOTHING,
    Spelled,
    joined,
    split_characters,
)
from corpus_asr.transcription.anchors import Pair, find_pairs, folded
from corpus_asr.transcription.engine import PartTranscript, PlacedText
from corpus_asr.transcription.joined_text import text_not_found
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import (
    KnownText,
    Language,
    PartRequest,
    Window,
    frames_to_encode,
)
from corpus_asr.transcription.words import (
    AlignmentSpec,
    DraftSegment,
    sentences,
    time_words,
)
from corpus_asr.units import FRAMES_PER_SECOND, TIMESTAMP_STEP_S, WINDOW_S, counted

# Nobody speaks faster for long: what would have to be is not all said. Fast speech is 25 letters/s.
_MAX_LETTERS_PER_S = 30.0
_USUAL_LETTERS_PER_S = 18.0
# Times of recognized words are off by a few tenths of a second.
_SLACK_S = 0.5
# Where words of the text stand for others that were recognized, they have at least so many of their
# letters, give or take a word.
_MIN_OF_SAID, _FEW_LETTERS = 0.5, 10
# Audio before the first word of a window and after its last one, where there is silence.
_MARGIN_S = 0.5
# A window ends at the longest pause in its last third: later than this part of it.
_EARLIEST_CUT = 0.6
# A pause of so many seconds between words that are no anchors counts as none between two anchors.
_UNSURE_CUT_S = 1.0
# What lies between words further apart is silence or other words: no window reaches over it.
_HOLE_S = 2.0
# Reading words that were not recognized may cost this much log-probability, in all. On LJ Speech
# one that is not said costs whisper-tiny.en 14 to 27 and two and more 21 and more; of 43 runs of
# words that are said, though not recognized, 40 cost less than 9. Words that were not found are
# tried again, by a stricter measure, once others beside them are.
_MAX_LOSSES = (10.0, 4.0, 4.0)
# Where nothing was recognized rightly, the text may cost this much more than what was, per token.
_MAX_LOSS_PER_TOKEN = 1.5
# What a few common words find of an unrelated text is less.
_MIN_FOUND = 0.1


@dataclass(frozen=True, slots=True)
class TextWords:
    """A text in words that can be found one by one: each has a letter or digit, and its tokens."""

    spelled: tuple[Spelled, ...]
    has_blanks: bool
    """Between its words; false if any of it is of a script without."""

    @property
    def words(self) -> tuple[str, ...]:
        """With their blanks and marks; joined, they are the text."""
        return tuple(text for text, _ in self.spelled)

    @classmethod
    def of(cls, known: KnownText, prompt_format: PromptFormat) -> "TextWords":
        """Split a text at blanks; where a script has none, by the characters that tokens spell.

        Marks that stand alone belong to the word before them, opening ones to that after.

        Raises:
            AlignmentError: it has no letter or digit, or control tokens in it.
        """
        pieces: list[Spelled] = []
        spelled: dict[str, list[Spelled]] = {}
        for chunk in known.text.split():
            if chunk not in spelled:
                try:
                    spelled[chunk] = list(_pieces(chunk, prompt_format))
                except ValueError as error:
                    raise AlignmentError(
                        f"aligning the text of {known.name}: {error}", kind="no_text"
                    ) from error
            pieces += spelled[chunk]
        words: list[Spelled] = []
        opening = NOTHING
        for piece in pieces:
            if any(letter.isalnum() for letter in piece[0]):
                words.append(joined(opening, piece))
                opening = NOTHING
            elif not words or opening[0] or piece[0].strip() in BEFORE_A_WORD:
                opening = joined(opening, piece)
            else:
                words[-1] = joined(words[-1], piece)
        if not words:
            raise AlignmentError(
                f"aligning the text of {known.name}: found {known.text.strip()[:60]!r}, expected "
                "words with letters or digits; give what is said in the recording",
                kind="no_text",
            )
        words[-1] = joined(words[-1], opening)
        return cls(tuple(words), not any(map(_without_blanks, known.text)))


def _pieces(chunk: str, prompt_format: PromptFormat) -> Iterator[Spelled]:
    tokens = prompt_format.encode(chunk)
    if any(_without_blanks(letter) for letter in chunk):
        yield from split_characters(tokens, prompt_format.text)
    else:
        yield f" {chunk}", tokens


# Scripts written without blanks: Thai and Lao, Burmese, Khmer, kana and Chinese characters.
_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)  # fmt: skip


def _without_blanks(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _RANGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A word of the text that may be said, and about when."""

    index: int
    start_s: float
    end_s: float
    anchor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A word of the text that is said."""

    index: int
    word: Word
    logprobs: tuple[float, ...]


class KnownTextAligner:
    """Places a known text in a part that was recognized."""

    def __init__(
        self,
        part: PartRequest,
        known: KnownText,
        words: TextWords,
        settings: DecodingSettings,
        prompt_format: PromptFormat,
    ) -> None:
        self._part = part
        self._known = known
        self._text = words
        self._settings = settings
        self._prompt_format = prompt_format

    def run(self, recognized: PartTranscript) -> Steps[PartTranscript]:
        """Give the part's segments with the words of the text, and which words they are.

        Raises:
            AlignmentError: the part is the whole recording and says next to nothing of the text.
        """
        # Nothing was recognized, and no language given: some language must be named.
        code = recognized.language or next(iter(self._prompt_format.languages), None)
        language = Language(code=code, probability=recognized.language_probability)
        recognized_words = [word for one in recognized.segments for word in one.words or ()]
        windows = list(self._windows(self._places(recognized_words), language))
        before_s = [self._part.start_s, *(window[-1].end_s for window in windows)]
        placed: list[list[_Placed]] = yield Gather(
            self._align(
                self._edges(windows, number, recognized_words),
                window,
                language,
                before_s[number],
                recognized_words,
            )
            for number, window in enumerate(windows)
        )
        words = [word for some in placed for word in some]
        if self._known.is_first and self._known.is_last:
            # The share is that of the text, or of what is said where that is less: a recording
            # may be a small excerpt of its text.
            given, said = len(self._text.spelled), len(recognized_words)
            if not words or len(words) < _MIN_FOUND * min(given, said):
                instead = f"{counted(said, 'word')} recognized in it"
                raise text_not_found(self._known.name, len(words), given, instead)
        groups = [words[some] for some in sentences([each.word for each in words])]
        return replace(
            recognized,
            segments=tuple(self._segment(group, language) for group in groups),
            placed=PlacedText(
                words=self._text.words,
                indices=tuple(tuple(word.index for word in group) for group in groups),
            ),
        )

    def _places(self, said: Sequence[Word]) -> list[_Place]:
        """Find which words of the text may be said in the part, and about when."""
        given = self._text.words
        pairs = find_pairs([word.word for word in said], given, place=self._known.place)
        anchors = [pair for pair in pairs if pair.is_anchor]
        if len(anchors) < _MIN_FOUND * min(len(said), len(given)):
            anchors = []
        if not anchors and not (self._known.is_first and self._known.is_last):
            return []
        begin_s, end_s = self._speech()
        first, last = -1, len(given)
        if not self._known.is_first:
            earlier = range(anchors[0].given - 1, -1, -1)
            first = anchors[0].given - 1 - self._fitting(earlier, said[: anchors[0].said])
        if not self._known.is_last:
            later = range(anchors[-1].given + 1, len(given))
            last = anchors[-1].given + 1 + self._fitting(later, said[anchors[-1].said + 1 :])
        edges = [Pair(-1, first, 0.0, True), *anchors, Pair(len(said), last, 0.0, True)]
        places: list[_Place] = []
        for before, after in pairwise(edges):
            start_s = said[before.said].end_s if before.said >= 0 else begin_s
            stop_s = said[after.said].start_s if after.said < len(said) else end_s
            other = said[before.said + 1 : after.said]
            between = self._between(before, after, pairs if anchors else [], other)
            places += self._spread(between, start_s, max(start_s, stop_s))
            if after.said < len(said):
                word = said[after.said]
                places.append(
                    _Place(index=after.given, start_s=word.start_s, end_s=word.end_s, anchor=True)
                )
        return places

    def _fitting(self, indices: Iterable[int], said: Sequence[Word]) -> int:
        """Count words of the text that other recognized words at a seam may stand for."""
        # As many as are usual in that time: the rest belongs to the part beyond the seam.
        left = _USUAL_LETTERS_PER_S * (said[-1].end_s - said[0].start_s) if said else 0.0
        count = 0
        for index in indices:
            left -= self._letters([index])
            if left < 0:
                break
            count += 1
        return count

    def _speech(self) -> tuple[float, float]:
        spans = self._part.speech
        begin_s, end_s = self._bounds()
        if not spans:
            return begin_s, end_s
        return max(begin_s, spans[0].start_s), min(end_s, spans[-1].end_s)

    def _bounds(self) -> tuple[float, float]:
        # Of the audio that the text is of.
        first_s, last_s = self._known.clip
        return max(self._part.start_s, first_s), min(self._part.end_s, last_s)

    def _between(
        self, before: Pair, after: Pair, pairs: Sequence[Pair], said: Sequence[Word]
    ) -> list[list[int]]:
        """The words of the text between two anchors; and those of them that resemble what is said.

        The second are for where the time does not suffice for the first, and alone where so much
        more is said that the first cannot be all of it.
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
    ) -> Iterator[_Place]:
        for indices in choices:
            letters = [self._letters([index]) for index in indices]
            if sum(letters) <= _MAX_LETTERS_PER_S * (end_s - start_s + _SLACK_S):
                break
        else:
            return
        edges = np.cumsum([0, *letters]) / max(1, sum(letters)) * (end_s - start_s) + start_s
        for index, (first, last) in zip(indices, pairwise(edges.tolist()), strict=True):
            yield _Place(index=index, start_s=first, end_s=last, anchor=False)

    def _windows(self, places: Sequence[_Place], language: Language) -> Iterator[list[_Place]]:
        """Cut the words into windows, at pauses between anchors where there are any."""
        alignment = self._prompt_format.alignment(language.code, self._settings.task)
        room = alignment.room - len(alignment.prompt) - 1  # the end
        longest_s = WINDOW_S - 2 * _MARGIN_S
        rest = list(places)
        while rest:
            tokens = np.cumsum([len(self._text.spelled[each.index][1]) for each in rest])
            length_s = np.array([each.end_s for each in rest]) - rest[0].start_s
            fits = int(((length_s <= longest_s) & (tokens <= room)).sum())
            stop = max(1, fits)
            hole = next((at for at in range(1, stop) if _cut(rest[at - 1], rest[at]) > _HOLE_S), 0)
            if hole:
                stop = hole
            elif fits < len(rest):
                cuts = [
                    at for at in range(1, stop + 1) if length_s[at - 1] >= _EARLIEST_CUT * longest_s
                ]
                stop = max(cuts or [stop], key=lambda at: (_cut(rest[at - 1], rest[at]), at))
            yield rest[:stop]
            rest = rest[stop:]

    def _edges(
        self, windows: Sequence[Sequence[_Place]], number: int, recognized: Sequence[Word]
    ) -> tuple[int, int]:
        """Give the frames of a window: its words, and up to a margin of what lies around them."""
        part, window = self._part, windows[number]
        begin_s, stop_s = self._bounds()
        start_s, end_s = window[0].start_s, window[-1].end_s
        # What is recognized there is not of the text, and would draw its words.
        others_before = [word.end_s for word in recognized if word.end_s <= start_s]
        others_after = [word.start_s for word in recognized if word.start_s >= end_s]
        alone = len(windows) == 1 and not others_before and not others_after
        if alone and stop_s - begin_s <= WINDOW_S:
            return part.frame(begin_s), part.frame(stop_s)
        before_s = windows[number - 1][-1].end_s if number else begin_s - 2 * _MARGIN_S
        before_s = max([before_s, *others_before[-1:]])
        last = number == len(windows) - 1
        after_s = stop_s + 2 * _MARGIN_S if last else windows[number + 1][0].start_s
        after_s = min([after_s, *others_after[:1]])
        start = part.frame(start_s - min(_MARGIN_S, max(0.0, start_s - before_s) / 2))
        end = part.frame(end_s + min(_MARGIN_S, max(0.0, after_s - end_s) / 2))
        start = min(start, part.num_frames - 1)
        return start, min(max(end, start + 1), start + WINDOW_S * FRAMES_PER_SECOND)

    def _align(
        self,
        edges: tuple[int, int],
        places: Sequence[_Place],
        language: Language,
        last_speech_s: float,
        recognized: Sequence[Word],
    ) -> Steps[list[_Placed]]:
        """Read the words of a window that are said in it."""
        reading = _Reading(
            self._part, self._prompt_format, self._settings, self._text, edges, language,
            last_speech_s,
        )  # fmt: skip
        chosen = {place.index for place in places if place.anchor}
        if not chosen:
            # Between saying nothing and saying what was recognized is every other text.
            every = [place.index for place in places]
            start_s, end_s = places[0].start_s, places[-1].end_s
            here = (w for w in recognized if start_s <= (w.start_s + w.end_s) / 2 <= end_s)
            said = "".join(word.word for word in here)
            least = yield from reading.total_of(self._prompt_format.encode(said))
            least -= _MAX_LOSSES[0] + _MAX_LOSS_PER_TOKEN * len(reading.tokens(every))
            found = (yield from reading.total(every)) >= least
            return (yield from reading.placed(every)) if found else []
        runs = list(_runs(places, chosen))
        total = (yield from reading.total(chosen)) if runs else 0.0
        for loss in _MAX_LOSSES:
            before = len(chosen)
            while runs:
                run = runs.pop(0)
                with_run = yield from reading.total(chosen.union(run))
                if with_run >= total - loss:
                    chosen, total = chosen.union(run), with_run
                elif len(run) > 1:
                    middle = len(run) // 2
                    runs = [run[:middle], run[middle:], *runs]
            if len(chosen) == before:
                break
            # Beside words that are found, others may prove to be said, too.
            runs = list(_runs(places, chosen))
        placed = yield from reading.placed(sorted(chosen))
        crowded = {index for run in _crowded(placed, places) for index in run}
        if crowded:
            placed = yield from reading.placed(sorted(chosen - crowded))
        return placed

    def _segment(self, group: Sequence[_Placed], language: Language) -> Segment:
        text = "".join(each.word.word for each in group)
        logprobs = [value for each in group for value in each.logprobs]
        start_s, end_s = group[0].word.start_s, group[-1].word.end_s
        end_s = max(end_s, start_s + 1 / FRAMES_PER_SECOND)
        data = text.strip().encode()
        mean = mean_logprob_of(logprobs) or 0.0
        return with_confidence(
            Segment(
                start_s=start_s,
                end_s=end_s,
                text=text,
                tokens=tuple(t for each in group for t in self._text.spelled[each.index][1]),
                language=language.code,
                language_probability=language.probability,
                task=self._settings.task,
                confidence=0.0,
                avg_logprob=mean,
                text_logprob=mean,
                no_speech_prob=None,
                compression_ratio=len(data) / len(zlib.compress(data)),
                temperature=0.0,
                speech_fraction=self._part.speech_fraction(start_s, end_s),
                words=tuple(each.word for each in group),
            )
        )


def _crowded(placed: Sequence[_Placed], places: Sequence[_Place]) -> Iterator[list[int]]:
    """Runs of words that were not recognized, and have no time in which they can be said."""
    anchors = {place.index for place in places if place.anchor}
    for is_anchor, group in groupby(placed, key=lambda each: each.index in anchors):
        run = list(group)
        letters = sum(len(folded(each.word.word)) for each in run)
        time_s = run[-1].word.end_s - run[0].word.start_s
        if not is_anchor and letters > _MAX_LETTERS_PER_S * (time_s + TIMESTAMP_STEP_S):
            yield [each.index for each in run]


def _cut(before: _Place, after: _Place) -> float:
    pause_s = after.start_s - before.end_s
    return pause_s if before.anchor and after.anchor else pause_s - _UNSURE_CUT_S


def _runs(places: Sequence[_Place], chosen: Collection[int]) -> Iterator[list[int]]:
    # Of words in a row that are not chosen.
    for is_chosen, run in groupby(places, key=lambda place: place.index in chosen):
        if not is_chosen:
            yield [place.index for place in run]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A window, in which words of the text are read."""

    part: PartRequest
    prompt_format: PromptFormat
    settings: DecodingSettings
    text: TextWords
    edges: tuple[int, int]
    language: Language
    last_speech_s: float

    def total(self, indices: Collection[int]) -> Steps[float]:
        """The log-probability of these words and the end after them."""
        return (yield from self.total_of(self.tokens(sorted(indices))))

    def total_of(self, tokens: Sequence[int]) -> Steps[float]:
        """The log-probability of a text and the end after it."""
        alignment, window = self._alignment(), self._window()
        read = (*alignment.prompt, *tokens, alignment.end)[: alignment.room]
        result: AlignResult = yield AlignJob(
            features=window.features,
            window=window.name,
            tokens=read,
            heads=alignment.heads[:1],
            choices=alignment.choices,
            num_frames=window.num_frames,
        )
        return math.fsum(result.logprobs[len(alignment.prompt) - 1 :])

    def placed(self, indices: Sequence[int]) -> Steps[list[_Placed]]:
        """These words with their times."""
        if not indices:
            return []
        alignment, window = self._alignment(), self._window()
        start_s, end_s = self.part.seconds(window.seek), self.part.seconds(window.end)
        tokens = self.tokens(indices)
        steps = time_words(
            [DraftSegment(tokens=tokens, start_s=start_s, end_s=end_s)],
            window,
            start_s=start_s,
            last_speech_s=self.last_speech_s,
            alignment=alignment,
        )
        result: AlignResult = yield next(steps)
        logprobs = result.logprobs[len(alignment.prompt) - 1 :][: len(tokens)]
        try:
            steps.send(result)
        except StopIteration as done:
            (draft,) = done.value
        return list(self._words(indices, draft.words, logprobs))

    def tokens(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The tokens of these words."""
        return tuple(t for index in indices for t in self.text.spelled[index][1])

    def _alignment(self) -> AlignmentSpec:
        alignment = self.prompt_format.alignment(self.language.code, self.settings.task)
        # The end is among the choices, as it may come in place of words that are left out.
        alignment = replace(alignment, choices=alignment.end + 1)
        if not self.text.has_blanks:
            alignment = replace(
                alignment, spell=lambda tokens: split_characters(tokens, self.prompt_format.text)
            )
        return alignment

    def _window(self) -> Window:
        part, (start, end) = self.part, self.edges
        return Window(
            seek=start,
            end=end,
            content_frames=end - start,
            features=part.window_in_silence(start, end),
            num_frames=frames_to_encode(end - start, self.settings.padding_s),
            language=self.language,
            prompt=(),
            max_new_tokens=0,
        )

    def _words(
        self, indices: Sequence[int], timed: Sequence[Word], logprobs: Sequence[float]
    ) -> Iterator[_Placed]:
        """Join the words that cross-attention times to those of the text: both spell the same."""
        ends = np.cumsum([len(word.word) for word in timed])
        first_letter = first_token = 0
        for index in indices:
            text, tokens = self.text.spelled[index]
            last_letter, last_token = first_letter + len(text), first_token + len(tokens)
            first = timed[int(np.searchsorted(ends, first_letter, side="right"))]
            last = timed[int(np.searchsorted(ends, last_letter, side="left"))]
            own = tuple(logprobs[first_token:last_token])
            word = Word(
                word=text,
                start_s=first.start_s,
                end_s=max(first.start_s, last.end_s),
                probability=float(np.mean(np.exp(own))),
            )
            yield _Placed(index=index, word=word, logprobs=own)
            first_letter, first_token = last_letter, last_token
