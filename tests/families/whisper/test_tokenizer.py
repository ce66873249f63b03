"""Whisper's tokens, prompts and timestamps against transformers and openai-whisper."""

import itertools
import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper import tokenization_whisper as reference

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.timestamps import grouped_words
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.languages import LANGUAGES
from tests.support.tokenizers import KINDS, TokenizerPair


def assert_decodes_equal(pair, ids):
    for skip, timestamps in itertools.product((False, True), repeat=2):
        pair.agree("decode", ids, skip_special_tokens=skip, decode_with_timestamps=timestamps)


# Against transformers


def test_every_text_of_the_data_encodes_and_decodes_as_in_transformers(real, speech):
    ours, theirs = real
    lines = [p.read_text().splitlines() for p in sorted(speech.glob("*/manifest.jsonl"))]
    found = {row.get("text") for rows in lines for row in map(json.loads, rows)}
    texts = sorted(text for text in found if text)
    assert len(texts) > 500
    for text, expected in zip(texts, theirs(texts)["input_ids"], strict=True):
        ids = ours.encode(text)
        assert ids == expected
        assert ours.decode(ids) == theirs.decode(expected)
        assert ours.decode(ids, skip_special_tokens=True) == text
        assert ours.decode_text(ids) == text


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in ("tiny", "v3") else pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_every_token_is_the_same(pairs, kind):
    ours, theirs = pairs[kind]
    ids = list(range(len(theirs)))
    tokens = theirs.convert_ids_to_tokens(ids)
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.convert_ids_to_tokens(ids) == tokens
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == tokens[: ours.eot] + list(
        tokens[ours.timestamp_begin :]
    )
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == ids
    assert ours.convert_tokens_to_ids("no such") == theirs.convert_tokens_to_ids("no such")
    assert ours.convert_ids_to_tokens(len(ours)) is theirs.convert_ids_to_tokens(len(ours)) is None


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8")))
@pytest.mark.parametrize("kind", ["tiny", "v3"])
def test_any_text_encodes_as_in_transformers_and_comes_back(pairs, kind, text):
    ids, ours = pairs[kind].agree("encode", text), pairs[kind].ours
    if all(i < ours.eot for i in ours.encode(text, add_special_tokens=False)):
        assert ours.decode_text(ids) == text


@settings(max_examples=50)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["tiny", "v3"])
def test_any_ids_decode_as_in_transformers(pairs, kind, data):
    ours = pairs[kind].ours
    token = st.one_of(
        st.integers(0, len(ours) + 2),
        st.integers(0, 255),  # bytes, mostly no UTF-8
        st.integers(ours.eot, len(ours)),
        st.sampled_from([ours.start_of_prev, ours.sot, ours.timestamp_begin]),
        st.integers(ours.timestamp_begin, ours.timestamp_begin + 20),
    )
    assert_decodes_equal(pairs[kind], data.draw(st.lists(token)))


def test_prefixes_are_those_of_transformers(folders):
    pair = TokenizerPair(folders["v3"])
    for position, (code, name) in enumerate(LANGUAGES.items()):
        options: dict[str, Any] = {
            "language": (code, name)[position % 2],
            "task": ("transcribe", "translate")[position % 3 % 2],
            "predict_timestamps": position % 5 == 0,
        }
        pair.agree("set_prefix_tokens", **options)
        pair.agree("encode", "a b")
        assert pair.ours.encode("") == [*pair.ours.prefix_tokens, pair.ours.eot]


def test_settings_of_labels_are_given_or_changed_later(folders, tmp_path):
    options = {"language": "spanish", "task": "translate", "predict_timestamps": True}
    ours, theirs = TokenizerPair(folders["v2"], **options)
    theirs.save_pretrained(tmp_path)
    assert WhisperTokenizer.from_pretrained(tmp_path).prefix_tokens == theirs.prefix_tokens
    assert WhisperTokenizer.from_pretrained(tmp_path, language="de").language == "de"
    assert ours.prefix_tokens == theirs.prefix_tokens == [50258, 50262, 50358]
    for changes in ({"language": "fr"}, {"task": "transcribe"}, {"predict_timestamps": False}):
        ours.set_prefix_tokens(**changes)
        theirs.set_prefix_tokens(**changes)
        assert ours.prefix_tokens == theirs.prefix_tokens
    assert ours("a").input_ids == theirs("a").input_ids
    ours.language, ours.task, ours.predict_timestamps = "de", "translate", True
    names = ["<|startoftranscript|>", "<|de|>", "<|translate|>"]
    assert ours.prefix_tokens == ours.convert_tokens_to_ids(names)


def test_prompt_ids_are_those_of_transformers(pairs):
    ours, theirs = pairs["v2"]
    for text in ("Mr. Quilter", "  padded ", "ünïcode", ""):
        found = pairs["v2"].agree("get_prompt_ids", text)
        assert ours.get_prompt_ids(text, return_tensors=None) == found.tolist()
    for text in ("a <|endoftext|>", "<|1.00|>"):
        with pytest.raises(ValueError, match="disallowed special token"):
            theirs.get_prompt_ids(text)
        with pytest.raises(ValueError, match="found the special token"):
            ours.get_prompt_ids(text)


