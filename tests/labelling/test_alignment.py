"""Errors fall to the segments that have them, wherever the other text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.labelling.measures import errors_by_piece, rate
from corpus_asr.report.accuracy import Errors, aligned

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
