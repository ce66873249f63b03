"""What is measured of segments, and errors that fall to the segments that have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.labelling.selection import (
    Comparisons,
    errors_by_piece,
    listed_hashes,
    measured,
    most_repeats,
    rate,
)
from corpus_asr.report.accuracy.scoring import Errors, Reference, aligned
from tests.support.tables import recording, segment

VERSION = {"size_bytes": 100, "etag": "v1"}


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 0), ("one two", 1), ("no no", 2), ("a b a b a b", 3), ("x a b c d e a b c d e y", 2),
        ("a a a b a a", 3), ("a b a", 1),
    ],
)  # fmt: skip
def test_words_in_a_row_are_counted(text: str, times: int) -> None:
    assert most_repeats(text.split()) == times


def test_a_segment_is_measured() -> None:
    text = " The cat, the cat and the Donaudampfschifffahrt: 12 of them, the cat said."
    ((row, _),) = measured(recording(segment(text, 1.0, 5.0)), VERSION, Comparisons())
    assert row["num_words"] == 13
    assert row["num_letters"] == 57
    assert row["longest_word"] == 21
    assert row["unique_words"] == pytest.approx(8 / 13)
    assert row["repeats"] == 2
    assert (row["etag"], row["wer"], row["disagreement"]) == ("v1", None, None)


def test_letters_are_words_where_words_are_not_parted() -> None:
    text = "你好你好你好世界和平万岁"
    ((row, _),) = measured(recording(segment(text, 0, 5, language="zh")), VERSION, Comparisons())
    assert row["num_words"] == 12
    assert (row["unique_words"], row["longest_word"]) == (None, None)
    assert row["repeats"] == 3


def test_texts_that_say_the_same_have_one_number_and_listed_ones_are_known() -> None:
    listed = listed_hashes(["Thanks for watching", "谢谢观看"])
    found = [
        *measured(
            recording(
                segment(" Thanks for watching!", 0, 1),
                segment(" thanks, for watching", 1, 2, language="de"),
                segment("谢谢观看。", 2, 3, language="zh"),
                segment(" Thanks for watching me", 3, 4),
            ),
            VERSION,
            Comparisons(),
            listed=listed,
        )
    ]
    assert [row["listed"] for row, _ in found] == [True, True, True, False]
    assert found[0][1] == found[1][1]


def test_segments_are_compared_with_another_run_and_with_a_transcript() -> None:
    ours = recording(segment(" Hello there.", 0, 1), segment(" It is 5 o'clock", 1, 2))
    other = recording(segment(" hello THERE it's six o'clock", 0, 2))
    said = Reference(uri="u", text="Hello bear. It is five o'clock.", language="en")
    rows = [row for row, _ in measured(ours, VERSION, Comparisons(other=other, reference=said))]
    assert [row["disagreement"] for row in rows] == [0.0, 0.25]
    assert [row["wer"] for row in rows] == [0.5, 0.0]
    assert [row["reference"] for row in rows] == [said.text, None]


_WORDS = st.lists(st.sampled_from("abcd"), max_size=6)


def rates(pieces: list[str], said: str) -> list[float]:
    return [rate(each) for each in errors_by_piece([p.split() for p in pieces], said.split())]


def test_each_error_counts_where_it_is() -> None:
    pieces = [["the", "cat"], ["sat", "in"], ["a", "hat", "hat"]]
    found = errors_by_piece(pieces, ["the", "cat", "sat", "on", "a", "hat"])
    assert found == [Errors(2, 0, 0, 0), Errors(1, 1, 0, 0), Errors(2, 0, 0, 1)]


def test_what_is_missing_within_a_segment_counts_there_alone() -> None:
    assert rates(["one three", "four"], "one two three four") == [1 / 3, 0]


def test_what_is_missing_between_two_segments_counts_against_both() -> None:
    assert rates(["one two", "five six"], "one two three four five six") == [0.5, 0.5]


def test_a_segment_of_which_nothing_was_said_is_all_wrong() -> None:
    assert rates(["thanks for watching", "hello"], "hello") == [1.0, 0.0]
    assert rates(["hello", ""], "") == [1.0, 0.0]
    assert rates([], "hello") == []


@given(st.lists(_WORDS, max_size=5), _WORDS)
def test_hits_substitutions_and_insertions_add_up_to_those_of_the_whole(
    pieces: list[list[str]], said: list[str]
) -> None:
    found = errors_by_piece(pieces, said)
    words = [word for piece in pieces for word in piece]
    if not words or not said:
        assert sum(each.insertions for each in found) == len(words)
        return
    whole = aligned(said, words)
    assert sum(each.hits for each in found) == whole.hits
    assert sum(each.substitutions for each in found) == whole.substitutions
    assert sum(each.insertions for each in found) == whole.insertions
    assert whole.deletions <= sum(each.deletions for each in found) <= 2 * whole.deletions


@given(st.lists(_WORDS, max_size=5))
def test_the_same_words_have_no_errors_however_they_are_cut(pieces: list[list[str]]) -> None:
    said = [word for piece in pieces for word in piece]
    assert not any(each.errors for each in errors_by_piece(pieces, said))
