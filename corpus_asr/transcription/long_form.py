"""Whisper's seek loop: window after window, each starting where the last one's text ended.

Written as a generator that yields windows to decode, so that many loops advance side by side.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16

from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob
from corpus_asr.decoding.slots import Steps
from corpus_asr.segments import Segment, Word
from corpus_asr.text.known_hallucinations import is_known_hallucination
from corpus_asr.transcription.fallback import (
    DecodedWindow,
    decode_window,
    is_silence,
    search_at,
    seed_of,
)
from corpus_asr.transcription.language import Language, LanguageWindow, ask_language
from corpus_asr.transcription.whisper.prompt_format import PromptFormat
from corpus_asr.transcription.windows import PartRequest, frames_to_hear
from corpus_asr.transcription.words import (
    AFTER_A_WORD,
    BEFORE_A_WORD,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A stretch of a window's tokens, by position, with times from the window's start."""

    first: int
    stop: int
    start_s: float
    end_s: float


def split_at_timestamps(
    tokens: Sequence[int], *, timestamp_begin: int, content_frames: int, cut_short: bool = False
) -> tuple[list[TokenSpan], int]:
    """Cut a window's tokens where one timestamp follows another.

    Args:
        tokens: what was decoded, end token left out.
        timestamp_begin: the first timestamp token.
        content_frames: frames of audio in the window, padding left out.
        cut_short: whether the text was ended before the model closed it, so that its last
            timestamp tells nothing of its end.

    Returns:
        The pieces, and the frames to advance: to the last timestamp if text follows it unfinished,
        else past the window.

    Source: openai-whisper `transcribe.py`, the part after `decode_with_fallback`.
    """
    is_timestamp = [token >= timestamp_begin for token in tokens]
    cuts = [at for at in range(1, len(tokens)) if is_timestamp[at - 1] and is_timestamp[at]]
    closed = ends_closed(tokens, timestamp_begin=timestamp_begin)
    if not cuts:
        stamps = [] if cut_short else [token for token in tokens if token >= timestamp_begin]
        return [_whole(tokens, stamps, timestamp_begin, content_frames)], content_frames

    if closed:
        cuts.append(len(tokens))
    pieces = []
    for first, stop in zip([0, *cuts], cuts, strict=False):
        pieces.append(
            TokenSpan(
                first=first,
                stop=stop,
                start_s=(tokens[first] - timestamp_begin) * TIMESTAMP_STEP_S,
                end_s=(tokens[stop - 1] - timestamp_begin) * TIMESTAMP_STEP_S,
            )
        )
    if closed:
        return pieces, content_frames
    return pieces, (tokens[cuts[-1] - 1] - timestamp_begin) * FRAMES_PER_POSITION


def ends_closed(tokens: Sequence[int], *, timestamp_begin: int) -> bool:
    """Whether text and then one timestamp end the window: nothing is said after it."""
    return [token >= timestamp_begin for token in tokens[-2:]] == [False, True]


def _whole(
    tokens: Sequence[int], stamps: Sequence[int], timestamp_begin: int, content_frames: int
) -> TokenSpan:
    """One piece for the whole window, ending at its last timestamp if that says anything."""
    end_s = content_frames / FRAMES_PER_SECOND
    if stamps and stamps[-1] != timestamp_begin:
        end_s = (stamps[-1] - timestamp_begin) * TIMESTAMP_STEP_S
    return TokenSpan(first=0, stop=len(tokens), start_s=0.0, end_s=end_s)


