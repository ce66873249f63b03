"""Speech2Text's tokenizer against transformers."""

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from corpus_asr.families.speech2text.tokenizer import Speech2TextTokenizer
from corpus_asr.families.speech2text.vocabulary import (
    AddedTokens,
    SentencePieces,
    described_token,
)
from tests.support.tokenizers import (
    TARGETS,
    TokenizerPair,
    made_words,
    tiny_speech2text_tokenizer,
    trained_model,
)

FRENCH: dict[str, Any] = {"lang_codes": "mustc", "tgt_lang": "fr"}
# What a tokenizer's files are made of, by name.
LAYOUTS: dict[str, dict[str, Any]] = {
    "one language": {},
    "bpe": {"kind": "bpe", "do_upper_case": True},
    "eight languages": {"languages": TARGETS, **FRENCH},
    "more tokens": {"additional_special_tokens": ["<noise>", "<laugh>"], "model_max_length": 9},
}
WORDS = made_words(12, seed=1)
TEXTS = [
    "",
    " ",
    " ".join(WORDS[:5]),
    f"  {WORDS[0]}  {WORDS[1]} ",
    f"</s> {WORDS[0]}<s>{WORDS[1]}<lang:fr> {WORDS[2]}",
    "unknown 漢字 letters, Ünïcödé!",
    "line\nbreak\ttab",
    f"{WORDS[3]} <noise>{WORDS[4]}",
]


def load_pair(folder: Path) -> TokenizerPair:
    return TokenizerPair(folder, Speech2TextTokenizer)


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request, tmp_path_factory) -> TokenizerPair:
    folder = tmp_path_factory.mktemp("s2t")
    return load_pair(tiny_speech2text_tokenizer(folder, **LAYOUTS[request.param]))


@pytest.fixture(scope="module")
def french(tmp_path_factory) -> TokenizerPair:
    folder = tmp_path_factory.mktemp("french")
    return load_pair(tiny_speech2text_tokenizer(folder, **LAYOUTS["eight languages"]))


def test_texts_become_the_same_tokens_and_ids_and_texts_again(pair: TokenizerPair) -> None:
    for text in TEXTS:
        pair.agree("tokenize", text)
        ids = pair.agree("encode", text)
        pair.agree("encode", text, add_special_tokens=False)
        for skip in (False, True):
            pair.agree("decode", ids, skip_special_tokens=skip)
            pair.agree("convert_ids_to_tokens", ids, skip_special_tokens=skip)
        pair.agree("convert_tokens_to_string", pair.ours.convert_ids_to_tokens(ids))
        pair.agree("decode", ids, clean_up_tokenization_spaces=True)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from([*"abdefghiklmnoprstuvé <>/漢", "</s>", "<lang:fr>"])))
def test_any_text_becomes_the_same_ids(french: TokenizerPair, parts: list[str]) -> None:
    text = "".join(parts)
    ids = french.agree("encode", text)
    french.agree("decode", ids)
    french.agree("decode", ids, skip_special_tokens=True)


def test_the_vocabulary_is_the_same(pair: TokenizerPair) -> None:
    for name in ("get_vocab", "get_added_vocab", "__len__", "num_special_tokens_to_add"):
        pair.agree(name)
    for name in (
        "vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map",
        "extra_special_tokens", "added_tokens_decoder", "added_tokens_encoder", "lang_code_to_id",
        "prefix_tokens", "tgt_lang", "bos_token", "eos_token_id", "pad_token_id", "unk_token_id",
        "padding_side", "truncation_side", "model_max_length", "is_fast", "do_upper_case",
        "do_lower_case", "encoder", "decoder", "pad_token_type_id",
    ):  # fmt: skip
        assert getattr(pair.ours, name) == getattr(pair.theirs, name), name
    assert list(pair.ours.model_input_names) == pair.theirs.model_input_names
    for token_id in range(len(pair.theirs) + 3):
        pair.agree("convert_ids_to_tokens", token_id)
    pair.agree("convert_tokens_to_ids", ["<s>", "▁", "nothing", "<pad>", "<lang:de>"])
    pair.agree("convert_tokens_to_ids", "nothing")


