"""Parakeet's tokenizer against transformers'."""

import json
from pathlib import Path

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.parakeet.tokenizer import ParakeetTokenizer
from tests.support.parakeet import KINDS
from tests.support.tokenizers import made_words, tiny_parakeet_tokenizer

TEXTS = ("", " ".join(made_words(9)), "  bader  ü €  fi. ", "gra<blank>lo <unk><pad> x", "日本")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_tokens_and_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    tiny_parakeet_tokenizer(tmp_path, kind)
    ours = ParakeetTokenizer(tmp_path)
    theirs = transformers.ParakeetTokenizer.from_pretrained(tmp_path)
    assert ours.vocabulary == theirs.get_vocab()
    assert ours.num_pieces == theirs.vocab_size
    assert ours.control_ids >= {*theirs.all_special_ids, theirs.unk_token_id}
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert [ours.token(token) for token in ids] == theirs.convert_ids_to_tokens(ids)
        expected = theirs.decode(ids, skip_special_tokens=True, group_tokens=False)
        assert "".join(piece or "" for piece in ours.pieces(ids)).strip() == expected.strip()


def test_broken_files_are_refused(tmp_path: Path) -> None:
    tiny_parakeet_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": {"type": "Unigram"}}))
    with pytest.raises(CheckpointError, match="found a model of type 'Unigram'"):
        ParakeetTokenizer(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: found no such file"):
        ParakeetTokenizer(tmp_path)