_PUNCTUATION = BEFORE_A_WORD + AFTER_A_WORD
_IMPROBABLE = 0.15
_SHORT_S = 0.133
_LONG_S = 2.0
_WORDS_LOOKED_AT = 8
_ANOMALOUS_SCORE = 3.0
# This near to a window's edge there need be no silence for a word to be invented.
_EDGE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a window lies, in recording time."""

    start_s: float
    content_end_s: float
    """Where its audio ends; the window itself may reach further."""
    audio_end_s: float
    """Where the part ends."""
    closed: bool
    """Whether the text ended with a timestamp and nothing after it."""

    @property
    def end_s(self) -> float:
        """Where the window ends, padding included."""
        return self.start_s + WINDOW_S


def without_hallucinations(
    stretches: Sequence[DraftSegment], *, place: Place, silence_s: float, last_speech_s: float
) -> tuple[list[DraftSegment] | None, float | None]:
    """Leave out what looks invented and is surrounded by silence.

    Args:
        stretches: the window's segments with their words.
        place: of the window.
        silence_s: the shortest silence that counts.
        last_speech_s: where the last word before this window ended.

    Returns:
        The segments to keep, or None where the whole window is to be heard again from after its
        silent beginning; and the recording time to go on at, None where the text decides that.
    """
    seek_s = None
    end_s = last_word_end(stretches)
    if not place.closed and end_s is not None and end_s > place.start_s:
        seek_s = end_s if place.end_s - end_s > silence_s else place.content_end_s

    first = next((one for one in stretches if one.words), None)
    if first is not None and _is_anomalous(first):
        gap_s = first.start_s - place.start_s
        if gap_s > silence_s:
            return None, place.start_s + gap_s

    for number, one in enumerate(stretches):
        if not one.words:
            continue
        after = next((later for later in stretches[number + 1 :] if later.words), None)
        if _is_anomalous(one) and _is_surrounded(one, after, place, silence_s, last_speech_s):
            seek_s = max(place.start_s + 1.0, one.start_s)
            if place.audio_end_s - one.end_s < silence_s:
                seek_s = place.audio_end_s
            return list(stretches[:number]), seek_s
        last_speech_s = one.end_s
    return list(stretches), seek_s


def _is_surrounded(
    one: DraftSegment,
    after: DraftSegment | None,
    place: Place,
    silence_s: float,
    last_speech_s: float,
) -> bool:
    """Whether silence, more of the kind, or the window's edge lies on both sides."""
    before = (
        one.start_s - last_speech_s > silence_s
        or one.start_s < silence_s
        or one.start_s - place.start_s < _EDGE_S
    )
    next_s = place.content_end_s if after is None else after.words[0].start_s
    return before and (
        next_s - one.end_s > silence_s
        or (after is not None and _is_anomalous(after))
        or place.end_s - one.end_s < _EDGE_S
    )


def _is_anomalous(stretch: DraftSegment) -> bool:
    words = [word for word in stretch.words if word.word not in _PUNCTUATION][:_WORDS_LOOKED_AT]
    score = sum(_anomaly(word) for word in words)
    return score >= _ANOMALOUS_SCORE or score + 0.01 >= len(words)


def _anomaly(word: Word) -> float:
    """Score a word that is improbable, very short or very long."""
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < _IMPROBABLE else 0.0
    if duration_s < _SHORT_S:
        score += (_SHORT_S - duration_s) * 15
    if duration_s > _LONG_S:
        score += duration_s - _LONG_S
    return score


# Above this temperature the text is too uncertain to prompt the next window with.
_MAX_TEMPERATURE = 0.5


class Prompts:
    """The prompts of windows that follow one another.

    Args:
        prompt_format: of the checkpoint.
        settings: `initial_prompt` counts as said before the first window, and is forgotten as text
            is; `hotwords` stand before every window; `prefix` begins the first one.
        at_beginning: whether the first window is the recording's, which alone has the prefix.

    Source: openai-whisper `transcribe` for `initial_prompt` and the layout of the prefix, which is
    not said again in the text; faster-whisper for `hotwords`, which give way to a prefix, and for
    the prefix of the first window alone.
    """

    def __init__(
        self, prompt_format: PromptFormat, settings: DecodingSettings, *, at_beginning: bool
    ) -> None:
        self._prompt_format = prompt_format
        self._task = settings.task
        self._conditioned = settings.condition_on_prev_tokens
        self._previous = list(_encoded(prompt_format, settings.initial_prompt))
        self._hotwords = _encoded(prompt_format, settings.hotwords)
        self._prefix = _encoded(prompt_format, settings.prefix) if at_beginning else ()

    def take(self, language: str | None) -> tuple[tuple[int, ...], int]:
        """Return the next window's prompt and the position of its start token."""
        prefix, self._prefix = self._prefix, ()
        return self._prompt_format.prompt(
            language,
            self._task,
            self._previous,
            hotwords=() if prefix else self._hotwords,
            prefix=prefix,
        )

    def remember(self, tokens: Iterable[int], *, temperature: float) -> None:
        """Note what a window said, timestamps included, and at which temperature."""
        self._previous.extend(tokens)
        if not self._conditioned or temperature > _MAX_TEMPERATURE:
            self._previous.clear()