def test_previous_text_is_left_out_of_batches_too(pairs):
    # The reference documents say so; transformers 5.23 does it for single sequences only.
    ours, _ = pairs["v2"]
    said = [ours.sot, *ours.encode(" hello", add_special_tokens=False), ours.eot]
    ids = [ours.start_of_prev, *ours.encode(" before", add_special_tokens=False), *said]
    assert ours.decode(ids, skip_special_tokens=True) == " hello"
    assert ours.batch_decode([ids, said], skip_special_tokens=True) == [" hello", " hello"]


# Against openai-whisper


@pytest.mark.parametrize("kind", ["v2", "v3", "english"])
def test_control_tokens_are_those_of_openai_whisper(pairs, openai, kind):
    ours, theirs = pairs[kind].ours, openai[kind]
    for name in ("eot", "sot", "transcribe", "translate", "no_timestamps", "timestamp_begin"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.no_speech, ours.start_of_prev) == (theirs.no_speech, theirs.sot_prev)
    assert ours.is_multilingual == (kind != "english")
    if ours.is_multilingual:
        expected = zip(theirs.all_language_codes, theirs.all_language_tokens, strict=True)
        assert ours.language_ids == dict(expected)
    else:
        assert ours.language_ids == {}


def test_prompts_are_those_of_openai_whisper(pairs, openai):
    ours = pairs["v3"].ours
    for code, task in itertools.product(ours.language_ids, ("transcribe", "translate")):
        theirs = replace(openai["v3"], language=code, task=task)
        assert ours.prompt(LANGUAGES[code], task, True) == theirs.sot_sequence
        assert ours.prompt(code, task, False) == theirs.sot_sequence_including_notimestamps
    english = pairs["english"].ours
    for language in (None, "en", "English"):
        assert english.prompt(language, "transcribe", True) == openai["english"].sot_sequence
        assert english.prompt(language, "transcribe", False) == (english.sot, english.no_timestamps)


# What it refuses, and what it takes from elsewhere


def test_timestamps_follow_by_position_where_the_files_end_before_them(folders, tmp_path):
    content = json.loads((folders["tiny"] / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["special"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    short = WhisperTokenizer.from_pretrained(tmp_path)
    whole = WhisperTokenizer.from_pretrained(folders["tiny"])
    assert len(short) == len(whole) - 1501
    assert short.timestamp_begin == whole.timestamp_begin == whole.convert_tokens_to_ids("<|0.00|>")
    ids = [
        short.timestamp_begin,
        *whole.encode("a", add_special_tokens=False),
        short.timestamp_begin + 54,
    ]
    assert short.decode(ids, decode_with_timestamps=True) == "<|0.00|>a<|1.08|>"
    assert short.decode_text(ids) == short.decode(ids) == "a"


def test_generation_config_says_whether_a_model_is_multilingual(folders, tmp_path):
    (tmp_path / "tokenizer.json").symlink_to(folders["v2"] / "tokenizer.json")
    assert WhisperTokenizer.from_pretrained(tmp_path).is_multilingual
    (tmp_path / "generation_config.json").write_text('{"is_multilingual": false}')
    english = WhisperTokenizer.from_pretrained(tmp_path)
    assert (english.is_multilingual, english.language_ids) == (False, {})


def test_prompts_that_a_model_cannot_follow_are_refused(pairs):
    for kind, language, task, message in (
        ("v2", None, "transcribe", "found no language, expected one of its 99"),
        ("v2", "yue", "transcribe", r"cantonese \(yue\) is not among the 99 languages"),
        ("v2", "klingon", "transcribe", "no such language"),
        ("v2", "en", "summarize", "the task 'summarize': expected one of transcribe, translate"),
        ("english", "de", "transcribe", "an English-only Whisper model"),
        ("english", "en", "translate", "an English-only Whisper model"),
    ):
        with pytest.raises(ValueError, match=message):
            pairs[kind].ours.prompt(language, task, True)


def test_files_that_hold_no_tokenizer_are_a_checkpoint_error(folders, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(folders["tiny"] / name)
    with pytest.raises(CheckpointError, match=r"found no <\|startoftranscript\|> among 457 tokens"):
        WhisperTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(folders["tiny"] / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"language": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: language is 3"):
        WhisperTokenizer.from_pretrained(tmp_path)


@pytest.fixture(autouse=True)
def _quiet():
    # Theirs logs a warning for every text without a last timestamp.
    logging.getLogger("transformers").setLevel(logging.ERROR)


def merged(pair, outputs, timestamps, language=None):
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


@given(data=st.data())
@settings(max_examples=60)
def test_any_recording_splits_as_in_transformers(pairs, data):
    ids = data.draw(st.lists(token_ids(pairs["tiny"].ours), max_size=60))
    times = np.cumsum([data.draw(st.sampled_from([0.0, 0.1, 0.5])) for _ in ids])
    output = {"tokens": torch.tensor([ids], dtype=torch.int64), "token_timestamps": times[None]}
    for timestamps in (True, None, "word"):
        merged(pairs["tiny"], [output], timestamps)


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
