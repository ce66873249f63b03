"""Aligns a known text with a part: span of the text, windows, and which of its words are spoken.

The part is first recognized as usual, with word times. Recognized words that match the text are
anchors (`text_places`): they determine the span of the text and where it can be cut into windows.
In each window the decoder is then forced to the given words, and its cross-attention times them as
it times recognized ones (`words`). Recognized words outside the text are read along, and dropped.
Unrecognized words between anchors are kept only if the audio supports them: including them must not
lower the log-probability by more than a limit.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.jobs import AlignJob, AlignResult, Gather, Steps
from corpus_asr.segments import PartTranscript, Word
from corpus_asr.text.words import Spelled, split_characters
from corpus_asr.transcription.anchors import folded
from corpus_asr.transcription.text_places import (
    MAX_LETTERS_PER_S,
    PlacedWord,
    TextPlaces,
    TextPosition,
    TextWords,
    stretches,
    sure_pause_s,
    words_to_read,
)
from corpus_asr.transcription.whisper_prompt import PromptFormat
from corpus_asr.transcription.windows import (
    KnownText,
    Language,
    PartRequest,
    Window,
    frames_to_encode,
)
from corpus_asr.transcription.words import DraftSegment, time_words
from corpus_asr.units import FRAMES_PER_SECOND, TIMESTAMP_STEP_S, WINDOW_S

# Audio before the first word of a window and after its last one, if it is silent.
_MARGIN_S = 0.5
# A window ends at the longest pause after this fraction of its length.
_EARLIEST_CUT = 0.6
# Maximum log-probability loss of including an unrecognized run of words, by round. On LJ Speech
# with whisper-tiny.en, one word that is not spoken costs 14 to 27, two or more cost at least 21; of
# 43 unrecognized runs that are spoken, 40 cost less than 9. Rejected words are tested again, with a
# lower limit, after neighboring words were accepted.
_MAX_LOSSES = (10.0, 4.0, 4.0)
# Maximum loss per token relative to the recognized text, in windows without any anchor.
_MAX_LOSS_PER_TOKEN = 1.5


class KnownTextAligner:
    """Aligns a known text with a part that has been recognized."""

    def __init__(
        self,
        part: PartRequest,
        known: KnownText,
        words: TextWords,
        recognized: PartTranscript,
        settings: DecodingSettings,
        prompt_format: PromptFormat,
    ) -> None:
        self._part = part
        self._recognized = recognized
        self._text = words
        self._places = TextPlaces(part, known, words)
        self._settings = settings
        self._prompt_format = prompt_format
        # Without recognized text and a configured language, any language serves.
        code = recognized.language or next(iter(prompt_format.languages), None)
        self._language = Language(code=code, probability=recognized.language_probability)
        alignment = prompt_format.alignment(code, settings.task)
        # Include the end token, which may come in place of omitted words.
        self._alignment = replace(alignment, choices=alignment.end + 1)
        if not words.has_blanks:
            self._alignment = replace(
                self._alignment, spell=lambda tokens: split_characters(tokens, prompt_format.text)
            )

    def run(self) -> Steps[PartTranscript]:
        """Return the part's segments with words of the text, and the indices of these words.

        Raises:
            AlignmentError: the part is the whole recording and contains hardly any of the text.
        """
        recognized_words = [
            word for segment in self._recognized.segments for word in segment.words or ()
        ]
        positions = self._places.find(recognized_words)
        windows = [
            window
            for stretch in stretches(positions)
            for window in self._windows(stretch)
            if any(place.index is not None for place in window)
        ]
        before_s = [self._part.start_s, *(window[-1].end_s for window in windows)]
        placed: list[list[PlacedWord]] = yield Gather(
            self._align(
                self._window(*self._edges(windows, number, recognized_words)),
                window,
                before_s[number],
            )
            for number, window in enumerate(windows)
        )
        words = [word for window_words in placed for word in window_words]
        return self._places.transcript(
            self._recognized, positions, words, self._language, self._settings.task
        )

    def _windows(self, places: Sequence[TextPosition]) -> Iterator[list[TextPosition]]:
        """Split the words into windows, preferably at pauses between anchors."""
        room = self._alignment.room - len(self._alignment.prompt) - 1  # minus the end token
        longest_s = WINDOW_S - 2 * _MARGIN_S
        rest = list(places)
        while rest:
            tokens = np.cumsum([len(self._spelled(place)[1]) for place in rest])
            length_s = np.array([place.end_s for place in rest]) - rest[0].start_s
            fits = int(((length_s <= longest_s) & (tokens <= room)).sum())
            stop = max(1, fits)
            if stop < len(rest):
                long_enough = (length_s >= _EARLIEST_CUT * longest_s).tolist()
                cuts = [at for at in range(1, stop + 1) if long_enough[at - 1]]
                pauses_s = [sure_pause_s(rest[at - 1], rest[at]) for at in cuts or [stop]]
                stop = max(zip(pauses_s, cuts or [stop], strict=True))[1]
            yield rest[:stop]
            rest = rest[stop:]

    def _edges(
        self, windows: Sequence[Sequence[TextPosition]], number: int, recognized: Sequence[Word]
    ) -> tuple[int, int]:
        """Return the frames of a window: its words, with a margin up to the surrounding words."""
        part, window = self._part, windows[number]
        begin_s, stop_s = self._places.bounds()
        start_s, end_s = window[0].start_s, window[-1].end_s
        # Recognized words beyond the edges are outside the text and would attract its words.
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

    def _window(self, start: int, end: int) -> Window:
        return Window(
            seek=start,
            end=end,
            content_frames=end - start,
            features=self._part.window_in_silence(start, end),
            num_frames=frames_to_encode(end - start, self._settings.first_padding_s),
            language=self._language,
            prompt=(),
            max_new_tokens=0,
        )

    def _align(
        self, window: Window, places: Sequence[TextPosition], last_speech_s: float
    ) -> Steps[list[PlacedWord]]:
        """Return the window's words of the text that are spoken, with times."""

        def total(chosen: Collection[int]) -> Steps[float]:
            # Recognized words are not read where any word of the text may be what is spoken.
            return self._total(window, words_to_read(places, chosen, every))

        def placed(chosen: Collection[int]) -> Steps[list[PlacedWord]]:
            return self._timed(window, words_to_read(places, chosen, chosen), last_speech_s)

        every = {place.index for place in places if place.index is not None}
        chosen = {place.index for place in places if place.index is not None and place.anchor}
        if not chosen:
            # The probability of the recognized text bounds those of all other texts.
            least = yield from self._total(window, words_to_read(places, (), ()))
            num_tokens = len(self._tokens(words_to_read(places, every, every)))
            least -= _MAX_LOSSES[0] + _MAX_LOSS_PER_TOKEN * num_tokens
            is_said = (yield from total(every)) >= least
            return (yield from placed(every)) if is_said else []
        runs = list(_runs(places, chosen))
        highest = (yield from total(chosen)) if runs else 0.0
        for loss in _MAX_LOSSES:
            num_chosen = len(chosen)
            while runs:
                run = runs.pop(0)
                with_run = yield from total(chosen.union(run))
                if with_run >= highest - loss:
                    chosen, highest = chosen.union(run), with_run
                elif len(run) > 1:
                    middle = len(run) // 2
                    runs = [run[:middle], run[middle:], *runs]
            if len(chosen) == num_chosen:
                break
            # Next to accepted words, further words may be accepted.
            runs = list(_runs(places, chosen))
        words = yield from placed(chosen)
        crowded = {index for run in _crowded(words, places) for index in run}
        return (yield from placed(chosen - crowded)) if crowded else words

    def _total(self, window: Window, read: Sequence[TextPosition]) -> Steps[float]:
        """Return the log-probability of these words and the following end token."""
        alignment = self._alignment
        tokens = (*alignment.prompt, *self._tokens(read), alignment.end)[: alignment.room]
        result: AlignResult = yield AlignJob(
            features=window.features,
            window=window.name,
            tokens=tokens,
            heads=alignment.heads[:1],
            choices=alignment.choices,
            num_frames=window.num_frames,
        )
        return math.fsum(result.logprobs[len(alignment.prompt) - 1 :])

    def _timed(
        self, window: Window, read: Sequence[TextPosition], last_speech_s: float
    ) -> Steps[list[PlacedWord]]:
        """Return the words of the text among those read, with their times."""
        if all(place.index is None for place in read):
            return []
        start_s, end_s = self._part.seconds(window.seek), self._part.seconds(window.end)
        tokens = self._tokens(read)
        steps = time_words(
            [DraftSegment(tokens=tokens, start_s=start_s, end_s=end_s)],
            window,
            start_s=start_s,
            last_speech_s=last_speech_s,
            alignment=self._alignment,
        )
        result: AlignResult = yield next(steps)
        logprobs = result.logprobs[len(self._alignment.prompt) - 1 :][: len(tokens)]
        try:
            steps.send(result)
        except StopIteration as done:
            (draft,) = done.value
        return list(self._words(read, draft.words, logprobs))

    def _spelled(self, place: TextPosition) -> Spelled:
        if place.index is not None:
            return self._text.spelled[place.index]
        return place.word, self._prompt_format.encode(place.word)

    def _tokens(self, read: Iterable[TextPosition]) -> tuple[int, ...]:
        return tuple(token for place in read for token in self._spelled(place)[1])

    def _words(
        self, read: Iterable[TextPosition], timed: Sequence[Word], logprobs: Sequence[float]
    ) -> Iterator[PlacedWord]:
        """Map words timed by cross-attention to those of the text; both spell the same text."""
        ends = np.cumsum([len(word.word) for word in timed])
        first_letter = first_token = 0
        for place in read:
            text, tokens = self._spelled(place)
            last_letter, last_token = first_letter + len(text), first_token + len(tokens)
            if place.index is not None:
                first = timed[int(np.searchsorted(ends, first_letter, side="right"))]
                last = timed[int(np.searchsorted(ends, last_letter, side="left"))]
                word_logprobs = tuple(logprobs[first_token:last_token])
                word = Word(
                    word=place.word,
                    start_s=first.start_s,
                    end_s=max(first.start_s, last.end_s),
                    probability=float(np.mean(np.exp(word_logprobs))),
                )
                yield PlacedWord(index=place.index, word=word, logprobs=word_logprobs)
            first_letter, first_token = last_letter, last_token


def _crowded(placed: Sequence[PlacedWord], places: Sequence[TextPosition]) -> Iterator[list[int]]:
    """Yield runs of unrecognized words that are too long for their time."""
    anchors = {place.index for place in places if place.anchor}
    for is_anchor, group in groupby(placed, key=lambda word: word.index in anchors):
        run = list(group)
        letters = sum(len(folded(placed_word.word.word)) for placed_word in run)
        time_s = run[-1].word.end_s - run[0].word.start_s
        if not is_anchor and letters > MAX_LETTERS_PER_S * (time_s + TIMESTAMP_STEP_S):
            yield [placed_word.index for placed_word in run]


def _runs(places: Sequence[TextPosition], chosen: Collection[int]) -> Iterator[list[int]]:
    # Runs of consecutive words that are not chosen.
    indices = [place.index for place in places if place.index is not None]
    for is_chosen, run in groupby(indices, key=chosen.__contains__):
        if not is_chosen:
            yield list(run)
