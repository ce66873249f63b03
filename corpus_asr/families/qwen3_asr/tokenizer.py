"""Qwen3-ASR's prompts and answers, by the tokenizer.json of a checkpoint."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tokenizers import Tokenizer

from corpus_asr.errors import CheckpointError
from corpus_asr.families.audio_prompts import Answer, AudioPrompts
from corpus_asr.families.library_tokenizer import TOKENIZER_NAME, encoding_of, read_tokenizer_file
from corpus_asr.families.model_config import CONFIG_NAME
from corpus_asr.families.qwen3_asr.config import Qwen3ASRConfig
from corpus_asr.languages import LANGUAGES

_CODES = (
    "ar", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko",
    "mk", "ms", "nl", "pl", "pt", "ro", "ru", "sv", "th", "tl", "tr", "vi", "yue", "zh",
)  # fmt: skip
# Source: transformers/models/qwen3_asr/processing_qwen3_asr.py, which has them by other codes.
_NAMES = {code: LANGUAGES[code].capitalize() for code in _CODES} | {"tl": "Filipino"}

# The checkpoints' chat template, of a system message and one of the user with audio alone.
_BEFORE_CONTEXT = "<|im_start|>system\n"
_AUDIO_BEGINS, _AUDIO_ENDS = "<|audio_start|>", "<|audio_end|>"
_BEFORE_AUDIO = f"<|im_end|>\n<|im_start|>user\n{_AUDIO_BEGINS}"
_AFTER_AUDIO = f"{_AUDIO_ENDS}<|im_end|>\n<|im_start|>assistant\n"
_TEXT_FOLLOWS = "<asr_text>"
_CONTROL = ("<|im_start|>", "<|im_end|>", _AUDIO_BEGINS, _AUDIO_ENDS, _TEXT_FOLLOWS)
_LANGUAGE = "language "


def spoken(word: str) -> str:
    """Return the letters, digits and apostrophes of a word, which an aligner reads."""
    return "".join(
        character
        for character in word
        if character == "'" or unicodedata.category(character)[0] in "LN"
    )


class Qwen3ASRPrompts(AudioPrompts):
    """Prompts of one checkpoint, and the languages that all of them know."""

    languages: Mapping[str, str] = MappingProxyType(_NAMES)

    def __init__(self, tokenizer: Tokenizer, config: Qwen3ASRConfig) -> None:
        self._tokenizer = tokenizer
        self._audio = config.audio_config
        self._placeholder = config.audio_token_id
        self._marker = tokenizer.token_to_id(_TEXT_FOLLOWS)
        self.end = config.end_tokens[0]
        added = tokenizer.get_added_tokens_decoder().items()
        control = {token_id for token_id, token in added if token.special}
        self._control = frozenset({*control, *config.end_tokens, self._placeholder, self._marker})
        self.timestamp = config.timestamp_token_id
        """The token at which an aligner's times are read."""
        self._codes = {name.casefold(): code for code, name in self.languages.items()}

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the tokenizer and the sizes of a checkpoint; raises CheckpointError."""
        config = Qwen3ASRConfig.from_json_file(folder / CONFIG_NAME)
        path = folder / TOKENIZER_NAME
        tokenizer = read_tokenizer_file(path)
        missing = [token for token in _CONTROL if tokenizer.token_to_id(token) is None]
        size, most = tokenizer.get_vocab_size(), config.text_config.vocab_size
        if missing or size > most:
            content = f"no {', '.join(missing)}" if missing else f"{size} tokens"
            raise CheckpointError(
                f"reading {path}: found {content}, expected the control tokens of Qwen3-ASR and at "
                f"most {most} tokens; use the tokenizer that belongs to the checkpoint"
            )
        return cls(tokenizer, config)

    def positions(self, num_frames: int) -> int:
        """Return the number of encoder positions of a window of 10 ms frames."""
        return self._audio.positions(num_frames)

    def prompt(self, positions: int, *, language: str | None, context: str) -> tuple[int, ...]:
        """Return the prompt of a window, with a placeholder for each of its positions."""
        self.encode(context)
        named = "" if language is None else self._naming(language)
        return (
            *self._ids(_BEFORE_CONTEXT + context + _BEFORE_AUDIO),
            *(self._placeholder,) * positions,
            *self._ids(_AFTER_AUDIO + named),
        )

    def markers(self, positions: int, words: Sequence[str]) -> tuple[int, ...]:
        """Return an aligner's tokens: a window, then spoken words, each before two markers."""
        times = self.timestamp, self.timestamp
        named = (token for word in words for token in (*self._ids(spoken(word)), *times))
        audio = (self._placeholder,) * positions
        return (*self._ids(_AUDIO_BEGINS), *audio, *self._ids(_AUDIO_ENDS), *named)

    def answer(self, tokens: Sequence[int], *, language: str | None) -> Answer:
        """Read a window's tokens: a language and the text, or the text alone if it was given.

        Source: transformers' `Qwen3ASRProcessor.parse_output`, without its removal of repetition.
        """
        first = 0
        if language is None and self._marker in tokens:
            first = tokens.index(self._marker) + 1
            named = self.decode(tokens[: first - 1]).strip().casefold()
            language = self._codes.get(named.removeprefix(_LANGUAGE).strip())
        text = (at for at in range(first, len(tokens)) if tokens[at] not in self._control)
        return Answer(language=language, text=tuple(text))

    def encode(self, text: str) -> tuple[int, ...]:
        """Convert text to tokens; raises ValueError for control tokens."""
        ids = self._ids(text)
        if not self._control.isdisjoint(ids):
            raise ValueError(
                f"found a control token of the checkpoint in {text[:40]!r}, expected text; "
                "remove it"
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Convert text tokens to text."""
        text_tokens = [token for token in tokens if token not in self._control]
        return self._tokenizer.decode(text_tokens, skip_special_tokens=False)

    def _naming(self, language: str) -> str:
        return f"{_LANGUAGE}{self.languages[language]}{_TEXT_FOLLOWS}"

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(encoding_of(self._tokenizer, text, words=False).ids)
