"""How a Speech2Text checkpoint is spoken to: its prompts, its target languages, its text.

In: a checkpoint folder. Out: prompts, `TokenRules`, and text for tokens. It has no timestamps, no
no-speech token, and neither hears text before a window nor tells languages apart: settings that
ask for such things are refused. Knows nothing of audio or of how windows are cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import TokenRules
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.registry import family_of, resolve
from corpus_asr.transcription.words import AlignmentSpec, split_words, upper_half
from corpus_asr.units import FRAMES_PER_SECOND, WINDOW_FRAMES

# Two convolutions halve the frames each: a position is 40 ms.
FRAMES_PER_POSITION = 4
# As Whisper's 7 positions of 20 ms, about an eighth of a second.
_FILTER_WIDTH = 3

# SentencePiece's mark for a blank.
_BLANK = "▁"

# Settings of which only the default can be had, or null; and why.
_REFUSED = {
    "language_mode": "these checkpoints cannot tell languages apart",
    "no_speech_threshold": "these checkpoints have no token for silence; only null, or the "
    "default, which does nothing here, is admitted",
    "condition_on_prev_tokens": "these checkpoints are shown no text before a window",
    "initial_prompt": "these checkpoints are shown no text before a window",
    "hotwords": "these checkpoints are shown no text before a window",
    "prefix": "these checkpoints are shown no text before a window",
    "padding_s": "windows are heard exactly as long as they are",
    "hallucination_silence_threshold": "windows hold detected speech alone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech2TextPromptFormat:
    """Token ids and what to do with them."""

    spelling: Callable[[Sequence[int]], str]
    """Text tokens to text, as `transformers` decodes them."""
    begins_word: Callable[[int], bool]
    """Whether a text token has a blank before it."""
    special: frozenset[int]
    """Tokens that are no text."""
    start: int
    end: int
    targets: Mapping[str, int]
    """Language code to the token that asks for it; empty for checkpoints of one target."""
    forced: int | None
    """The first token where the user names no target language."""
    suppress: tuple[int, ...]
    max_target_positions: int
    alignment_heads: tuple[tuple[int, int], ...]
    window_frames: int = WINDOW_FRAMES
    """Of the windows that the network is made for."""

    @classmethod
    def from_folder(cls, folder: Path) -> "Speech2TextPromptFormat":
        """Read a checkpoint's tokenizer and generation settings.

        Raises:
            CheckpointError: a file is missing or unreadable, or the vocabulary is larger than the
                network's.
        """
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
            begins_word=lambda token: _piece(tokenizer, token).startswith(_BLANK),
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
        """Refuse what this checkpoint cannot do, before any audio is read.

        Raises:
            ConfigError: a target language is missing or unknown, languages are to be told apart,
                windows are too long, or a setting is for other families; names the key.
        """
        usual = DecodingSettings()
        for name, reason in _REFUSED.items():
            found = getattr(settings, name)
            if found is not None and found != getattr(usual, name):
                raise ConfigError(
                    f"decoding.{name}: found {found}, but the checkpoint is of the family "
                    f"speech_to_text, and {reason}; leave it out"
                )
        if not isinstance(settings.language, str):
            raise ConfigError(
                f"decoding.language: found a choice of {len(settings.language)}, but the "
                "checkpoint is of the family speech_to_text and cannot tell languages apart; name "
                "the one that is spoken, or leave it out"
            )
        longest_s = self.window_frames / FRAMES_PER_SECOND
        if settings.window_s is not None and settings.window_s > longest_s:
            raise ConfigError(
                f"decoding.window_s: found {settings.window_s:g}, but this checkpoint hears at "
                f"most {longest_s:g} s at once; set it to less"
            )
        self._check_target(settings)

    def _check_target(self, settings: DecodingSettings) -> None:
        wanted, known = settings.target_language, ", ".join(sorted(self.targets))
        if wanted is not None and not self.targets:
            raise ConfigError(
                f"decoding.target_language: found {wanted}, but this checkpoint writes one "
                "language alone (its tokenizer_config.json names no lang_codes); leave it out"
            )
        if wanted is not None and wanted not in self.targets:
            raise ConfigError(
                f"decoding.target_language: this checkpoint does not know {wanted}; it knows "
                f"{known}"
            )
        if wanted is None and self.targets and self.forced is None:
            raise ConfigError(
                f"decoding.target_language: missing, and this checkpoint writes {known}; name the "
                "one to translate into"
            )

    def prompt(self, target_language: str | None) -> tuple[int, ...]:
        """Build a window's prompt.

        The target language, which `transformers` forces as the first token it generates, is the
        last of the prompt here: it is given, not said, and counts in no score.
        """
        target = self.forced if target_language is None else self.targets[target_language]
        return (self.start,) if target is None else (self.start, target)

    def task(self, settings: DecodingSettings) -> str:
        """What the tables call it: a target language means translation."""
        return settings.task if settings.target_language is None else "translate"

    def text(self, tokens: Sequence[int]) -> str:
        """Text tokens to text, with a blank before every word, the first one too.

        What is special is left out; the tokens of a text cut in two give its parts.
        """
        said = [token for token in tokens if token not in self.special]
        if not said:
            return ""
        return (" " if self.begins_word(said[0]) else "") + self.spelling(said)

    def alignment(self, target_language: str | None) -> AlignmentSpec:
        """How it reads a text again, to tell when its words were said."""
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
        """Rules for text."""
        return TokenRules(end=self.end, suppress=self.suppress)


def _piece(tokenizer: Any, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))
