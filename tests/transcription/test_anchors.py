"""Where recognized words stand in a text."""

import random

import pytest

from corpus_asr.transcription.anchors import find_pairs, folded

SENTENCE = (
    "the quick brown fox jumps over the lazy dog and then it went home to sleep under a large "
    "tree beside the river where nobody ever came before noon"
)
TEXT = SENTENCE.split()


def anchored(said: str, text: list[str] = TEXT) -> list[tuple[int, int]]:
    return [(pair.said, pair.given) for pair in find_pairs(said.split(), text) if pair.is_anchor]


@pytest.mark.parametrize(
    ("said", "given"),
    [
        (" ".join(TEXT), list(range(len(TEXT)))),
        ("Went home, to sleep under a LARGE tree!", list(range(12, 20))),
        # One word more, one less, one other: the words around them stay where they are.
        ("quick brown fox well jumps over lazy dog and when it went home",
         [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13]),
        # A page that is not read is skipped, whatever its length.
        ("the quick brown fox jumps over the lazy dog beside the river where nobody ever came "
         "before noon",
         [*range(9), *range(20, 29)]),
    ],
)  # fmt: skip
def test_words_are_found_in_order(said: str, given: list[int]) -> None:
    assert [index for _, index in anchored(said)] == given


def test_an_excerpt_is_found_in_one_piece_to_its_ends() -> None:
    said = "and so my fellow americans ask not what your country can do for you ask what you can do"
    # Its words are also said over a longer span, in order: where they stand side by side, they are.
    excerpt = ["what", "your", "country", "can", "do"]
    assert anchored(f"{said} for your country", excerpt) == [(7 + at, at) for at in range(5)]
    # What is said beyond it is not held against its last words.
    assert anchored(said, said.split()[:5]) == [(at, at) for at in range(5)]


@pytest.mark.parametrize("said", ["", "!", "a", "unlike anything a person over there said"])
def test_few_words_in_common_mark_no_place(said: str) -> None:
    assert len(anchored(said)) <= 1


def test_words_that_resemble_each_other_stand_for_each_other() -> None:
    pairs = find_pairs(
        ["the", "quik", "brown", "fox", "jumped", "over", "the", "lazy", "dog"], TEXT
    )
    assert [(p.said, p.given) for p in pairs if not p.is_anchor] == [(1, 1), (4, 4)]


def test_the_place_decides_between_two_that_fit() -> None:
    twice = TEXT + TEXT
    said = ["beside", "the", "river", "where", "nobody", "ever", "came"]
    for place, first in (((0.0, 0.3), 20), ((0.7, 1.0), 20 + len(TEXT))):
        assert find_pairs(said, twice, place=place)[0].given == first


def test_a_long_text_is_searched_with_every_fifth_word_wrong() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 8))) for _ in range(500)]
    text = [draw.choice(words) for _ in range(4000)]
    # Longer than the rows that are kept at once, so that the way back is made again in blocks.
    said = [word if draw.random() > 0.2 else draw.choice(words) for word in text[1500:1800]]
    pairs = [pair for pair in find_pairs(said, text) if pair.is_anchor]
    right = [pair for pair in pairs if pair.given == 1500 + pair.said]
    assert len(right) > 200
    # A wrong word may be one of its neighbors by chance.
    assert len(pairs) - len(right) <= 3


def test_words_are_compared_without_case_accents_and_marks() -> None:
    assert folded(" “Élan-Vital,” ") == "elanvital"
