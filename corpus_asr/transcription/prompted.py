"""Transcription of a part by a decoder-only model, whose prompts contain the encoded windows.

Windows are cut at silences and decoded in parallel, each to one segment with the times of its
window. A family has `AudioPrompts`; nothing else here depends on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.config.decoding import DecodingSettings, Hotword, check_refused
from corpus_asr.decoding.jobs import Steps, TokenRules
from corpus_asr.decoding.phrases import HotwordTries, as_prompt, check_hotwords, forms
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.families.audio_prompts import PROMPT_ROOM, AudioPrompts, text_room
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.text.words import WITHOUT_BLANKS
from corpus_asr.transcription.chunks import (
    ChunkRules,
    after_a_blank,
    check_window_settings,
    window_ranges,
)
from corpus_asr.transcription.whisper_prompt import spoken_most
from corpus_asr.transcription.windows import Language, PartRequest, Window
from corpus_asr.transcription.words import DraftSegment
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# Settings that must keep their default or null, with the reason.
_REFUSED = {
    "task": "it writes the spoken language",
    "target_language": "it writes the spoken language",
    "no_speech_threshold": "it has no token for silence; only null, or the default, which does "
    "nothing here, is admitted",
    "condition_on_prev_tokens": "its windows are independent",
    "prefix": "its windows are independent",
    "word_timestamps": "it times no words, unlike an align.model",
    "align": "it does not place known texts, which needs align.model",
    "hallucination_silence_threshold": "windows contain detected speech only",
}


class PromptedTranscriber:
    """Transcribes parts with one decoder-only checkpoint; implements `PartTranscriber`."""

    def __init__(self, prompts: AudioPrompts, features: Any, *, name: str) -> None:
        """`name` is that of the family in errors; `features` are those of its registry entry."""
        self._prompts = prompts
        self._features = features
        self._name = name
        self._tries = HotwordTries(self._spellings)

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptedTranscriber":
        """Load the checkpoint's tokenizer, sizes and feature settings."""
        family = family_of(folder)
        prompts = resolve(family.prompts).from_folder(folder)
        features = resolve(family.part_features).from_folder(folder)
        return cls(prompts, features, name=family.model_type)

    @property
    def languages(self) -> tuple[str, ...]:
        """Empty: languages are named in answers, not detected before."""
        return ()

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support, before any audio is read."""
        check_refused(settings, _REFUSED, model=f"the checkpoint is of the family {self._name}")
        if settings.language_mode == "part":
            raise ConfigError(
                f"decoding.language_mode: found part, but {self._name} names the language of each "
                "window; leave it out"
            )
        check_window_settings(
            settings,
            model=self._name,
            languages=self._prompts.languages,
            longest_s=WINDOW_FRAMES / FRAMES_PER_SECOND,
        )
        in_prompt = settings.hotwords_mode == "prompt"
        self._prompt(settings, settings.hotwords if in_prompt else (), positions=0)
        if not in_prompt:
            check_hotwords(settings.hotwords, self._spellings)

    def _prompt(
        self, settings: DecodingSettings, hotwords: Sequence[Hotword] | None, *, positions: int
    ) -> tuple[int, ...]:
        """Return a window's prompt; raises ConfigError for a context that it has no room for."""
        texts = {"initial_prompt": settings.initial_prompt, "hotwords": as_prompt(hotwords)}
        for key, text in texts.items():
            try:
                self._prompts.encode(text or "")
            except ValueError as error:
                raise ConfigError(f"decoding.{key}: {error}") from error
        key = "hotwords" if texts["hotwords"] else "initial_prompt"
        language = None if settings.language == "auto" else str(settings.language)
        context = "\n".join(text for text in texts.values() if text)
        prompt = self._prompts.prompt(positions, language=language, context=context)
        if len(prompt) - positions > PROMPT_ROOM:
            raise ConfigError(
                f"decoding.{key}: found a prompt of {len(prompt) - positions} tokens, but "
                f"{self._name} has room for {PROMPT_ROOM} around a window; shorten it"
            )
        return prompt

    def _spellings(self, phrase: str) -> list[tuple[int, ...]]:
        # Within a text a word follows a blank, at its beginning it does not.
        spelled = (self._prompts.encode(f"{blank}{form}") for form in forms(phrase)
                   for blank in (" ", ""))  # fmt: skip
        return list(dict.fromkeys(spelled))

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Decode all windows in parallel."""
        ranges = window_ranges(
            part,
            settings,
            default_s=WINDOW_FRAMES / FRAMES_PER_SECOND,
            longest_frames=WINDOW_FRAMES,
        )
        if part.detect_only or not ranges:
            return PartTranscript()
        hotwords = (*(settings.hotwords or ()), *part.hotwords)
        in_prompt = settings.hotwords_mode == "prompt"
        prompt = partial(self._prompt, settings, hotwords if in_prompt else ())
        try:
            prompt(positions=0)
        except ConfigError as error:  # only those of the settings were checked before
            raise ItemError(str(error), kind="bad_hotwords") from error
        # Windows need no padding.
        settings = replace(settings, padding_s=None)
        rules = _Rules(part, settings, self._prompts, self._features, prompt=prompt)
        rules.phrases = None if in_prompt else self._tries.of(hotwords)
        segments = yield from rules.decode_all(ranges)
        language = rules.language if rules.language.code else spoken_most(segments)
        return PartTranscript(
            segments=segments,
            language=language.code if language else None,
            language_probability=language.probability if language else None,
        )


class _Rules(ChunkRules):
    def __init__(
        self,
        part: PartRequest,
        settings: DecodingSettings,
        prompts: AudioPrompts,
        features: Any,
        *,
        prompt: Callable[..., tuple[int, ...]],
    ) -> None:
        """`prompt` returns that of a window by its number of positions."""
        super().__init__(part, settings, self._text)
        self.token_rules = TokenRules(end=prompts.end)
        code = None if settings.language == "auto" else str(settings.language)
        self.language = Language(code=code, probability=None)
        self._prompts, self._features = prompts, features
        self._prompt = prompt

    def _text(self, tokens: Sequence[int]) -> str:
        answer = self._prompts.answer(tokens, language=self.language.code)
        return self._prompts.decode([tokens[at] for at in answer.text])

    def decode_range(self, start: int, end: int) -> Steps[Segment | None]:
        """Decode the window between two frames; None if it has no text, or only unwanted text."""
        content = self._features.window(self.part.features, start, end)
        if not len(content):  # no whole frame
            return None
        attempt = yield from self.decode(self._window(content, start, end))
        result = attempt.result
        answer = self._prompts.answer(result.tokens, language=self.language.code)
        tokens = tuple(result.tokens[at] for at in answer.text)
        text = self._prompts.decode(tokens).strip()
        if not text:
            return None
        language = self.language
        if language.code is None and answer.language is not None:
            # Of all the tokens that name it.
            named = math.fsum(result.logprobs[: answer.text[0]])
            language = Language(code=answer.language, probability=math.exp(named))
        draft = DraftSegment(
            tokens=tokens, start_s=self.part.seconds(start), end_s=self.part.seconds(end)
        )
        return self.segment(
            replace(attempt, window=replace(attempt.window, language=language)),
            draft,
            text=text if language.code in WITHOUT_BLANKS else after_a_blank(text),
            logprobs=[result.logprobs[at] for at in answer.text],
            task=self.settings.task,
            no_speech_prob=None,
        )

    def _window(self, content: np.ndarray, start: int, end: int) -> Window:
        num_frames = len(content)
        positions = self._prompts.positions(num_frames)
        features = np.pad(content.astype(np.float16), ((0, WINDOW_FRAMES - num_frames), (0, 0)))
        return Window(
            seek=start,
            end=end,
            content_frames=end - start,
            features=features.T,
            num_frames=num_frames,
            language=self.language,
            prompt=self._prompt(positions=positions),
            max_new_tokens=text_room(positions),
        )
