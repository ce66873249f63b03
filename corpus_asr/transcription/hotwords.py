"""Hotword lists as token automata, in every spelling that a checkpoint may produce."""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

from corpus_asr.config.hotwords import Hotword
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.errors import ConfigError, ItemError

Spellings = Callable[[str], Collection[tuple[int, ...]]]
"""Returns the token sequences of each spelling of a phrase; raises ValueError without any."""

BONUS = 3.0
"""Bonus in nats of each token after the first, for a hotword of weight 1."""
FIRST_SHARE = 0.5
"""Fraction of the bonus for the first token, after which greedy search cannot backtrack. Of the
tested pairs with whisper-tiny.en, this one had the fewest errors."""

# Number of cached lists, for recordings transcribed in parallel.
_LISTS_KEPT = 64


def forms(phrase: str) -> tuple[str, ...]:
    """Return a phrase as given, in lower case and capitalized."""
    return tuple(dict.fromkeys((phrase, phrase.lower(), phrase[:1].upper() + phrase[1:])))


class HotwordTries:
    """Builds the automata of hotword lists and caches the most recent ones."""

    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings
        self._latest = lru_cache(maxsize=_LISTS_KEPT)(self._built)

    def of(self, hotwords: tuple[Hotword, ...]) -> PhraseTrie | None:
        """Return the automaton; None without hotwords.

        Raises:
            ItemError: a phrase of this recording cannot be spelled; those of the settings were
                checked before.
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
    """Return the prompt text that lists the hotwords, ignoring their weights."""
    return ", ".join(hotword.phrase for hotword in hotwords) if hotwords else None


def check_hotwords(hotwords: Sequence[Hotword] | None, spellings: Spellings) -> None:
    """Raise `ConfigError`, naming the key, for a phrase that a checkpoint cannot spell."""
    for hotword in hotwords or ():
        try:
            spellings(hotword.phrase)
        except ValueError as error:
            raise ConfigError(f"decoding.hotwords: {error}") from error
