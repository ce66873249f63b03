"""Sentences that nobody wrote."""

import random
from itertools import islice, pairwise

from corpus_asr.synthesis.imitation import Imitation, commonest_words, words_of

SENTENCES = (
    "The old man saw the river.",
    "The river was cold, and the old woman went home.",
    "Don't go home before the old river was cold.",
    "A zebra saw the man.",
)
WORDS = commonest_words(SENTENCES, 12)


def test_words_are_taken_out_of_what_stands_around_them() -> None:
    assert words_of("Don't GO -- she said, 'tis 'late'.") == [
        "don't", "go", "she", "said", "tis", "late",
    ]  # fmt: skip


def test_the_commonest_words_are_told_the_same_every_time() -> None:
    assert commonest_words(SENTENCES, 3) == {"the", "river", "old"}
    assert len(WORDS) == 12
    assert "zebra" not in WORDS


def test_only_words_that_follow_one_another_do_so_again() -> None:
    pairs = {pair for sentence in SENTENCES for pair in pairwise(sentence.split())}
    drawn = list(islice(Imitation(SENTENCES, WORDS).sentences(random.Random(0)), 200))
    assert len(set(drawn)) > len(SENTENCES)
    for sentence in drawn:
        said = sentence.split()
        assert WORDS.issuperset(words_of(sentence))
        assert set(pairwise(said)) <= pairs
        assert 3 <= len(said) <= 14
        assert sentence[0].isupper()
        assert sentence[-1] == "."


def test_a_seed_decides_what_is_said() -> None:
    first, again, other = (
        list(islice(Imitation(SENTENCES, WORDS).sentences(random.Random(seed)), 20))
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_nothing_is_said_without_words() -> None:
    assert list(Imitation(SENTENCES, frozenset()).sentences(random.Random(0))) == []
    assert list(Imitation([], WORDS).sentences(random.Random(0))) == []
