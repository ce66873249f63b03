"""Timestamps in text, merged chunks and grouped words, against transformers."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as reference

from corpus_asr.families.whisper.timestamps import (
    grouped_words,
    joined_sequences,
)
from tests.support.tokenizers import TokenizerPair, real_tokenizer, tiny_tokenizer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, TokenizerPair]:
    root = tmp_path_factory.mktemp("tokenizers")
    tiny_tokenizer(root / "tiny")
    real_tokenizer(root / "v3", cantonese=True)
    return {name: TokenizerPair(root / name) for name in ("tiny", "v3")}


@pytest.fixture(autouse=True)
def _quiet():
    # Theirs logs a warning for every text without a last timestamp.
    logging.getLogger("transformers").setLevel(logging.ERROR)


def merged(pair, outputs, timestamps, language=True):
    options = {"return_timestamps": timestamps, "return_language": language}
    return pair.agree("_decode_asr", outputs, time_precision=0.02, **options)


def token_ids(tokenizer):
    """Text mostly of few words, so that neighbors overlap; control tokens; times."""
    words = tokenizer.encode("ask not what your country", add_special_tokens=False)
    languages = [tokenizer.language_ids[code] for code in ("en", "de", "ja")]
    control = [tokenizer.sot, tokenizer.eot, tokenizer.start_of_prev, tokenizer.transcribe]
    begin = tokenizer.timestamp_begin
    return st.one_of(
        st.sampled_from(words),
        st.sampled_from(words),
        st.integers(0, 255),
        st.sampled_from([*languages, *control]),
        st.integers(begin, begin + 40),
        st.integers(begin, begin + 1500),
    )


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60)
def test_any_chunks_merge_as_in_transformers(pairs, data):
    ours = pairs["tiny"].ours
    step = st.sampled_from([0.0, 1.0, 2.5, 5.0])
    outputs = []
    for _ in range(data.draw(st.integers(1, 4))):
        ids = data.draw(st.lists(token_ids(ours), max_size=25))
        times = np.cumsum([data.draw(st.sampled_from([0.0, 0.1, 0.5])) for _ in ids])
        output = {"tokens": torch.tensor([ids], dtype=torch.int64), "token_timestamps": times[None]}
        if data.draw(st.booleans()):
            output["stride"] = (30.0, data.draw(step), data.draw(step))
        outputs.append(output)
    for timestamps in (True, False, "word"):
        for language in (True, False):
            merged(pairs["tiny"], outputs, timestamps, language)


def spoken(tokenizer, text: str, *, start: int, end: int) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.timestamp_begin + start, *ids, tokenizer.timestamp_begin + end]


@pytest.mark.parametrize("timestamps", [True, False, "word"])
def test_overlapping_chunks_of_real_text_merge_at_what_they_share(pairs, timestamps):
    ours, begun = pairs["v3"].ours, " The north wind and the sun were disputing which was the"
    left = spoken(ours, begun, start=0, end=1500)
    right = spoken(ours, " sun were disputing which was the stronger.", start=60, end=900)
    head = list(ours.prompt("en", "transcribe", True))
    outputs = [
        {
            "tokens": np.array([[*head, *ids, ours.eot]]),
            "token_timestamps": np.linspace(0, 29, len(ids) + 5)[None],
            "stride": stride,
        }
        for ids, stride in ((left, (30.0, 0.0, 5.0)), (right, (30.0, 5.0, 0.0)))
    ]
    found = merged(pairs["v3"], outputs, timestamps)
    assert found[0] == " The north wind and the sun were disputing which was the stronger."
    assert {chunk["language"] for chunk in found[1]["chunks"]} == {"english"}
    assert merged(pairs["v3"], [], timestamps)[0] == ""


@given(
    sequences=st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=4),
    timed=st.booleans(),
    data=st.data(),
)
@settings(max_examples=200)
def test_any_sequences_join_as_in_transformers(sequences, timed, data):
    starts = [
        data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for n in map(len, sequences)
    ]
    times = [[(float(k), float(k + 1)) for k in sorted(row)] for row in starts] if timed else []
    expected = reference._find_longest_common_sequence(sequences, times)
    tokens, spans = joined_sequences(sequences, times)
    assert (tokens, spans) == expected


LANGUAGE_TEXTS = {
    "english": " \"Don't,\" he said (twice): 'no -- no!' It's [here]. ½ ünïcödé €5... ",
    "japanese": "「北風と太陽」が、言い争っていました。",
    "chinese": "你好\uff0c世界\uff01",
    "german": " Straße, „Größe“ und 😀 so.",
    "cantonese": "佢哋、喺度",
    "russian": "Однажды северный ветер.",
}


@pytest.mark.parametrize("language", LANGUAGE_TEXTS)
def test_words_are_those_of_transformers(pairs, language):
    for text in LANGUAGE_TEXTS.values():
        ids = pairs["v3"].ours.encode(text, add_special_tokens=False)
        assert_equal_words(pairs["v3"], ids, language)


@given(
    ids=st.lists(st.integers(0, 300), max_size=15), language=st.sampled_from(["english", "thai"])
)
@settings(max_examples=150)
def test_any_tokens_group_as_in_transformers(pairs, ids, language):
    assert_equal_words(pairs["v3"], ids, language)


def assert_equal_words(pair, ids, language):
    words, _, positions = reference._combine_tokens_into_words(pair.theirs, ids, language)
    found = grouped_words(ids, language, pair.ours.decode)
    expected = list(zip(words, positions, strict=True))
    assert [(text, list(positions)) for text, positions in found] == expected
