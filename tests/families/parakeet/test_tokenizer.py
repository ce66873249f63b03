"""Parakeet's tokenizer against transformers'."""

import json
from pathlib import Path

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from tests.support.parakeet import KINDS
from tests.support.tokenizers import TokenizerPair, made_words, tiny_parakeet_tokenizer

TEXTS = ("", " ".join(made_words(9)), "  bader  ü €  fi. ", "gra<blank>lo <unk><pad> x", "日本")


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenizerPair:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_parakeet_tokenizer(folder, request.param)
    return TokenizerPair(folder, ParakeetTokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_same_ids_and_tokens(pair: TokenizerPair, text: str) -> None:
    pair.agree("__call__", text)
    pair.agree("tokenize", text)
    pair.agree("encode", text)
    pair.agree("__call__", text, truncation=True, max_length=3, return_tensors="np")


def test_batches_are_padded_alike(pair: TokenizerPair) -> None:
    for options in ({"padding": True}, {"padding": "max_length", "max_length": 40}):
        pair.agree("__call__", list(TEXTS), return_tensors="pt", **options)


def test_ids_become_the_same_text(pair: TokenizerPair) -> None:
    size = len(pair.ours)
    assert size == len(pair.theirs)
    rows = [pair.ours.encode(text) for text in TEXTS]
    rows += [[9, 9, 9, 300, 300, size - 1, 300], list(range(size)), [0, size - 1, 0], [2, 300, 2]]
    for options in ({}, {"group_tokens": False}, {"skip_special_tokens": True}):
        for ids in rows:
            pair.agree("decode", ids, **options)
        pair.agree("decode", rows, **options)
        pair.agree("batch_decode", rows, **options)
    for ids in rows:
        expected = pair.theirs.decode(ids, skip_special_tokens=True, group_tokens=False)
        assert pair.ours.decode_text(ids) == expected
    pair.agree("convert_tokens_to_string", ["▁ba", "der", "▁fi"])


def test_roles_and_tokens_are_the_same(pair: TokenizerPair) -> None:
    for name in ("pad_token_id", "unk_token_id", "bos_token", "eos_token", "vocab_size"):
        assert getattr(pair.ours, name) == getattr(pair.theirs, name), name
    assert pair.ours.get_vocab() == pair.theirs.get_vocab()
    pair.agree("convert_tokens_to_ids", ["<blank>", "nothing", "▁ba"])
    assert pair.ours.build_inputs_with_special_tokens([5]) == [5]
    assert pair.ours.num_special_tokens_to_add() == pair.theirs.num_special_tokens_to_add() == 0


def test_what_is_saved_is_loaded_by_both(pair: TokenizerPair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path)
    for kind in (ParakeetTokenizer, transformers.ParakeetTokenizer):
        again = kind.from_pretrained(tmp_path)
        assert again.get_vocab() == pair.theirs.get_vocab()
        assert again.pad_token == pair.theirs.pad_token
        assert [again.encode(text) for text in TEXTS] == [pair.theirs.encode(t) for t in TEXTS]
    made = ParakeetTokenizer(tmp_path / "tokenizer.json", pad_token=pair.theirs.pad_token)
    assert made.encode(TEXTS[1]) == pair.theirs.encode(TEXTS[1])


def test_broken_files_are_refused(tmp_path: Path) -> None:
    tiny_parakeet_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="found -1, expected ids from 0"):
        ParakeetTokenizer.from_pretrained(tmp_path).decode([-1])
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": {"type": "Unigram"}}))
    with pytest.raises(CheckpointError, match="found a model of type 'Unigram'"):
        ParakeetTokenizer.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"found no tokenizer\.json"):
        ParakeetTokenizer.from_pretrained(tmp_path)
