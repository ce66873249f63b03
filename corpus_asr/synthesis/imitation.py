"""Sentences that nobody wrote, of the words and turns that people use.

In: sentences, and the words that may be said. Out: others without end, each three words of which
follow one another as somewhere in them, or two. Knows no voices.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_START = ""
_LEAST_WORDS, _MOST_WORDS = 3, 14
_LOOSE_SHARE = 0.4  # of words, which follow the last one only, not the last two


def words_of(sentence: str) -> list[str]:
    """Return the words of a sentence in small letters, without what stands around them."""
    return _WORD.findall(sentence.lower())


def commonest_words(sentences: Iterable[str], count: int) -> frozenset[str]:
    """Return the words that are said most often; of equally common ones, those said first."""
    found = Counter(word for sentence in sentences for word in words_of(sentence))
    return frozenset(word for word, _ in found.most_common(count))


class Imitation:
    """What follows what in sentences.

    Each follower counts once, however often it follows, so that rare words are said too.

    Args:
        sentences: to be imitated.
        words: others are not said.
    """

    def __init__(self, sentences: Iterable[str], words: frozenset[str]) -> None:
        followers: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
        for sentence in sentences:
            before = (_START, _START)
            for said in sentence.split():
                if words.issuperset(words_of(said)):
                    followers[before][said] = followers[before[1:]][said] = None
                before = (before[1], said)
        self._followers = {context: tuple(said) for context, said in followers.items()}

    def sentences(self, draw: random.Random) -> Iterator[str]:
        """Yield sentences without end; none where nothing can be said."""
        while self._followers:
            said = self._said(draw)
            if said:
                yield said

    def _said(self, draw: random.Random) -> str:
        """Return a sentence, an empty one where it comes to no end."""
        said: list[str] = []
        before = (_START, _START)
        while len(said) < _MOST_WORDS:
            context = before[1:] if draw.random() < _LOOSE_SHARE else before
            following = self._followers.get(context) or self._followers.get(before[1:])
            if following is None:
                return ""
            said.append(draw.choice(following))
            before = (before[1], said[-1])
            if said[-1][-1] in ".!?":
                found = " ".join(said)
                return found[0].upper() + found[1:] if len(said) >= _LEAST_WORDS else ""
        return ""