CALLS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": False},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 12, "truncation": True},
    {"padding": "max_length", "max_length": 20, "padding_side": "left"},
    {"truncation": True, "max_length": 4},
    {"max_length": 5},
    {"padding": True, "truncation": True},
    {"padding": True, "return_tensors": "np"},
    {"padding": True, "return_tensors": "pt", "return_attention_mask": False},
    {"padding": True, "return_token_type_ids": True, "return_special_tokens_mask": True},
    {"return_length": True, "padding": True},
]


def test_calls_give_the_same_rows(pair: TokenizerPair) -> None:
    texts = TEXTS[2:5]
    for options in CALLS:
        pair.agree("__call__", texts, **options)
        pair.agree("__call__", TEXTS[2], **options)
        pair.agree("__call__", text_target=texts, **options)
        pair.agree("__call__", text=texts, text_target=texts[::-1], **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_are_cut_the_same(french: TokenizerPair, side: str) -> None:
    short, long = WORDS[0], " ".join(WORDS[1:6])
    for tokenizer in french:
        tokenizer.truncation_side = side
    for strategy, length, stride in itertools.product(
        ("longest_first", "only_first", "only_second"), (9, 14), (0, 2)
    ):
        options = {"truncation": strategy, "max_length": length, "stride": stride}
        for first, second in ((short, long), (long, short), (long, long)):
            french.agree("__call__", first, second, return_token_type_ids=True, **options)
            french.agree("__call__", [(first, second)], return_special_tokens_mask=True, **options)
    for tokenizer in french:
        tokenizer.truncation_side = "right"


def test_what_is_cut_off_is_the_same(pair: TokenizerPair) -> None:
    long = " ".join(WORDS)
    for stride in (0, 2, 50):
        options = {"truncation": True, "max_length": 6, "stride": stride}
        options["return_overflowing_tokens"] = True
        pair.agree("__call__", long, **options)
        pair.agree("__call__", [long, long[:50]], **options)
        pair.agree("__call__", [long, long], return_tensors="np", padding=True, **options)
    del options["stride"]
    batch = pair.ours([long, WORDS[0]], **{**options, "max_length": 9})
    assert batch["num_truncated_tokens"][1] == 0  # theirs fails where only some rows overflow


def test_words_ids_and_pairs_of_words_are_texts_too(pair: TokenizerPair) -> None:
    pair.agree("__call__", WORDS[:3], is_split_into_words=True)
    pair.agree("__call__", [WORDS[:3], WORDS[3:5]], is_split_into_words=True)
    pair.agree("__call__", WORDS[:2], WORDS[2:4], is_split_into_words=True)
    pair.agree("__call__", [5, 6, 7])
    pair.agree("__call__", [[5, 6, 7], [8, 9]])
    pair.agree("__call__", [["one", "two"], ["three", "four"]])
    pair.agree("encode", WORDS[0], WORDS[1], return_tensors="pt")


def test_rows_are_padded_later_the_same(pair: TokenizerPair) -> None:
    rows = [pair.theirs(text) for text in TEXTS[2:5]]
    for options in ({}, {"padding": "max_length", "max_length": 40}, {"pad_to_multiple_of": 16}):
        pair.agree("pad", [dict(row) for row in rows], **options)
        pair.agree("pad", {"input_ids": [row["input_ids"] for row in rows]}, **options)
    pair.agree("pad", [dict(row) for row in rows], return_tensors="pt")


def test_special_tokens_stand_around_texts_as_in_the_reference(pair: TokenizerPair) -> None:
    for second in (None, [8, 9]):
        pair.agree("build_inputs_with_special_tokens", [5, 6], second)
        pair.agree("get_special_tokens_mask", [5, 6], second)
        pair.agree("create_token_type_ids_from_sequences", [5, 6], second)
    pair.agree("get_special_tokens_mask", [0, 5, 3, 2], already_has_special_tokens=True)
    pair.agree("num_special_tokens_to_add", True)


def test_many_are_decoded_at_once(pair: TokenizerPair) -> None:
    rows = pair.ours([TEXTS[2], TEXTS[4], TEXTS[5]], padding=True)["input_ids"]
    for form in (rows, np.array(rows), torch.tensor(rows), [torch.tensor(row) for row in rows]):
        pair.agree("batch_decode", form, skip_special_tokens=True)
        pair.agree("decode", form)
    pair.agree("batch_decode", rows[0])
    pair.agree("decode", 5)
    pair.agree("decode", [5, -100, 10_000])
    assert pair.ours.batch_decode([]) == []


def test_the_target_language_can_be_changed(french: TokenizerPair) -> None:
    for change, language in (
        (lambda t: setattr(t, "tgt_lang", "de"), "de"),
        (lambda t: t.set_tgt_lang_special_tokens("it"), "de"),
        (lambda t: setattr(t, "prefix_tokens", []), "de"),
        (lambda t: setattr(t, "tgt_lang", "fr"), "fr"),
    ):
        for tokenizer in french:
            change(tokenizer)
            assert tokenizer.tgt_lang == language
        assert french.ours.prefix_tokens == french.theirs.prefix_tokens
        french.agree("encode", WORDS[0])
    assert french.ours.langs == list(TARGETS)


def test_tokens_can_be_added(tmp_path: Path) -> None:
    pair = load_pair(tiny_speech2text_tokenizer(tmp_path, languages=("fr",)))
    assert pair.agree("add_tokens", ["<new>", "ba", WORDS[0]]) >= 1
    assert pair.agree("add_tokens", "<new>") == 0
    theirs = pair.theirs.add_special_tokens(
        {"pad_token": "<fill>", "extra_special_tokens": ["<x>"]}
    )
    ours = pair.ours.add_special_tokens(
        {"pad_token": "<fill>", "additional_special_tokens": ["<x>"]}
    )
    assert ours == theirs == 2
    assert pair.agree("add_tokens", ["<control>"], special_tokens=True) == 1
    strips = AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False)
    pair.agree("add_tokens", [strips, AddedToken("ka", single_word=True)])
    assert pair.ours.pad_token_id == pair.theirs.pad_token_id
    assert pair.ours.all_special_tokens == pair.theirs.all_special_tokens
    for text in (
        "<new> x<control><x>",
        f"{WORDS[0]}{WORDS[1]} <strip> {WORDS[2]}",
        "ka kaka <new>ka",
    ):
        ids = pair.agree("encode", text)
        pair.agree("decode", ids)
        pair.agree("decode", ids, skip_special_tokens=True)
    pair.ours.save_pretrained(tmp_path / "ours")
    again = load_pair(tmp_path / "ours")
    again.agree("get_vocab")
    again.agree("encode", "<new> x<control><x> <strip> ka")
    assert again.ours.get_vocab() == pair.ours.get_vocab()


