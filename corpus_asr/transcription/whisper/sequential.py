"""Whisper's seek loop: window after window, each starting where the last one's text ended.

In: a part and the stretches of it to transcribe. Out: segments in recording time. Written as a
generator that yields windows to decode, so that many loops advance side by side in one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16

from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob
from corpus_asr.decoding.slots import Steps
from corpus_asr.segments import Segment
from corpus_asr.text.known_hallucinations import is_known_hallucination
from corpus_asr.transcription.fallback import DecodedWindow, decode_window, is_silence
from corpus_asr.transcription.language import Language, LanguageWindow, ask_language
from corpus_asr.transcription.searching import search_at, seed_of
from corpus_asr.transcription.whisper.dialect import Dialect
from corpus_asr.transcription.whisper.hallucinations import Place, without_hallucinations
from corpus_asr.transcription.whisper.prompts import Prompts
from corpus_asr.transcription.whisper.timestamps import Piece, ends_closed, split_at_timestamps
from corpus_asr.transcription.windows import PartRequest, frames_to_hear
from corpus_asr.transcription.words import Stretch, last_word_end, time_words
from corpus_asr.units import WINDOW_FRAMES

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
        dialect: of the checkpoint.
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
        dialect: Dialect,
        settings: DecodingSettings,
        at_beginning: bool = True,
        cut: Cut | None = None,
    ) -> None:
        self._part = part
        self._language = language
        self._dialect = dialect
        self._settings = settings
        self._cut = cut or part.window
        self._prompts = Prompts(dialect, settings, at_beginning=at_beginning)
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
            timestamp_begin=self._dialect.timestamp_begin,
            content_frames=window.content_frames,
            cut_short=decoded.looped,
        )
        seek = at + advance
        stretches: Sequence[Stretch | None] = [None] * len(pieces)
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
            language = yield from ask_language([here], self._dialect, self._settings)
        prompt, start_position = self._prompts.take(language.code)

        def job_at(temperature: float) -> WindowJob:
            return WindowJob(
                features=features,
                window=(at, end),
                prompt=prompt,
                rules=self._dialect.text_rules,
                max_new_tokens=self._dialect.max_target_positions,
                search=search_at(self._settings, temperature),
                seed=seed_of(self._part, at, temperature),
                score_token=self._dialect.no_speech,
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
            decoded=(yield from decode_window(job_at, self._settings, self._dialect.text)),
        )

    def _time_words(
        self, window: _Window, pieces: Sequence[Piece], seek: int
    ) -> Steps[tuple[list[Stretch] | None, int]]:
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
            reading=self._dialect.reading(window.language.code, self._settings.task),
        )
        closed = ends_closed(decoded.tokens, timestamp_begin=self._dialect.timestamp_begin)
        end_s = last_word_end(stretches)
        if not closed and end_s is not None and end_s > start_s:
            seek = part.frame(end_s)
        kept: list[Stretch] | None = stretches
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

    def _stretch(self, window: _Window, piece: Piece) -> Stretch:
        start_s = self._part.seconds(window.at)
        return Stretch(
            tokens=tuple(window.decoded.tokens[at] for at in self._text(window, piece)),
            start_s=start_s + piece.start_s,
            end_s=start_s + piece.end_s,
        )

    def _text(self, window: _Window, piece: Piece) -> list[int]:
        """Positions of a piece's text tokens in the window's."""
        tokens = window.decoded.tokens
        return [at for at in range(piece.first, piece.stop) if tokens[at] < self._dialect.end]

    def _segment(self, window: _Window, piece: Piece, timed: Stretch | None) -> Segment | None:
        """Make a segment of a piece; None if it says nothing, takes no time or is not wanted.

        What lies in the padding after the end of the stretch was never said; an end time that
        passes it is cut.
        """
        decoded, part = window.decoded, self._part
        stretch = timed or self._stretch(window, piece)
        text = self._dialect.text(stretch.tokens)
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
