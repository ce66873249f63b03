"""Transcription of a part with Speech2Text: one window per speech span, decoded in parallel.

The model has no timestamps, no no-speech token, no text prompts and no language detection: settings
that require these are rejected. A segment has the times of the speech detected in its window, since
the model predicts none; word times come from its cross-attention.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.config.decoding import DecodingSettings, check_refused
from corpus_asr.decoding.jobs import Steps, TokenRules
from corpus_asr.decoding.phrases import HotwordTries, check_hotwords, forms
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.families.speech2text.features import Speech2TextPartFeatures
from corpus_asr.families.speech2text.vocabulary import BLANK
from corpus_asr.segments import PartTranscript, Segment
from corpus_asr.transcription.chunks import (
    ChunkRules,
    after_a_blank,
    check_window_settings,
    window_ranges,
)
from corpus_asr.transcription.windows import Language, PartRequest, Window
from corpus_asr.transcription.words import (
    AlignmentSpec,
    DraftSegment,
    split_words,
    time_words,
    upper_half,
)
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# Two convolutions of stride 2: one position is 40 ms.
FRAMES_PER_POSITION = 4
# About an eighth of a second, like Whisper's 7 positions of 20 ms.
_FILTER_WIDTH = 3

# Settings that must keep their default or null, with the reason.
_REFUSED = {
    "language_mode": "these checkpoints cannot distinguish languages",
    "no_speech_threshold": "these checkpoints have no token for silence; only null, or the "
    "default, which does nothing here, is admitted",
    "condition_on_prev_tokens": "these checkpoints take no prompt",
    "initial_prompt": "these checkpoints take no prompt",
    "hotwords_mode": "these checkpoints take no prompt",
    "prefix": "these checkpoints take no prompt",
    "align": "these checkpoints have no alignment heads, unlike an align.model",
    "hallucination_silence_threshold": "windows contain detected speech only",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech2TextPromptFormat:
    """Token IDs of a checkpoint, and the prompts and rules built from them."""

    spelling: Callable[[Sequence[int]], str]
    """Converts text tokens to text, as `transformers` decodes them."""
    encode: Callable[[str], tuple[int, ...]]
    """Converts text to tokens."""
    begins_word: Callable[[int], bool]
    """Whether a text token starts with a space."""
    special: frozenset[int]
    """Tokens that are not text."""
    start: int
    end: int
    targets: Mapping[str, int]
    """Target language token by language code; empty for checkpoints with one target."""
    forced: int | None
    """First token if no target language is configured."""
    suppress: tuple[int, ...]
    max_target_positions: int
    alignment_heads: tuple[tuple[int, int], ...]
    window_frames: int = WINDOW_FRAMES
    """Length of the network's windows in frames."""

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextPromptFormat":
        """Load a checkpoint's tokenizer and generation settings."""
        family = family_of(folder)
        config = resolve(family.config).from_pretrained(folder)
        generation = resolve(family.generation).from_pretrained(folder)
        tokenizer = resolve(family.tokenizer).from_pretrained(folder)
        if len(tokenizer) > config.vocab_size:
            raise CheckpointError(
                f"reading {folder}: the network has {config.vocab_size} tokens and the tokenizer "
                f"{len(tokenizer)}; use the tokenizer that belongs to it"
            )
        start, end = config.decoder_start_token_id, tokenizer.eos_token_id
        return cls(
            spelling=lambda ids: str(tokenizer.decode(list(ids), True, False)),
            encode=lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids),
            begins_word=lambda token: str(tokenizer.convert_ids_to_tokens(token)).startswith(BLANK),
            special=frozenset((*tokenizer.all_special_ids, *tokenizer.lang_code_to_id.values())),
            start=end if start is None else start,
            end=end,
            targets=tokenizer.lang_code_to_id,
            forced=generation.forced_bos_token_id,
            suppress=tuple(generation.suppress_tokens or ()),
            max_target_positions=config.max_target_positions,
            alignment_heads=upper_half(config.decoder_layers, config.decoder_attention_heads),
            window_frames=min(WINDOW_FRAMES, config.max_source_positions),
        )

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support, before any audio is read."""
        name = "speech_to_text"
        check_refused(settings, _REFUSED, model=f"the checkpoint is of the family {name}")
        longest_s = self.window_frames / FRAMES_PER_SECOND
        check_window_settings(settings, model=name, longest_s=longest_s)
        self._check_target(settings)
        check_hotwords(settings.hotwords, self.spellings)

    def spellings(self, phrase: str) -> list[tuple[int, ...]]:
        """Return the token sequences of each spelling of a phrase in a text.

        Raises:
            ValueError: the vocabulary cannot spell it.
        """
        spellings = list(dict.fromkeys(map(self.encode, forms(phrase))))
        written = [tokens for tokens in spellings if self.special.isdisjoint(tokens)]
        if not written or not all(written):
            raise ValueError(
                f"found {phrase[:40]!r}, expected a phrase that the pieces of this checkpoint can "
                "write; spell it as in its texts, or remove it"
            )
        return written

    def _check_target(self, settings: DecodingSettings) -> None:
        wanted, targets = settings.target_language, ", ".join(sorted(self.targets))
        if wanted is not None and not self.targets:
            raise ConfigError(
                f"decoding.target_language: found {wanted}, but this checkpoint writes one "
                "language (no lang_codes in its tokenizer_config.json); remove it"
            )
        if wanted is not None and wanted not in self.targets:
            raise ConfigError(
                f"decoding.target_language: found {wanted}, expected {targets}; correct it"
            )
        if wanted is None and self.targets and self.forced is None:
            raise ConfigError(
                f"decoding.target_language: missing, expected {targets}; name the language to "
                "translate into"
            )

    def prompt(self, target_language: str | None) -> tuple[int, ...]:
        """Build a window's prompt.

        The target language, which `transformers` forces as the first generated token, is the last
        token of the prompt here: it is not generated and counts in no score.
        """
        target = self.forced if target_language is None else self.targets[target_language]
        return (self.start,) if target is None else (self.start, target)

    def task(self, settings: DecodingSettings) -> str:
        """Return the task in result tables: a target language means translation."""
        return settings.task if settings.target_language is None else "translate"

    def text(self, tokens: Sequence[int]) -> str:
        """Convert text tokens to text, with a space before every word including the first.

        Special tokens are omitted; the tokens of a text cut in two give its parts.
        """
        text_tokens = [token for token in tokens if token not in self.special]
        if not text_tokens:
            return ""
        return (" " if self.begins_word(text_tokens[0]) else "") + self.spelling(text_tokens)

    def alignment(self, target_language: str | None) -> AlignmentSpec:
        """Return how a text is aligned to time its words."""
        return AlignmentSpec(
            prompt=self.prompt(target_language),
            end=self.end,
            room=self.max_target_positions,
            heads=self.alignment_heads,
            filter_width=_FILTER_WIDTH,
            frames_per_position=FRAMES_PER_POSITION,
            choices=None,
            spell=lambda tokens: split_words(tokens, self.text, None),
        )

    @property
    def rules(self) -> TokenRules:
        """Return the rules for text."""
        return TokenRules(end=self.end, suppress=self.suppress)


# Training utterances average 6 s (MuST-C) to 12 s (LibriSpeech), 30 s at most; a segment has the
# times of its window, so shorter windows give more precise times.
DEFAULT_WINDOW_S = 15.0


class Speech2TextTranscriber:
    """Transcribes parts with one Speech2Text checkpoint; implements `PartTranscriber`."""

    def __init__(
        self, prompt_format: Speech2TextPromptFormat, features: Speech2TextPartFeatures
    ) -> None:
        self._prompt_format = prompt_format
        self._features = features
        self._tries = HotwordTries(prompt_format.spellings)

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextTranscriber":
        """Load the checkpoint's vocabulary, limits and feature settings."""
        return cls(
            Speech2TextPromptFormat.from_folder(folder), Speech2TextPartFeatures.from_folder(folder)
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Empty: these checkpoints cannot distinguish languages."""
        return ()

    def check(self, settings: DecodingSettings) -> None:
        """Reject settings that this checkpoint does not support."""
        self._prompt_format.check(settings)

    def transcribe(self, part: PartRequest, settings: DecodingSettings) -> Steps[PartTranscript]:
        """Decode all windows in parallel."""
        ranges = window_ranges(
            part,
            settings,
            default_s=DEFAULT_WINDOW_S,
            longest_frames=self._prompt_format.window_frames,
        )
        if not ranges:
            return PartTranscript()
        language = None if settings.language == "auto" else str(settings.language)
        rules = _Rules(part, settings, self._prompt_format, self._features)
        rules.phrases = self._tries.of((*(settings.hotwords or ()), *part.hotwords))
        segments = yield from rules.decode_all(ranges)
        return PartTranscript(segments=segments, language=language)


class _Rules(ChunkRules):
    def __init__(
        self,
        part: PartRequest,
        settings: DecodingSettings,
        prompt_format: Speech2TextPromptFormat,
        features: Speech2TextPartFeatures,
    ) -> None:
        # Windows have their exact length.
        super().__init__(part, replace(settings, padding_s=None), prompt_format.text)
        self.token_rules = prompt_format.rules
        self._prompt_format = prompt_format
        self._features = features

    def decode_range(self, start: int, end: int) -> Steps[Segment | None]:
        """Decode the window between two frames; None if it has no text, or only unwanted text."""
        content = self._features.window(self.part.features, start, end)
        if not len(content):  # no whole frame
            return None
        return (yield from self._segment(self._window(content, start, end)))

    def _window(self, content: Float32[np.ndarray, "valid mel"], start: int, end: int) -> Window:
        prompt_format = self._prompt_format
        spoken = self.settings.language
        return Window(
            seek=start,
            end=end,
            content_frames=end - start,
            # float16 is sufficient for normalized values and halves the memory of waiting windows.
            features=np.pad(
                content.astype(np.float16),
                ((0, prompt_format.window_frames - len(content)), (0, 0)),
            ).T,
            num_frames=len(content),
            language=Language(code=None if spoken == "auto" else str(spoken), probability=None),
            prompt=prompt_format.prompt(self.settings.target_language),
            max_new_tokens=prompt_format.max_target_positions,
        )

    def _segment(self, window: Window) -> Steps[Segment | None]:
        attempt = yield from self.decode(window)
        result, special = attempt.result, self._prompt_format.special
        positions = [at for at, token in enumerate(result.tokens) if token not in special]
        draft = DraftSegment(
            tokens=tuple(result.tokens[at] for at in positions),
            start_s=self.part.seconds(window.seek),
            end_s=self.part.seconds(window.end),
        )
        text = self.text(draft.tokens)
        if not text.strip():
            return None
        if self.settings.word_timestamps:
            (timed,) = yield from time_words(
                [draft],
                window,
                start_s=draft.start_s,
                last_speech_s=draft.start_s,
                alignment=self._prompt_format.alignment(self.settings.target_language),
            )
            # The segment has the times of its window.
            first, *rest = timed.words
            words = (replace(first, word=after_a_blank(first.word)), *rest)
            draft = replace(draft, words=words)
        return self.segment(
            attempt,
            draft,
            text=after_a_blank(text),
            logprobs=[result.logprobs[at] for at in positions],
            task=self._prompt_format.task(self.settings),
            no_speech_prob=None,
        )