def test_lower_case_is_made_before_encoding_as_the_documents_say(tmp_path: Path) -> None:
    settings = {**FRENCH, "do_lower_case": True}
    folder = tiny_speech2text_tokenizer(tmp_path, languages=TARGETS, **settings)
    pair = load_pair(folder)
    text = f"{WORDS[0].upper()} </s>{WORDS[1].title()}<lang:fr>"
    lowered = f"{WORDS[0]} </s>{WORDS[1]}<lang:fr>"
    assert pair.ours.encode(text) == pair.theirs.encode(lowered)
    # Version 5.23 has the setting but does nothing with it, and loses capital letters.
    assert pair.theirs.unk_token_id in pair.theirs.encode(text)
    assert pair.ours.add_tokens(["NEW"]) == pair.theirs.add_tokens(["NEW"]) == 1
    assert pair.ours.get_vocab() == pair.theirs.get_vocab()
    assert "new" in pair.ours.tokenize("A NEW")


def test_sampling_of_pieces_is_handed_on(tmp_path: Path) -> None:
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = load_pair(tiny_speech2text_tokenizer(tmp_path, sp_model_kwargs=options)).ours
    assert tokenizer.sp_model_kwargs == options
    found = {tuple(tokenizer.encode(" ".join(WORDS))) for _ in range(20)}
    assert len(found) > 1
    assert {tokenizer.decode(row, skip_special_tokens=True) for row in found} == {" ".join(WORDS)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("saved", [True, False])
def test_saved_folders_load_in_both_directions(tmp_path: Path, layout: str, saved: bool) -> None:
    options = LAYOUTS[layout]
    folder = tiny_speech2text_tokenizer(tmp_path / "theirs", saved=saved, **options)
    first = load_pair(folder)
    first.agree("get_vocab")
    first.ours.save_pretrained(tmp_path / "ours")
    again = load_pair(tmp_path / "ours")
    again.agree("get_vocab")
    again.agree("__call__", TEXTS[2:6])
    for name in ("tgt_lang", "prefix_tokens", "all_special_tokens", "model_max_length"):
        values = {str(getattr(one, name)) for one in (first.theirs, again.ours, again.theirs)}
        assert len(values) == 1, name
    kept = tmp_path / "vocabulary"
    kept.mkdir()
    paths = first.ours.save_vocabulary(kept, "x")
    assert [Path(path).name for path in paths] == ["x-vocab.json", "x-sentencepiece.bpe.model"]
    vocab, model = paths
    files = Speech2TextTokenizer(vocab, model, lang_codes=options.get("lang_codes"))
    assert files.encoder == first.theirs.encoder


def test_files_of_older_versions_load_the_same(tmp_path: Path) -> None:
    folder = tiny_speech2text_tokenizer(tmp_path, saved=False)
    special: dict[str, Any] = {"bos_token": {"content": "<s>", "lstrip": False, "normalized": True}}
    special |= {"pad_token": "<pad>", "additional_special_tokens": ["<noise>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    size = len(json.loads((folder / "vocab.json").read_text()))
    (folder / "added_tokens.json").write_text(json.dumps({"<noise>": size, "<beep>": size + 1}))
    settings = {"do_upper_case": True, "tgt_lang": None, "sp_model_kwargs": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pair = load_pair(folder)
    pair.agree("get_vocab")
    pair.agree("encode", "<noise> x <beep>")
    assert pair.ours.all_special_tokens == pair.theirs.all_special_tokens
    assert pair.ours.do_upper_case


def test_it_survives_pickling_and_copying_without_its_files(tmp_path: Path) -> None:
    folder = tiny_speech2text_tokenizer(tmp_path / "x", languages=TARGETS, **FRENCH)
    tokenizer = Speech2TextTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    for file in folder.iterdir():
        file.unlink()
    for copied in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert copied.encode(f"{TEXTS[4]}<new>") == tokenizer.encode(f"{TEXTS[4]}<new>")
        assert copied.tgt_lang == "fr"
    assert "tgt_lang='fr'" in repr(tokenizer)
    assert bool(tokenizer)


def tokens(*described: AddedToken) -> AddedTokens:
    found = AddedTokens()
    for token_id, token in enumerate(described, start=10):
        found.put(token_id, token)
    return found


def test_the_first_and_of_those_the_longest_token_is_found() -> None:
    found = tokens(AddedToken("<a"), AddedToken("<a>"), AddedToken("a>b"))
    assert found.split("x<a>b") == ["x", "<a>", "b"]
    assert found.split("<a<a>") == ["<a", "<a>"]
    assert found.split("") == []
    assert AddedTokens().split("(?!)") == ["(?!)"]


def test_blanks_beside_a_token_are_swallowed_where_it_says_so() -> None:
    assert tokens(AddedToken("#", lstrip=True)).split("a # b") == ["a", "#", " b"]
    assert tokens(AddedToken("#", rstrip=True)).split("a # b") == ["a ", "#", "b"]
    assert tokens(AddedToken("#", single_word=True)).split("a# # #b") == ["a#", " ", "#", " ", "#b"]


def test_an_id_has_one_token() -> None:
    added = tokens(AddedToken("<a>"))
    added.put(10, AddedToken("<b>"))
    assert added.ids == {"<b>": 10}


def test_a_file_that_describes_no_token_is_refused() -> None:
    for entry in (None, 5, {}, {"content": 5}, ["<a>"]):
        with pytest.raises(ValueError, match="expected its text, or an object with 'content'"):
            described_token(entry)


def test_options_that_are_none_are_a_type_error() -> None:
    options: tuple[dict[str, Any], ...] = (
        {"foo": 1}, {"alpha": "much"}, {"model_file": "x"}, {"nbest_size": 1.5}
    )  # fmt: skip
    for each in options:
        with pytest.raises(TypeError, match="correct sp_model_kwargs"):
            SentencePieces(trained_model(), each)