def _encoded(prompt_format: PromptFormat, text: str | None) -> tuple[int, ...]:
    return () if text is None else prompt_format.encode(text)


# Detected speech is padded, so that what was invented beside it may touch it.
_NONSPEECH_FRACTION = 0.1

Cut = Callable[[int, int], Float16[np.ndarray, "mel frame"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """A window that was decoded."""

    at: int
    """Its first frame."""
    end: int
    """Where the stretch it belongs to ends."""
    content_frames: int
    features: Float16[np.ndarray, "mel frame"]
    num_frames: int | None
    """Those that were heard; None for all."""
    language: Language
    decoded: DecodedWindow


class SeekLoop:
    """Transcribes stretches of a part one after the other, each window knowing those before.

    Args:
        part: whose features.
        language: of all windows; None to ask in every window.
        prompt_format: of the checkpoint.
        settings: how.
        at_beginning: whether the first window is the first that is asked for of the recording.
        cut: makes the window from one frame with content up to another; None for the part's own
            rule.

    Source: openai-whisper `transcribe`, with these differences: long silence is jumped over; a
    window may say as many tokens as the decoder holds (as in `transformers`), not half of them; a
    window of blanks, where it would creep on by tenths of a second, has no words to go by; and in a
    recording that fits one window the audio is followed by digital silence (as `transformers` has
    it for short clips, and as the models were trained), not by 0.0.
    """

    def __init__(
        self,
        part: PartRequest,
        *,
        language: Language | None,
        prompt_format: PromptFormat,
        settings: DecodingSettings,
        at_beginning: bool = True,
        cut: Cut | None = None,
    ) -> None:
        self._part = part
        self._language = language
        self._prompt_format = prompt_format
        self._settings = settings
        self._cut = cut or part.window
        self._prompts = Prompts(prompt_format, settings, at_beginning=at_beginning)
        self._segments: list[Segment] = []
        self._last_speech_s = part.start_s

    def run(self, ranges: Sequence[tuple[int, int]]) -> Steps[list[Segment]]:
        """Transcribe ranges of frames, in this order."""
        for start, end in ranges:
            seek = self._part.next_speech(start, end)
            while seek is not None:
                advanced = yield from self._step(seek, end)
                # Text that ends where its window starts would be decoded for ever.
                stuck = advanced <= seek
                seek = seek + min(WINDOW_FRAMES, end - seek) if stuck else advanced
                seek = self._part.next_speech(seek, end)
        return self._segments

    def _step(self, at: int, end: int) -> Steps[int]:
        """Decode the window at a frame, keep what it says; returns the frame to go on at."""
        window = yield from self._decode(at, end)
        if is_silence(window.decoded, self._settings):
            return at + window.content_frames
        decoded = window.decoded
        pieces, advance = split_at_timestamps(
            decoded.tokens,
            timestamp_begin=self._prompt_format.timestamp_begin,
            content_frames=window.content_frames,
            cut_short=decoded.looped,
        )
        seek = at + advance
        stretches: Sequence[DraftSegment | None] = [None] * len(pieces)
        if self._settings.word_timestamps:
            found, seek = yield from self._time_words(window, pieces, seek)
            if found is None:
                return seek
            stretches = found
        said: list[int] = []
        for piece, stretch in zip(pieces, stretches, strict=False):
            segment = self._segment(window, piece, stretch)
            if segment is not None:
                self._segments.append(segment)
                said.extend(decoded.tokens[piece.first : piece.stop])
        self._prompts.remember(said, temperature=decoded.temperature)
        return seek

    def _decode(self, at: int, end: int) -> Steps[_Window]:
        features = self._cut(at, end)
        content_frames = min(WINDOW_FRAMES, end - at)
        num_frames = frames_to_hear(content_frames, self._settings.padding_s)
        language = self._language
        if language is None:
            here = LanguageWindow(name=(at, end), features=features, num_frames=num_frames)
            language = yield from ask_language([here], self._prompt_format, self._settings)
        prompt, start_position = self._prompts.take(language.code)

        def job_at(temperature: float) -> WindowJob:
            return WindowJob(
                features=features,
                window=(at, end),
                prompt=prompt,
                rules=self._prompt_format.text_rules,
                max_new_tokens=self._prompt_format.max_target_positions,
                search=search_at(self._settings, temperature),
                seed=seed_of(self._part, at, temperature),
                score_token=self._prompt_format.no_speech,
                score_position=start_position,
                num_frames=num_frames,
            )

        return _Window(
            at=at,
            end=end,
            content_frames=content_frames,
            features=features,
            num_frames=num_frames,
            language=language,
            decoded=(yield from decode_window(job_at, self._settings, self._prompt_format.text)),
        )

    def _time_words(
        self, window: _Window, pieces: Sequence[TokenSpan], seek: int
    ) -> Steps[tuple[list[DraftSegment] | None, int]]:
        """Find the words of a window's pieces, and go on where the last one ended.

        Returns:
            The first pieces' stretches, those that are kept, or None to keep nothing of the window
            and its prompt; and the frame to go on at.
        """
        part, decoded = self._part, window.decoded
        start_s = part.seconds(window.at)
        stretches = yield from time_words(
            [self._stretch(window, piece) for piece in pieces],
            features=window.features,
            num_frames=window.num_frames,
            window=(window.at, window.end),
            window_start_s=start_s,
            content_frames=window.content_frames,
            last_speech_s=self._last_speech_s,
            alignment=self._prompt_format.alignment(window.language.code, self._settings.task),
        )
        closed = ends_closed(decoded.tokens, timestamp_begin=self._prompt_format.timestamp_begin)
        end_s = last_word_end(stretches)
        if not closed and end_s is not None and end_s > start_s:
            seek = part.frame(end_s)
        kept: list[DraftSegment] | None = stretches
        if self._settings.hallucination_silence_threshold is not None:
            place = Place(
                start_s=start_s,
                content_end_s=part.seconds(window.at + window.content_frames),
                audio_end_s=part.seconds(part.num_frames),
                closed=closed,
            )
            kept, seek_s = without_hallucinations(
                stretches,
                place=place,
                silence_s=self._settings.hallucination_silence_threshold,
                last_speech_s=self._last_speech_s,
            )
            seek = seek if seek_s is None else part.frame(seek_s)
        if kept is not None:
            end_s = last_word_end(kept)
            self._last_speech_s = self._last_speech_s if end_s is None else end_s
        return kept, seek

    def _stretch(self, window: _Window, piece: TokenSpan) -> DraftSegment:
        start_s = self._part.seconds(window.at)
        return DraftSegment(
            tokens=tuple(window.decoded.tokens[at] for at in self._text(window, piece)),
            start_s=start_s + piece.start_s,
            end_s=start_s + piece.end_s,
        )

    def _text(self, window: _Window, piece: TokenSpan) -> list[int]:
        """Positions of a piece's text tokens in the window's."""
        tokens = window.decoded.tokens
        return [at for at in range(piece.first, piece.stop) if tokens[at] < self._prompt_format.end]

    def _segment(
        self, window: _Window, piece: TokenSpan, timed: DraftSegment | None
    ) -> Segment | None:
        """Make a segment of a piece; None if it says nothing, takes no time or is not wanted.

        What lies in the padding after the end of the stretch was never said; an end time that
        passes it is cut.
        """
        decoded, part = window.decoded, self._part
        stretch = timed or self._stretch(window, piece)
        text = self._prompt_format.text(stretch.tokens)
        start_s, end_s = stretch.start_s, min(stretch.end_s, part.seconds(window.end))
        if not text.strip() or start_s >= end_s:
            return None
        positions = self._text(window, piece)
        speech_fraction = part.speech_fraction(start_s, end_s)
        nonspeech = speech_fraction is not None and speech_fraction < _NONSPEECH_FRACTION
        if nonspeech and self._settings.drop_nonspeech:
            return None
        known = is_known_hallucination(text)
        if known and self._settings.drop_known_hallucinations:
            return None
        segment = Segment(
            start_s=start_s,
            end_s=end_s,
            text=text,
            tokens=stretch.tokens,
            language=window.language.code,
            language_probability=window.language.probability,
            task=self._settings.task,
            confidence=0.0,
            avg_logprob=decoded.avg_logprob,
            text_logprob=mean_logprob_of([decoded.logprobs[at] for at in positions]),
            no_speech_prob=decoded.no_speech_prob,
            compression_ratio=decoded.compression_ratio,
            temperature=decoded.temperature,
            speech_fraction=speech_fraction,
            known_hallucination=known,
            words=timed.words if timed is not None else None,
        )
        return with_confidence(segment)
