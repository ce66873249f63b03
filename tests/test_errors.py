"""Texts of any origin fit into tables, logs and messages."""

import json
import logging
import pickle
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from corpus_asr.errors import MAX_MESSAGE_CHARACTERS, DecodeError, FetchError, ItemError, encodable
from corpus_asr.stages.parts import failure_fields

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("\0\u202e"))


@given(ANY_TEXT)
def test_any_text_becomes_one_that_utf8_can_write_and_stays_as_it_is_if_it_could(text: str) -> None:
    safe = encodable(text)
    assert pa.array([safe]).to_pylist() == [safe]
    if not any("\ud800" <= each <= "\udfff" for each in text):
        assert safe == text


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # pytest-xdist cannot send what the log of a test says of lone surrogates.
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@given(ANY_TEXT)
@example("\ud800" * 1_000_000)
def test_failures_hold_any_text_in_bounded_space(text: str) -> None:
    for error in (
        DecodeError(text),
        FetchError(text, uri="a"),
        RuntimeError(text),
        OSError(5, text),
    ):
        fields = failure_fields(error, stage="extract")
        message = fields["error_message"]
        assert pa.array([message]).to_pylist() == [message]
        assert len(message) <= MAX_MESSAGE_CHARACTERS + 3
        json.dumps(fields).encode()
    copy = pickle.loads(pickle.dumps(ItemError(text, kind="x")))
    assert str(copy) == str(ItemError(text))
