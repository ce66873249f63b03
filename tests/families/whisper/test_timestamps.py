"""Cutting at timestamps; the written form is compared with transformers in test_tokenizer."""

from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.families.whisper.timestamps import (
    TimedTokens,
    split_timestamps,
    without_timestamps,
)

END, BEGIN = 10, 20
ids = st.lists(st.integers(0, BEGIN + 1500))


def split(*token_ids: int) -> tuple[TimedTokens, ...]:
    return split_timestamps(token_ids, end=END, timestamp_begin=BEGIN)


def test_stretches_lie_between_their_timestamps():
    found = split(12, BEGIN, 1, 2, BEGIN + 50, BEGIN + 50, 3, BEGIN + 1500, END)
    assert found == (
        TimedTokens(start_s=0.0, end_s=1.0, tokens=(1, 2)),
        TimedTokens(start_s=1.0, end_s=30.0, tokens=(3,)),
    )


def test_a_missing_timestamp_is_none():
    first, last = split(1, BEGIN + 5, 2)
    assert (first.start_s, first.end_s) == (None, 0.1)
    assert (last.start_s, last.end_s) == (0.1, None)


def test_nothing_comes_of_nothing():
    assert split() == split(BEGIN, BEGIN + 1, END) == ()


@given(ids)
def test_no_text_token_is_lost_or_moved(token_ids):
    kept = [token for stretch in split(*token_ids) for token in stretch.tokens]
    assert kept == [token for token in token_ids if token < END]


def test_written_timestamps_are_removed_from_text():
    assert without_timestamps("<|0.00|> a <|b|> 1.00<|29.98|>") == " a <|b|> 1.00"
