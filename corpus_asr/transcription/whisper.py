"""Transcription of one part by Whisper, by openai-whisper's rules: language, then ranges."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpus_asr.array_types import Float16
from corpus_asr.config.decoding import DecodingSettings, Hotword
from corpus_asr.decoding.jobs import Gather, Search, Steps
from corpus_asr.decoding.phrases import HotwordTries, PhraseTrie, as_prompt
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.segments import PartTranscript, Segment, SpeechSpan
from corpus_asr.text.words import has_words
from corpus_asr.transcription.anomalies import WindowTimes, without_hallucinations
from corpus_asr.transcription.chunks import SpansInOrder
from corpus_asr.transcription.fallback import (
    Attempt,
    OpenAIRules,
    mark_other_language,
    without_last_token,
)
from corpus_asr.transcription.long_form import Clock, LongFormRules, TokenSpan, ends_closed
from corpus_asr.transcription.whisper_prompt import (
    PromptFormat,
    ask_language,
    find_language,
    given_language,
    spoken_most,
)
from corpus_asr.transcription.windows import (
    KnownText,
    Language,
    PartRequest,
    Window,
    chunk_ranges,
    clip_ranges,
    frames_to_encode,
    holds_the_beginning,
    speech_without_text,
)
from corpus_asr.transcription.words import (
    DraftSegment,
    last_word_end,
    time_words,
)
from corpus_asr.units import (
    FRAMES_PER_POSITION,
    FRAMES_PER_SECOND,
    TIMESTAMP_STEP_S,
    WINDOW_FRAMES,
    WINDOW_S,
)

if TYPE_CHECKING:  # imported where a text is to be aligned
    from corpus_asr.transcription.text_places import TextWords


class WhisperTranscriber:
    """Transcribes parts with one Whisper checkpoint; meets `PartTranscriber`."""

    def __init__(self, prompt_format: PromptFormat, *, elsewhere: Collection[str] = ()) -> None:
        self._prompt_format = prompt_format
        self._elsewhere = frozenset(elsewhere)
        self._known: tuple[str, TextWords] | None = None
        self._tries = HotwordTries(prompt_format.spellings)

    @classmethod
    def from_folder(cls, folder: Path) -> "WhisperTranscriber":
        """Load the checkpoint's vocabulary and limits."""
        return cls(PromptFormat.from_folder(folder))

    def leaving(self, languages: Collection[str]) -> "WhisperTranscriber":
        """Return a transcriber that only detects parts in these languages, without segments."""
        return WhisperTranscriber(self._prompt_format, elsewhere=languages)

    @property
    def languages(self) -> Collection[str]:
        """Languages of a multilingual checkpoint."""
        return self._prompt_format.languages

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support."""
        self._prompt_format.check(settings)

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Give the segments of all ranges that are asked for, and the part's language.

        Where the text is known, they are recognized to find their place in it, and have its words.

        Raises:
            AlignmentError: the text has no words, or is not in the audio.
        """
        if part.detect_only:
            language = yield from find_language(part, self._prompt_format, settings)
            return PartTranscript(
                language=language.code,
                language_probability=language.probability,
                languages=language.candidates,
            )
        known_text = part.known_text
        if known_text is None:
            return (yield from self._recognize(part, settings))
        from corpus_asr.transcription.known_text import KnownTextAligner

        words = self._words_of(known_text)
        settings = known_text.clipped(replace(settings, word_timestamps=True))
        # Discard the recognized text; report only the progress.
        recognized = yield from self._recognize(part.silent(), settings)
        if recognized.elsewhere:
            return recognized
        aligner = KnownTextAligner(
            part, known_text, words, recognized, settings, self._prompt_format
        )
        return (yield from aligner.run())

    def _words_of(self, known: KnownText) -> "TextWords":
        from corpus_asr.transcription.text_places import TextWords

        # Parts of one recording come one after the other.
        if self._known is None or self._known[0] != known.text:
            self._known = known.text, TextWords.of(known, self._prompt_format)
        return self._known[1]

    def _hotwords_of(
        self, part: PartRequest, settings: DecodingSettings
    ) -> tuple[tuple[Hotword, ...], PhraseTrie | None]:
        """Return the hotwords for the prompt, and the automaton of those the search prefers."""
        hotwords = (*(settings.hotwords or ()), *part.hotwords)
        if settings.hotwords_mode != "prompt":
            return (), self._tries.of(hotwords)
        try:
            self._prompt_format.check_prompt("hotwords", as_prompt(hotwords))
        except ConfigError as error:  # only those of the settings were checked before
            raise ItemError(str(error), kind="bad_hotwords") from error
        return hotwords, None

    def _recognize(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        is_theirs = settings.strategy == "sequential" and part.speech is None
        # Without speech detection no pauses are known, and short noise windows hallucinate more.
        if settings.strategy == "auto" and settings.window_s is None and part.speech is None:
            settings = replace(settings, strategy="sequential")
        sequences = _sequences(part, settings)
        if not sequences:
            return PartTranscript()
        language = given_language(self._prompt_format, settings)
        if language is None and settings.language_mode != "window":
            language = yield from find_language(part, self._prompt_format, settings)
        segments: list[Segment] = []
        spans = [(ranges[0][0], ranges[-1][1]) for ranges in sequences]
        if language is None or language.code not in self._elsewhere:
            begins = holds_the_beginning(part, settings.clip_timestamps)
            passed = None if part.listener is None else SpansInOrder(part.listener, spans)
            prompted, phrases = self._hotwords_of(part, settings)
            results = yield Gather(
                WhisperLongForm(
                    part,
                    settings,
                    self._prompt_format,
                    language=language,
                    at_beginning=begins and index == 0,
                    passed=None if passed is None else (passed, index),
                    hotwords=prompted,
                    phrases=phrases,
                    is_theirs=is_theirs,
                ).run(ranges)
                for index, ranges in enumerate(sequences)
            )
            segments = [segment for sequence_segments in results for segment in sequence_segments]
        language = language or spoken_most(segments)
        result = PartTranscript(
            segments=tuple(segments),
            language=language.code if language else None,
            language_probability=language.probability if language else None,
            cuts_s=tuple(part.seconds(end) for _, end in spans if part.is_cut_in_speech(end)),
            elsewhere=language is not None and language.code in self._elsewhere,
        )
        is_english_only = not self._prompt_format.languages
        return mark_other_language(result, settings) if is_english_only else result


def _sequences(part: PartRequest, settings: DecodingSettings) -> list[list[tuple[int, int]]]:
    clips = clip_ranges(part, settings.clip_timestamps)
    if not settings.in_chunks:
        return [clips] if clips else []
    window_frames = round((settings.window_s or WINDOW_S) * FRAMES_PER_SECOND)
    is_by_language = settings.language_mode == "window"
    chunks = chunk_ranges(
        part,
        clips,
        window_frames=window_frames,
        pause_frames=_LANGUAGE_PAUSE_FRAMES if is_by_language else WINDOW_FRAMES,
        silence_frames=_SILENCE_FRAMES,
    )
    return [[chunk] for chunk in chunks]


# Where each window has its language, none goes on over a pause of 1 s: the speech on both sides is
# padded with 0.4 s.
_LANGUAGE_PAUSE_FRAMES = FRAMES_PER_SECOND // 5
# So much silence before and after all speech is decoded too: the model knows some that was not
# detected. With 0 s whisper-base made 6 errors more on 81 clips; between chunks it gains nothing.
_SILENCE_FRAMES = FRAMES_PER_SECOND
# A window that would begin no further than this after the one before is the same one.
_LEAST_ADVANCE_FRAMES = FRAMES_PER_SECOND
# Less audio at the end of a chunk says nothing: detected speech is padded with 0.4 s.
_LEAST_REST_S = 0.5
# Where a chunk is cut in speech there is no padding.
_LEAST_CUT_REST_S = 0.3
# The words of less likely texts lie anywhere: between them the same text is found again.
_LEAST_TIMED_LOGPROB = -0.5
# No text has more tokens, in any language: bounds what a loop in a short window costs.
_FIRST_TOKENS, _TOKENS_PER_S = 32, 30
# Above this temperature the text is too uncertain to prompt the next window with: openai-whisper's.
_MAX_TEMPERATURE = 0.5


class WhisperLongForm(OpenAIRules, LongFormRules[Segment]):
    """openai-whisper's rules for the windows of spans of a part.

    Source: openai-whisper `transcribe`, with these differences: long silence is jumped over; speech
    that was detected and that a window's text leaves out is decoded again (`passed_over`); a
    window may say as many tokens as the decoder holds (as in `transformers`), not half of them; a
    window of blanks, where it would creep on by tenths of a second, has no words to go by; and in a
    recording that fits one window the audio is followed by digital silence (as `transformers` has
    it for short clips, and as the models were trained), not by 0.0. `hotwords` of a prompt,
    which give way to a prefix, and the prefix of the first window alone are faster-whisper's. A
    chunk's end that its text leaves unfinished is said in the same window.
    """

    def __init__(
        self,
        part: PartRequest,
        settings: DecodingSettings,
        prompt_format: PromptFormat,
        *,
        language: Language | None,
        at_beginning: bool = True,
        passed: tuple[SpansInOrder, int] | None = None,
        again: bool = False,
        hotwords: tuple[Hotword, ...] = (),
        phrases: PhraseTrie | None = None,
        is_theirs: bool = False,
    ) -> None:
        """Start before the first window; with `language` None, every window detects its language.

        The prefix applies only to the recording's first requested window (`at_beginning`). `passed`
        is the receiver of final segments and the index of this span. With `again`, the range was
        decoded before in a window whose text omits it. With `is_theirs`, windows are exactly those
        of openai-whisper, also where a text is too short for its time.
        """
        super().__init__(part, settings, prompt_format.text)
        self.token_rules = prompt_format.text_rules
        self.no_speech = prompt_format.no_speech
        self.clock = Clock(
            timestamp_begin=prompt_format.timestamp_begin,
            input_stride=FRAMES_PER_POSITION,
            time_precision=TIMESTAMP_STEP_S,
            time_precision_features=1 / FRAMES_PER_SECOND,
        )
        self.window_frames = WINDOW_FRAMES
        self.segments = []
        self._prompt_format = prompt_format
        self._language = language
        # The initial prompt counts as earlier text and is cleared like it.
        self._previous = list(self._encoded(settings.initial_prompt))
        self._hotwords = hotwords
        self._hotword_tokens = self._encoded(as_prompt(hotwords))
        self.phrases = phrases
        self._prefix = self._encoded(settings.prefix) if at_beginning else ()
        self._last_speech_s = part.start_s
        self._passed = passed
        self._num_final = 0
        self._texts: list[tuple[float, float]] = []  # time spans of the newest window's texts
        self._again, self._is_theirs = again, is_theirs
        self._resumes_at_cut = False
        self._is_stretched = False  # whether a text of the newest window is
        self._try_again(or_else=part.num_frames if again else None)

    def _try_again(self, *, or_else: int | None) -> None:
        # A repeated window is decoded without fallback; `or_else` is the frame to continue at if it
        # fails. None: the next window is not a repetition.
        self._or_else = or_else
        self.temperatures = self.settings.temperature[: None if or_else is None else 1]

    def wider(self, attempt: Attempt, search: Search) -> tuple[Window, Search] | None:
        """As in the base class, but without a second search of repeated windows and cut ends."""
        return None if self._is_searched_once else super().wider(attempt, search)

    def retries_repeats(self, window: Window, search: Search) -> bool:
        """As in the base class, but never in windows that `wider` leaves out."""
        return not self._is_searched_once and super().retries_repeats(window, search)

    @property
    def _is_searched_once(self) -> bool:
        return self._or_else is not None or self._resumes_at_cut

    def decode(self, window: Window) -> Steps[Attempt]:
        """As in the base class, but chunks are decoded to their end.

        They end in silence, after which a single timestamp says that no speech follows, or are cut
        in speech, of which their texts may omit some words.
        """
        longest = _FIRST_TOKENS + _TOKENS_PER_S * window.content_frames // FRAMES_PER_SECOND
        most_tokens = min(window.max_new_tokens, len(window.prompt) + longest)
        attempt = yield from super().decode(replace(window, max_new_tokens=most_tokens))
        if not self.settings.in_chunks or self.fails(attempt):
            return attempt
        is_cut = self.part.is_cut_in_speech(window.end)
        least_rest_s = _LEAST_CUT_REST_S if is_cut else _LEAST_REST_S
        while True:
            is_closed = ends_closed(attempt.result.tokens, self.clock)
            opened = _with_second_timestamp(attempt) if is_closed and is_cut else attempt
            rest_s = self._rest_s(opened)
            if rest_s is None:
                return attempt
            is_short = rest_s < _LEAST_REST_S
            resumed = opened
            if rest_s >= least_rest_s:
                self._resumes_at_cut = is_closed or is_short
                resumed = yield from self.resume(opened)
                self._resumes_at_cut = False
            if len(resumed.result.tokens) == len(opened.result.tokens):
                return without_last_token(opened) if is_closed or is_short else attempt
            attempt = resumed

    def _rest_s(self, attempt: Attempt) -> float | None:
        """Seconds of audio after a text that ends with two timestamps; None for other texts."""
        tokens = attempt.result.tokens
        if len(tokens) < 2 or not all(map(self.clock.is_timestamp, tokens[-2:])):
            return None
        return self.content_s(attempt.window.content_frames) - self.clock.seconds(tokens[-1])

    def _encoded(self, text: str | None) -> tuple[int, ...]:
        return () if text is None else self._prompt_format.encode(text)

    def next_speech(self, frame: int, end: int) -> int | None:
        """Skip long silence."""
        return self.part.next_speech(frame, end)

    def features(self, seek: int, end: int) -> Float16[np.ndarray, "mel frame"]:
        """Pad as the part specifies; pad chunks as clips, like the references' pipelines."""
        in_chunks = self.settings.in_chunks
        cut = self.part.window_in_silence if in_chunks else self.part.window
        return cut(seek, end)

    def frames_encoded(self, content_frames: int) -> int | None:
        """Encode the content and the padding of a first try; all if the language is uncertain."""
        if self.settings.padding_s == "auto" and self._language and self._language.is_uncertain:
            return None  # that of a clip is encoded whole already
        return frames_to_encode(content_frames, self.settings.first_padding_s)

    def language(
        self,
        name: tuple[int, int],
        features: Float16[np.ndarray, "mel frame"],
        num_frames: int | None,
    ) -> Steps[Language]:
        """Detect the language in the window if the part has none."""
        if self._language is not None:
            return self._language
        windows = [(name, features, num_frames)]
        return (yield from ask_language(windows, self._prompt_format, self.settings))

    def prompt(self, language: Language) -> tuple[tuple[int, ...], int]:
        """Build a prompt from earlier text or hotwords, followed by the request tokens."""
        prefix, self._prefix = self._prefix, ()
        self.num_prefix = 1 + len(prefix) if prefix else 0
        return self._prompt_format.prompt(
            language.code,
            self.settings.task,
            self._previous,
            hotwords=() if prefix else self._hotword_tokens,
            prefix=prefix,
        )

    def max_new_tokens(self, prompt: Sequence[int]) -> int:
        """Return the decoder's maximum length including the prompt, which the search enforces."""
        return self._prompt_format.max_target_positions

    def content_s(self, frames: int) -> float:
        """Return the end of the audio."""
        return frames / FRAMES_PER_SECOND

    def is_silence(self, attempt: Attempt) -> bool:
        """Whether the window is probably silent and its text improbable, if thresholds are set."""
        limit = self.thresholds.logprob_threshold
        silence = self.lacks_speech(attempt) and (limit is None or attempt.mean_logprob <= limit)
        # In a repeated window a doubtful text is usually a hallucination.
        doubtful = self.lacks_speech(attempt) or self.fails(attempt)
        return silence or (self._or_else is not None and doubtful)

    def passed_over(self, window: Window, after: int) -> Steps[int]:
        """Decode detected speech without text again, once.

        Speech before a text is decoded as a range of its own. Speech after the last text starts the
        next window; if no text results, decoding continues at `after`.
        """
        texts, self._texts = self._texts, []
        or_else = self._or_else
        self._try_again(or_else=None)
        is_stretched, self._is_stretched = self._is_stretched, False
        speech = self.part.speech
        if speech is None:
            speech = (SpeechSpan(start_s=self.part.start_s, end_s=self.part.end_s),)
            if not is_stretched:
                return after  # as openai-whisper
        if or_else is not None and not texts:
            return or_else
        start_s, end_s = self.part.seconds(window.seek), self.part.seconds(min(after, window.end))
        last_s = max((text_end_s for _, text_end_s in texts), default=start_s)
        for gap in speech_without_text(speech, texts, start_s, end_s):
            first, stop = self.part.frame(gap[0].start_s), self.part.frame(gap[-1].end_s)
            if gap[0].start_s >= last_s:
                if first - window.seek < _LEAST_ADVANCE_FRAMES:
                    return after  # this would repeat the same window
                self._try_again(or_else=after)
                return first
            if not self._again:  # a nested range could be the same range
                yield from self._decode_again(first, stop)
        return after

    def _decode_again(self, first: int, stop: int) -> Steps[None]:
        loop = WhisperLongForm(
            self.part,
            self.settings,
            self._prompt_format,
            language=self._language,
            at_beginning=False,
            again=True,
            hotwords=self._hotwords,
            phrases=self.phrases,
        )
        segments = yield from loop.run([(first, stop)])
        # Segments of earlier windows were already reported.
        open_segments = [*self.segments[self._num_final :], *segments]
        self.segments[self._num_final :] = sorted(
            open_segments, key=lambda segment: segment.start_s
        )

    def advanced(self, frame: int) -> None:
        """Report the segments that the window added."""
        if self._passed is not None:
            spans, index = self._passed
            spans.add(index, self.segments[self._num_final :], frame=frame)
        self._num_final = len(self.segments)

    def run(self, ranges: Sequence[tuple[int, int]]) -> Steps[list[Segment]]:
        """Transcribe ranges of frames, in this order."""
        segments = yield from super().run(ranges)
        if self._passed is not None:
            spans, index = self._passed
            spans.end(index)
        return segments

    def keep(self, attempt: Attempt, spans: Sequence[TokenSpan], seek: int) -> Steps[int]:
        """Keep segments with text, duration and requested content, with words if enabled."""
        drafts: Sequence[DraftSegment] = [self._draft(attempt, span) for span in spans]
        is_sure = attempt.mean_logprob >= _LEAST_TIMED_LOGPROB and not attempt.temperature
        self._is_stretched = is_sure and any(map(self._omits_speech, drafts))
        if self.settings.word_timestamps or self._is_stretched:
            timed, seek = yield from self._time_words(attempt, drafts, seek)
            if timed is None:
                return seek
            drafts = timed
        self._texts = [
            (draft.start_s, draft.end_s) for draft in drafts if has_words(self.text(draft.tokens))
        ]
        tokens = attempt.result.tokens
        # Only the first spans may be kept.
        for span, draft in zip(spans, drafts, strict=False):
            segment = self._segment(attempt, span, draft)
            if segment is not None:
                self.segments.append(segment)
                self._previous.extend(tokens[span.first : span.stop])
        # As in openai-whisper: the prompt is reset after an uncertain window.
        uncertain = (attempt.temperature or 0.0) > _MAX_TEMPERATURE
        if uncertain or not self.settings.condition_on_prev_tokens:
            self._previous.clear()
        return seek

    def _omits_speech(self, draft: DraftSegment) -> bool:
        if self._is_theirs:
            return False
        text = self.text(draft.tokens)
        return has_words(text) and self.part.is_stretched(text, draft.start_s, draft.end_s)

    def _time_words(
        self, attempt: Attempt, drafts: Sequence[DraftSegment], seek: int
    ) -> Steps[tuple[list[DraftSegment] | None, int]]:
        """Time the words of a window's drafts, and continue where the last word ends.

        Returns the drafts to keep and the frame to continue at; None drops the window, which then
        is not used as a prompt.
        """
        part, window, settings = self.part, attempt.window, self.settings
        start_s = part.seconds(window.seek)
        timed = yield from time_words(
            drafts,
            window,
            start_s=start_s,
            last_speech_s=self._last_speech_s,
            alignment=self._prompt_format.alignment(window.language.code, settings.task),
        )
        closed = ends_closed(attempt.result.tokens, self.clock)
        end_s = last_word_end(timed)
        if not closed and end_s is not None and end_s > start_s:
            seek = part.frame(end_s)
        kept: list[DraftSegment] | None = timed
        if settings.hallucination_silence_threshold is not None:
            place = WindowTimes(
                start_s=start_s,
                content_end_s=part.seconds(window.seek + window.content_frames),
                audio_end_s=part.seconds(part.num_frames),
                closed=closed,
                silence_s=settings.hallucination_silence_threshold,
            )
            kept, seek_s = without_hallucinations(timed, place, self._last_speech_s)
            seek = seek if seek_s is None else part.frame(seek_s)
        end_s = None if kept is None else last_word_end(kept)
        self._last_speech_s = self._last_speech_s if end_s is None else end_s
        return kept, seek

    def _draft(self, attempt: Attempt, span: TokenSpan) -> DraftSegment:
        start_s = self.part.seconds(attempt.window.seek)
        tokens = attempt.result.tokens
        return DraftSegment(
            tokens=tuple(tokens[at] for at in self._text(tokens, span)),
            start_s=start_s + span.start_s,
            end_s=start_s + span.end_s,
        )

    def _text(self, tokens: Sequence[int], span: TokenSpan) -> list[int]:
        return [at for at in range(span.first, span.stop) if tokens[at] < self._prompt_format.end]

    def _segment(self, attempt: Attempt, span: TokenSpan, draft: DraftSegment) -> Segment | None:
        result = attempt.result
        text = self.text(draft.tokens)
        # Text in the padding after the end of the span is not speech.
        draft = replace(draft, end_s=min(draft.end_s, self.part.seconds(attempt.window.end)))
        if draft.start_s >= draft.end_s:
            return None
        return self.segment(
            attempt,
            draft,
            text=text,
            logprobs=[result.logprobs[at] for at in self._text(result.tokens, span)],
            task=self.settings.task,
            no_speech_prob=result.score or 0.0,
        )


def _with_second_timestamp(attempt: Attempt) -> Attempt:
    """Open another text where the last one ends."""
    result = attempt.result
    tokens, logprobs = (*result.tokens, result.tokens[-1]), (*result.logprobs, 0.0)
    return replace(attempt, result=replace(result, tokens=tokens, logprobs=logprobs))
