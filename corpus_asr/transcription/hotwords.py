"""Hotwords as tokens: the automaton of a list, in the ways that a checkpoint may write it."""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

from corpus_asr.config.hotwords import Hotword
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.errors import ConfigError, ItemError

Spellings = Callable[[str], Collection[tuple[int, ...]]]
"""The tokens of each way to write a phrase; raises ValueError where there is none."""

BONUS = 3.0
"""Of each token but the first of a hotword of weight 1, in nats."""
FIRST_SHARE = 0.5
"""Of that for the first token, after which a greedy search cannot go back. Of the pairs that were
tried with whisper-tiny.en the one with the fewest errors."""

# Lists of recordings that are transcribed side by side.
_LISTS_KEPT = 64


def forms(phrase: str) -> tuple[str, ...]:
    """A phrase as given, in lower case, and as at the beginning of a sentence."""
    return tuple(dict.fromkeys((phrase, phrase.lower(), phrase[:1].upper() + phrase[1:])))


class HotwordTries:
    """Builds the automata of lists of hotwords, and keeps those of the latest."""

    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings
        self._latest = lru_cache(maxsize=_LISTS_KEPT)(self._built)

    def of(self, hotwords: tuple[Hotword, ...]) -> PhraseTrie | None:
        """Return the automaton; None without hotwords.

        Raises:
            ItemError: a phrase cannot be written, which must be one of this recording: those of the
                settings were checked.
        """
        try:
            return self._latest(hotwords) if hotwords else None
        except ValueError as error:
            raise ItemError(f"reading hotwords: {error}", kind="bad_hotwords") from error

    def _built(self, hotwords: tuple[Hotword, ...]) -> PhraseTrie:
        return PhraseTrie.of(
            (
                (tokens, BONUS * hotword.weight)
                for hotword in hotwords
                for tokens in self._spellings(hotword.phrase)
            ),
            first_share=FIRST_SHARE,
        )


def as_prompt(hotwords: Sequence[Hotword] | None) -> str | None:
    """The text of a prompt that names them, whatever their weights."""
    return ", ".join(hotword.phrase for hotword in hotwords) if hotwords else None


def check_hotwords(hotwords: Sequence[Hotword] | None, spellings: Spellings) -> None:
    """Refuse, by its key, a phrase that a checkpoint cannot write."""
    for hotword in hotwords or ():
        try:
            spellings(hotword.phrase)
        except ValueError as error:
            raise ConfigError(f"decoding.hotwords: {error}") from error
