"""How Speech2Text transcribes one part: a window per stretch of speech, all side by side.

A segment has the times of the speech detected in its window, since the model knows none; words'
times come from its cross-attention.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32

from corpus_asr.confidence import mean_logprob_of, with_confidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import WindowJob
from corpus_asr.decoding.slots import Gather, Steps
from corpus_asr.families.speech2text.features import Speech2TextPartFeatures
from corpus_asr.segments import Segment, Word
from corpus_asr.text.known_hallucinations import is_known_hallucination
from corpus_asr.transcription.fallback import DecodedWindow, decode_window, search_at, seed_of
from corpus_asr.transcription.part_transcriber import PartTranscript
from corpus_asr.transcription.speech2text.prompt_format import Speech2TextPromptFormat
from corpus_asr.transcription.windows import PartRequest, chunk_ranges, clip_ranges
from corpus_asr.transcription.words import DraftSegment, time_words
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# The utterances these models were trained on last 6 s (MuST-C) to 12 s (LibriSpeech) on average,
# 30 s at most; a segment's times are those of its window, so shorter ones say more exactly when.
DEFAULT_WINDOW_S = 15.0
# Detected speech is padded: the silence is longer than this by that on both sides.
_LONGEST_PAUSE_S = 1.0
# A window that waits for a slot holds its features, 0.5 MB: of one part no more than this wait.
WINDOWS_AT_ONCE = 32


class Speech2TextTranscriber:
    """Transcribes parts with one Speech2Text checkpoint; meets `PartTranscriber`."""

    def __init__(
        self, prompt_format: Speech2TextPromptFormat, features: Speech2TextPartFeatures
    ) -> None:
        self._prompt_format = prompt_format
        self._features = features

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextTranscriber":
        """Read what the checkpoint says of its vocabulary, its limits and its features.

        Raises:
            CheckpointError: a file is missing or unusable.
        """
        return cls(
            Speech2TextPromptFormat.from_folder(folder), Speech2TextPartFeatures.from_folder(folder)
        )

    def check(self, settings: DecodingSettings) -> None:
        """Refuse what this checkpoint cannot do.

        Raises:
            ConfigError: names the key.
        """
        self._prompt_format.check(settings)

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Decode all windows side by side.

        The longest come first: windows of one length are then encoded together, and nothing long
        is begun last.
        """
        ranges = window_ranges(part, settings, longest_frames=self._prompt_format.window_frames)
        if not ranges:
            return PartTranscript()
        language = None if settings.language == "auto" else str(settings.language)
        ranges.sort(key=lambda window: window[0] - window[1])
        windows = [
            _Window(
                part,
                window,
                language=language,
                prompt_format=self._prompt_format,
                settings=settings,
            )
            for window in ranges
        ]
        results = yield Gather(
            _one_by_one(windows[index::WINDOWS_AT_ONCE], self._features)
            for index in range(min(WINDOWS_AT_ONCE, len(windows)))
        )
        segments = sorted((s for some in results for s in some), key=lambda s: s.start_s)
        return PartTranscript(segments=tuple(segments), language=language)


def window_ranges(
    part: PartRequest, settings: DecodingSettings, *, longest_frames: int = WINDOW_FRAMES
) -> list[tuple[int, int]]:
    """Cut what is asked for of a part into windows, in hops of 10 ms."""
    window_s = DEFAULT_WINDOW_S if settings.window_s is None else settings.window_s
    return chunk_ranges(
        part,
        clip_ranges(part, settings.clip_timestamps),
        window_frames=min(longest_frames, round(window_s * FRAMES_PER_SECOND)),
        pause_frames=round(_LONGEST_PAUSE_S * FRAMES_PER_SECOND),
    )


def _one_by_one(
    windows: Sequence["_Window"], features: Speech2TextPartFeatures
) -> Steps[list[Segment]]:
    segments: list[Segment] = []
    for window in windows:
        segments += yield from window.run(features)
    return segments


