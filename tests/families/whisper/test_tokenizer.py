"""Whisper's tokenizer against transformers and openai-whisper; calls and padding beside it."""

import copy
import itertools
import json
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import whisper.tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.languages import LANGUAGES
from corpus_asr.text.normalize import american_spellings
from tests.support.tokenizers import END, TokenizerPair, real_tokenizer, tiny_tokenizer

KINDS = ["tiny", "tiny-english", "v2", "v3", "english"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One folder per layout: two small ones and the three real vocabularies."""
    root = tmp_path_factory.mktemp("tokenizers")
    tiny_tokenizer(root / "tiny")
    (root / "tiny/normalizer.json").write_text(json.dumps(dict(american_spellings())))
    tiny_tokenizer(root / "tiny-english", multilingual=False)
    assert real_tokenizer(root / "v2") == 51865
    assert real_tokenizer(root / "v3", cantonese=True) == 51866
    assert real_tokenizer(root / "english", multilingual=False) == 51864
    return {kind: root / kind for kind in KINDS}


class Pairs:
    """Our tokenizer and that of transformers by kind, loaded once each.

    No dict: Hypothesis prints its arguments, and a transformers tokenizer prints its vocabulary.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self.load = cache(lambda kind: TokenizerPair(folders[kind]))

    def __getitem__(self, kind: str) -> TokenizerPair:
        return self.load(kind)


@pytest.fixture(scope="session")
def pairs(folders) -> Pairs:
    return Pairs(folders)


@pytest.fixture(scope="session")
def real(checkpoint) -> TokenizerPair:
    return TokenizerPair(checkpoint)


@pytest.fixture(scope="session")
def folder(folders) -> Path:
    """The small layout, with spellings beside it."""
    return folders["tiny"]


@pytest.fixture(scope="session")
def pair(folder) -> TokenizerPair:
    return TokenizerPair(folder)


@pytest.fixture
def ours(folder) -> WhisperTokenizer:
    """One to be changed."""
    return WhisperTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def openai():
    with warnings.catch_warnings():
        # openai-whisper leaves its vocabulary files open.
        warnings.simplefilter("ignore", ResourceWarning)
        return {
            "v2": whisper.tokenizer.get_tokenizer(True, num_languages=99),
            "v3": whisper.tokenizer.get_tokenizer(True, num_languages=100),
            "english": whisper.tokenizer.get_tokenizer(False),
        }


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


@pytest.mark.parametrize("kind", ["tiny", "v3"])
def test_every_special_token_in_a_text_is_encoded_as_itself(pairs, kind):
    ours = pairs[kind].ours
    special = range(ours.eot, len(ours))
    text = "".join(f"{ours.convert_ids_to_tokens(i)} a" for i in special)
    assert_decodes_equal(pairs[kind], pairs[kind].agree("encode", text))
    for i in special:
        token = ours.convert_ids_to_tokens(i)
        assert ours.encode(token, add_special_tokens=False) == [i]


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


def test_prefixes_and_decoder_prompts_are_those_of_transformers(folders):
    pair = TokenizerPair(folders["v3"])
    for position, (code, name) in enumerate(LANGUAGES.items()):
        options: dict[str, Any] = {
            "language": (code, name)[position % 2],
            "task": ("transcribe", "translate")[position % 3 % 2],
            "no_timestamps": position % 5 > 0,
        }
        pair.agree("get_decoder_prompt_ids", **options)
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


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8")).filter(lambda text: "<|" not in text))
@pytest.mark.parametrize("kind", ["v2", "english"])
def test_any_text_encodes_as_in_openai_whisper(pairs, openai, kind, text):
    assert pairs[kind].ours.encode(text, add_special_tokens=False) == openai[kind].encode(text)


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


def test_labels_with_an_unknown_setting_change_nothing(ours):
    before = ours.prefix_tokens
    for options in ({"language": "klingon"}, {"task": "Transcribe"}):
        with pytest.raises(ValueError, match="choosing the"):
            ours.set_prefix_tokens(predict_timestamps=True, **options)
        assert ours.prefix_tokens == before


def test_files_that_hold_no_tokenizer_are_a_checkpoint_error(folders, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(folders["tiny"] / name)
    with pytest.raises(CheckpointError, match=r"found no <\|startoftranscript\|> among 457 tokens"):
        WhisperTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(folders["tiny"] / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"language": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: language is 3"):
        WhisperTokenizer.from_pretrained(tmp_path)


# Every option of decoding


def written(ours, *parts: str | float) -> list[int]:
    """Encode texts and, as numbers, timestamps in seconds."""
    ids = []
    for part in parts:
        if isinstance(part, str):
            ids += ours.encode(part, add_special_tokens=False)
        else:
            ids.append(ours.timestamp_begin + round(part / 0.02))
    return ids


@given(data=st.data())
@settings(max_examples=150)
def test_any_ids_have_the_offsets_of_transformers(pair, data):
    ours = pair.ours
    begin = ours.timestamp_begin
    token = st.one_of(
        st.integers(0, 255),
        st.integers(begin, begin + 30),
        st.integers(begin, begin + 1500),
        st.sampled_from([ours.sot, ours.eot, ours.start_of_prev]),
    )
    ids = data.draw(st.lists(token, max_size=20))
    for options in (
        {},
        {"skip_special_tokens": True},
        {"decode_with_timestamps": True},
        {"time_precision": 0.04},
        {"time_precision": 0.04, "decode_with_timestamps": True},
    ):
        pair.agree("decode", ids, output_offsets=True, **options)


def test_offsets_are_the_stretches_with_their_times(pair):
    ours = pair.ours
    ids = written(ours, 0.0, " ask", 1.0, 1.0, " not", 2.5, 0.5, " what", 1.5)
    found = pair.agree("decode", ids, output_offsets=True)
    assert found == {
        "text": " ask not what",
        "offsets": [
            {"text": " ask", "timestamp": (0.0, 1.0)},
            {"text": " not", "timestamp": (1.0, 2.5)},
            {"text": " what", "timestamp": (30.5, 31.5)},
        ],
    }
    # Theirs raises for several sequences, though the reference documents show them.
    assert ours.batch_decode([ids, []], output_offsets=True) == [found, {"text": "", "offsets": []}]
    assert ours.decode(np.array([ids]), output_offsets=True) == [found]


SPOKEN = "Mr. Colour won't pay two hundred dollars [sic] in 1,000 cafés"


def test_text_is_normalized_as_in_transformers(pair):
    ours = pair.ours
    ids = [*ours.prefix_tokens, *written(ours, 0.0, SPOKEN, 1.0), ours.eot]
    pair.agree("decode", ids, normalize=True, output_offsets=True)
    for options in (
        {"normalize": True},
        {"basic_normalize": True},
        {"basic_normalize": True, "remove_diacritics": True},
        {"normalize": True, "basic_normalize": True},
        {"normalize": True, "skip_special_tokens": True},
        {"normalize": True, "decode_with_timestamps": True},
    ):
        pair.agree("decode", ids, **options)
        pair.agree("batch_decode", [ids, ids[3:]], **options)


def test_normalizing_uses_the_spellings_of_the_checkpoint(pair, tmp_path):
    assert pair.agree("normalize", "Colour") == "color"
    assert pair.agree("basic_normalize", "é, x") == "é x"
    assert pair.agree("basic_normalize", "é, x", remove_diacritics=True) == "e x"
    tiny_tokenizer(tmp_path)
    own = WhisperTokenizer.from_pretrained(tmp_path)
    assert own.english_spelling_normalizer is None
    assert own.normalize("Colour") == "color"
    (tmp_path / "normalizer.json").write_text('{"colour": "hue"}')
    assert WhisperTokenizer.from_pretrained(tmp_path).normalize("Colour") == "hue"


def test_blanks_before_punctuation_go_only_where_somebody_asks(pair, folder):
    # The files of published checkpoints ask for it; transformers does not listen to them either.
    text = "it 's , do n't . ' a ' !"
    ids = pair.ours.encode(text, add_special_tokens=False)
    tight = pair.agree("clean_up_tokenization", text)
    assert pair.agree("decode", ids) == text != tight
    assert pair.ours.decode(ids, clean_up_tokenization_spaces=True) == tight
    asked = WhisperTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=True)
    assert asked.decode(ids) == tight
    assert asked.decode(ids, decode_with_timestamps=True) == tight
    assert asked.decode(ids, clean_up_tokenization_spaces=False) == text
    assert asked.batch_decode([ids]) == [tight]


def test_sequences_come_in_any_form(pair):
    ours, theirs = pair
    for ids, rows in (
        ([[5, 6], [7]], [[5, 6], [7]]),
        ([5, 6], [[5, 6]]),
        (np.array([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        (torch.tensor([[5, 6]]), [[5, 6]]),
        (torch.tensor([5, 6]), [[5, 6]]),
        ([torch.tensor([5, 6]), torch.tensor([7])], [[5, 6], [7]]),
        ([[], [5]], [[], [5]]),
        ((np.int64(5), 6), [[5, 6]]),
        (5, [[5]]),
    ):
        assert ours.batch_decode(ids) == theirs.batch_decode(rows) == [ours.decode(r) for r in rows]
        assert ours.decode(ids) in (ours.batch_decode(ids), ours.batch_decode(ids)[0])


def test_what_calls_return_decodes_by_itself_and_labels_do_not(ours):
    assert ours.decode(ours("ask not"), skip_special_tokens=True) == "ask not"
    assert ours.decode(ours(["ask", "not"]), skip_special_tokens=True) == ["ask", "not"]
    assert ours.batch_decode([]) == []
    assert ours.decode([]) == ""
    with pytest.raises(ValueError, match=r"found -100, expected ids from 0"):
        ours.batch_decode([[5, -100]])


@given(ids=st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=100)
def test_broken_characters_become_what_was_asked_for(pair, ids):
    reader = copy.copy(pair.ours)
    reader.errors = "surrogateescape"
    data = b"".join(reader.decode([i]).encode("utf-8", "surrogateescape") for i in ids)
    for errors in ("replace", "ignore", "backslashreplace"):
        reader.errors = errors
        assert reader.decode(ids) == data.decode("utf-8", errors)


def test_broken_characters_may_be_refused(folder):
    strict = WhisperTokenizer.from_pretrained(folder, errors="strict")
    cut = strict.encode("北", add_special_tokens=False)[:1]
    with pytest.raises(ValueError, match="utf-8"):
        strict.decode(cut)
    assert strict.decode([*cut, strict.eot][1:], skip_special_tokens=True) == ""
    with pytest.raises(ValueError, match="errors='explode'"):
        WhisperTokenizer.from_pretrained(folder, errors="explode")


# Loading, changing and saving


TEXT = "ask not <|startofprev|> what<|0.02|> 北風"


def assert_same(found, expected):
    ids = expected.encode(TEXT)
    assert found.encode(TEXT) == ids
    assert found.decode(ids) == expected.decode(ids)
    assert found.get_vocab() == expected.get_vocab()
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "all_special_ids"):
        assert getattr(found, name) == getattr(expected, name), name


def test_files_load_by_name_as_in_transformers(folder, pair):
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    whole = folder / "tokenizer.json"
    for found in (
        WhisperTokenizer(vocab, merges, pad_token=END),
        WhisperTokenizer(str(vocab), str(merges), None, None, END, END, END, False, pad_token=END),
        WhisperTokenizer(tokenizer_file=whole, pad_token=END),
    ):
        assert_same(found, pair.theirs)
    spanish = WhisperTokenizer(vocab, merges, language="spanish", task="translate")
    assert spanish.prefix_tokens[1:3] == spanish.convert_tokens_to_ids(["<|es|>", "<|translate|>"])
    assert (spanish.pad_token, spanish.pad_token_id) == (None, None)


def test_a_blank_before_every_text_is_encoded_as_in_transformers(folder, tmp_path):
    pair = TokenizerPair(folder, add_prefix_space=True)
    expected = pair.agree("encode", "ask")
    assert expected != pair.ours.encode("")
    pair.ours.save_pretrained(tmp_path)
    assert WhisperTokenizer.from_pretrained(tmp_path).encode("ask") == expected


def test_files_that_are_not_there_are_named(folder, tmp_path):
    vocab, merges = {"vocab_file": folder / "vocab.json"}, {"merges_file": folder / "merges.txt"}
    with pytest.raises(ValueError, match="expected both, or tokenizer_file"):
        WhisperTokenizer(**vocab)
    for files, name in (
        ({"tokenizer_file": tmp_path / "none.json"}, "none.json"),
        ({**vocab, "merges_file": tmp_path / "merges.txt"}, "merges.txt"),
        ({**vocab, **merges, "normalizer_file": tmp_path / "normal.json"}, "normal.json"),
    ):
        with pytest.raises(CheckpointError, match=f"reading .*{name}"):
            WhisperTokenizer(**files)
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"laguage": "fr"}, TypeError, "the settings laguage, expected some of"),
        ({"pad_token": "<pad>"}, ValueError, "setting pad_token: found no token"),
        ({"padding_side": "top"}, ValueError, "padding_side: found 'top'"),
    )
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            WhisperTokenizer.from_pretrained(folder, **options)


def test_saving_writes_what_both_load(folder, tmp_path):
    ours = WhisperTokenizer.from_pretrained(folder, language="fr", padding_side="left")
    ours.add_tokens(["<new>"])
    ours.add_special_tokens({"pad_token": "<|pad|>"})
    paths = ours.save_pretrained(tmp_path / "made")
    assert sorted(Path(p).name for p in paths) == sorted(
        path.name for path in (tmp_path / "made").iterdir()
    )
    for cls in (WhisperTokenizer, transformers.WhisperTokenizer):
        again = cls.from_pretrained(tmp_path / "made")
        assert again.prefix_tokens == ours.prefix_tokens
        assert again.encode(TEXT + "<new> <|pad|>") == ours.encode(TEXT + "<new> <|pad|>")
        assert (again.pad_token, again.padding_side) == ("<|pad|>", "left")
        assert again("a", padding="max_length", max_length=9)["input_ids"][0] == ours.pad_token_id
    (tmp_path / "made" / "tokenizer.json").unlink()
    assert WhisperTokenizer.from_pretrained(tmp_path / "made").get_vocab() == ours.get_vocab()


def test_saving_the_vocabulary_writes_what_the_checkpoint_had(ours, folder, tmp_path):
    vocab, merges, normalizer = ours.save_vocabulary(tmp_path, filename_prefix="x")
    assert [Path(p).name for p in (vocab, merges, normalizer)] == [
        "x-vocab.json",
        "x-merges.txt",
        "x-normalizer.json",
    ]
    assert json.loads(Path(vocab).read_text()) == json.loads((folder / "vocab.json").read_text())
    assert Path(merges).read_text() == (folder / "merges.txt").read_text()
    assert json.loads(Path(normalizer).read_text())["colour"] == "color"
    with pytest.raises(NotADirectoryError, match="found no folder"):
        ours.save_vocabulary(tmp_path / "none")


def test_roles_of_tokens_are_those_of_transformers(pair):
    ours, theirs = pair
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.additional_special_tokens == ours.all_special_tokens[1:]
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token") == END
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id") == ours.eot
    for name in ("padding_side", "truncation_side", "model_max_length", "pad_token_type_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.model_input_names) == theirs.model_input_names
    assert ours.get_added_vocab() == theirs.get_added_vocab() == ours.added_tokens_encoder
    added = {i: str(token.content) for i, token in ours.added_tokens_decoder.items()}
    assert added == {i: str(token) for i, token in theirs.added_tokens_decoder.items()}
    assert ours.vocab == theirs.vocab
    assert bool(ours)


def test_roles_may_be_given_to_other_tokens(ours):
    ours.pad_token = "<|nospeech|>"
    assert ours.pad_token_id == ours.no_speech
    ours.eos_token_id = ours.no_speech
    assert ours.eos_token == "<|nospeech|>"
    assert ours.encode("a")[-1] == ours.no_speech
    ours.unk_token = None
    with pytest.raises(ValueError, match=r"'none such': found no such token"):
        ours.convert_tokens_to_ids("none such")
    for name, value, message in (
        ("bos_token", "none such", "setting bos_token: found no token 'none such'"),
        ("pad_token_id", 9999, "setting pad_token_id: found no token 9999"),
        ("truncation_side", "up", "choosing truncation_side: found 'up'"),
    ):
        with pytest.raises(ValueError, match=message):
            setattr(ours, name, value)
    assert (ours.pad_token_id, ours.bos_token) == (ours.no_speech, END)


def test_added_tokens_come_after_all_others(folder):
    pair = TokenizerPair(folder)
    size = pair.agree("__len__")
    assert pair.agree("add_tokens", ["<one>", "<two>", "<one>"]) == 2
    assert pair.agree("add_tokens", "<|0.00|>") == 0
    assert pair.agree("add_special_tokens", {"pad_token": "<|pad|>"}) == 1
    assert pair.agree("__len__") == size + 3
    ids = pair.agree("encode", "a <one> b<|pad|>")
    pair.agree("decode", ids, skip_special_tokens=True)
    ours, theirs = pair
    assert ours.pad_token_id == theirs.pad_token_id == size + 2
    assert ours.timestamp_begin == size - 1501
    for wrong in ({"nose_token": "<n>"}, {"pad_token": ["<n>"]}, {"extra_special_tokens": "<n>"}):
        with pytest.raises(ValueError, match="adding special tokens: found"):
            ours.add_special_tokens(wrong)


def test_tokenizers_survive_copies_and_need_no_torch(ours, folder):
    for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert again.encode(TEXT) == ours.encode(TEXT)
        assert again.prefix_tokens == ours.prefix_tokens
    code = (
        "import sys\n"
        "from corpus_asr.models.whisper import WhisperTokenizer\n"
        f"ours = WhisperTokenizer.from_pretrained({str(folder)!r})\n"
        "batch = ours(['a', 'ask not'], padding=True, return_tensors='np')\n"
        "ours.batch_decode(batch.input_ids, normalize=True, output_offsets=True)\n"
        "assert not {'torch', 'ray', 'av'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
