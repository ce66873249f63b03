"""Sentences to speak."""

import random
from itertools import islice
from pathlib import Path

import pytest

from corpus_asr.synthesis.sentences import drawn_sentences, few_digits, spelled, written_sentences


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (1000, "one thousand"),
        (2005, "two thousand and five"),
        (30_420, "thirty thousand four hundred and twenty"),
        (999_999, "nine hundred and ninety nine thousand nine hundred and ninety nine"),
    ],
)
def test_numbers_are_spelled(number: int, words: str) -> None:
    assert spelled(number) == words


def test_drawn_sentences_are_many_and_the_same_for_the_same_seed() -> None:
    first, again, other = (
        list(islice(drawn_sentences(random.Random(seed)), 500)) for seed in (1, 1, 2)
    )
    assert first == again
    assert len(set(first) | set(other)) > 950
    for sentence in first:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert not any(letter.isdigit() for letter in sentence)
        assert "  " not in sentence


def test_few_digits_are_mostly_one() -> None:
    draw = random.Random(0)
    said = [few_digits(draw).split() for _ in range(300)]
    assert {word for words in said for word in words} == {spelled(digit) for digit in range(10)}
    assert {len(words) for words in said} == {1, 2, 3}
    assert sum(len(words) == 1 for words in said) > 150


def test_written_sentences_are_those_that_can_be_read_aloud(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(
        "It was late. Nobody came to the\ndoor for 3 days. She said (softly) no.\n%\n"
        "Who would have thought it? Go.",
        encoding="utf-8",
    )
    assert list(written_sentences(path)) == ["It was late.", "Who would have thought it?"]


def test_examples_of_wordnet_become_sentences(tmp_path: Path) -> None:
    path = tmp_path / "data.verb"
    path.write_text(
        "  1 This software and database is being provided to you\n"
        '00001740 29 v 01 breathe 0 | draw air; "I can breathe better; the air is clean"; "go"\n'
        '00002325 29 v 01 turn 0 | rotate; "turn the page"; "Who turned?"; "the BBC turned up"\n',
        encoding="utf-8",
    )
    assert list(written_sentences(path)) == [
        "I can breathe better; the air is clean.",
        "Turn the page.",
    ]