class _Window:
    """One window, from its features to its segment."""

    def __init__(
        self,
        part: PartRequest,
        window: tuple[int, int],
        *,
        language: str | None,
        prompt_format: Speech2TextPromptFormat,
        settings: DecodingSettings,
    ) -> None:
        self._part = part
        self._window = window
        self._language = language
        self._prompt_format = prompt_format
        self._settings = settings
        self._start_s, self._end_s = (part.seconds(hop) for hop in window)

    def run(self, features: Speech2TextPartFeatures) -> Steps[list[Segment]]:
        """Give the window's segment, or none if it says nothing or holds no whole frame."""
        heard = features.window(self._part.features, *self._window)
        if not len(heard):
            return []
        values, num_frames = _whole_window(heard, self._prompt_format.window_frames), len(heard)
        decoded = yield from self._decode(values, num_frames)
        said = [
            at
            for at, token in enumerate(decoded.tokens)
            if token not in self._prompt_format.special
        ]
        tokens = tuple(decoded.tokens[at] for at in said)
        text = self._prompt_format.text(tokens)
        if not text.strip():
            return []
        if self._settings.drop_known_hallucinations and is_known_hallucination(text):
            return []
        words = None
        if self._settings.word_timestamps:
            words = yield from self._words(tokens, values, num_frames)
        return [self._segment(decoded, tokens, [decoded.logprobs[at] for at in said], words)]

    def _decode(
        self, values: Float16[np.ndarray, "mel frame"], num_frames: int
    ) -> Steps[DecodedWindow]:
        def job_at(temperature: float) -> WindowJob:
            return WindowJob(
                features=values,
                window=self._window,
                prompt=self._prompt_format.prompt(self._settings.target_language),
                rules=self._prompt_format.rules,
                max_new_tokens=self._prompt_format.max_target_positions,
                search=search_at(self._settings, temperature),
                seed=seed_of(self._part, self._window[0], temperature),
                num_frames=num_frames,
            )

        return (yield from decode_window(job_at, self._settings, self._prompt_format.text))

    def _words(
        self, tokens: tuple[int, ...], values: Float16[np.ndarray, "mel frame"], num_frames: int
    ) -> Steps[tuple[Word, ...]]:
        (timed,) = yield from time_words(
            [DraftSegment(tokens=tokens, start_s=self._start_s, end_s=self._end_s)],
            features=values,
            num_frames=num_frames,
            window=self._window,
            window_start_s=self._start_s,
            content_frames=self._window[1] - self._window[0],
            last_speech_s=self._start_s,
            alignment=self._prompt_format.alignment(self._settings.target_language),
        )
        first, *others = timed.words
        return (replace(first, word=_after_a_blank(first.word)), *others)

    def _segment(
        self,
        decoded: DecodedWindow,
        tokens: tuple[int, ...],
        logprobs: Sequence[float],
        words: tuple[Word, ...] | None,
    ) -> Segment:
        segment = Segment(
            start_s=self._start_s,
            end_s=self._end_s,
            text=_after_a_blank(self._prompt_format.text(tokens)),
            tokens=tokens,
            language=self._language,
            language_probability=None,
            task=self._prompt_format.task(self._settings),
            confidence=0.0,
            avg_logprob=decoded.avg_logprob,
            text_logprob=mean_logprob_of(logprobs),
            no_speech_prob=None,
            compression_ratio=decoded.compression_ratio,
            temperature=decoded.temperature,
            speech_fraction=self._part.speech_fraction(self._start_s, self._end_s),
            known_hallucination=is_known_hallucination(self._prompt_format.text(tokens)),
            words=words,
        )
        return with_confidence(segment)


def _whole_window(
    heard: Float32[np.ndarray, "heard mel"], window_frames: int
) -> Float16[np.ndarray, "mel frame"]:
    """Fill up to a whole window, mel axis first; what fills it is not heard.

    Normalised values need no more than float16, which a part's windows wait in.
    """
    whole = np.zeros((window_frames, heard.shape[1]), dtype=np.float16)
    whole[: len(heard)] = heard
    return whole.T


def _after_a_blank(text: str) -> str:
    """Segments are joined as they are: a window's text must not stick to the one before."""
    return text if text.startswith(" ") else f" {text}"
