"""Loading and building byte-level BPE; what the ids mean is tested with the model families."""

import json
import shutil
from pathlib import Path

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.text.bpe import BytePairEncoding
from tests.support.tokenizers import tiny_tokenizer

TEXTS = ["", " ", "ask not what", "wäre stärker。北風", "\n\t\x00", "a<|en|> b<|0.02|>", "🙂‍↔️"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same(one: BytePairEncoding, other: BytePairEncoding) -> bool:
    ids = range(len(one))
    return (
        len(one) == len(other)
        and one.special_ids == other.special_ids
        and all(one.id_to_token(i) == other.id_to_token(i) for i in ids)
        and all(one.encode(text) == other.encode(text) for text in TEXTS)
    )


def test_the_older_files_give_the_same_tokenizer_as_tokenizer_json(whole, folder):
    (folder / "tokenizer.json").unlink()
    assert same(BytePairEncoding.from_folder(whole), BytePairEncoding.from_folder(folder))


def test_added_tokens_described_in_tokenizer_config_do_as_well(whole, folder):
    described = BytePairEncoding.from_folder(whole)
    added = json.loads((folder / "added_tokens.json").read_text())
    special = {described.id_to_token(i) for i in described.special_ids}
    decoder = {str(i): {"content": t, "special": t in special} for t, i in added.items()}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert same(described, BytePairEncoding.from_folder(folder))


def test_special_tokens_without_ids_follow_the_vocabulary_in_order(whole, folder):
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink()
    found = BytePairEncoding.from_folder(folder)
    assert found.special_ids == BytePairEncoding.from_folder(whole).special_ids
    assert found.token_to_id("<|0.00|>") is None


def test_texts_survive_the_round_trip_and_saving(whole, tmp_path):
    bpe = BytePairEncoding.from_folder(whole)
    assert [bpe.decode(bpe.encode(text)) for text in TEXTS] == TEXTS
    bpe.save(tmp_path)
    assert same(bpe, BytePairEncoding.from_folder(tmp_path))


def test_truncation_and_padding_asked_for_by_a_file_are_not_done(folder):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=cut)
    bpe = BytePairEncoding.from_folder(folder)
    assert bpe.decode(bpe.encode("a long text")) == "a long text"


def test_unknown_ids_have_no_token_and_no_text_and_what_is_neither_is_refused(whole):
    bpe = BytePairEncoding.from_folder(whole)
    assert [bpe.id_to_token(i) for i in (-1, len(bpe))] == [None, None]
    assert bpe.decode([len(bpe) + 5]) == ""
    with pytest.raises(ValueError, match="found -100, expected ids from 0"):
        bpe.decode([1, -100])
    with pytest.raises(ValueError, match="no valid Unicode"):
        bpe.encode("a\ud800")


def test_a_folder_without_tokenizer_files_names_what_is_missing(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor both vocab.json and"):
        BytePairEncoding.from_folder(tmp_path)


BAD_MODELS = [
    ({"type": "Unigram", "vocab": []}, "type 'Unigram', expected 'BPE'"),
    ({"type": "BPE", "vocab": ["a"], "merges": []}, "found no vocabulary"),
    ({"type": "BPE", "vocab": {"a": "0"}, "merges": []}, "found no vocabulary"),
    ({"type": "BPE", "vocab": {"a": 0}}, "found no merges"),
    ({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}, "merge 0 is"),
    ({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [[0, 1]]}, "merge 0 is"),
    ([], "type None, expected 'BPE'"),
]


BAD_FILES = [
    *(
        ("tokenizer.json", json.dumps({"model": model}).encode(), told)
        for model, told in BAD_MODELS
    ),
    ("tokenizer.json", b"{", "found no JSON"),
    ("tokenizer.json", b"[]", "found a list, expected an object"),
    ("tokenizer.json", b"\xff\xfe", "found no readable text"),
    # Unpickled, this would raise ZeroDivisionError.
    ("tokenizer.json", b"c__builtin__\neval\n(S'1/0'\ntR.", "found no JSON"),
    ("vocab.json", b'["a"]', "found a list, expected an object"),
    ("merges.txt", b"#version: 0.2\na b c\n", r"merge 0 is \['a', 'b', 'c'\]"),
    ("merges.txt", b"#version: 0.2\n? nosuchtoken\n", "merge 0 is"),
    ("added_tokens.json", b'{"<|x|>": "7"}', "has id '7', expected a whole number"),
    ("added_tokens.json", b'{"<|x|>": 9999}', r"got id \d+, expected 9999"),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {}}}', "added_tokens_decoder"),
    ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "added_tokens_decoder"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_broken_file_is_a_checkpoint_error_that_says_how(folder, name, content, message):
    if name != "tokenizer.json":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        BytePairEncoding.from_folder(folder)
    assert name in str(caught.value) or "got id" in message


def test_tokens_say_where_they_stand(whole):
    bpe = BytePairEncoding.from_folder(whole)
    text = "ask not北<|en|>"
    pieces = bpe.encoding(text)
    assert pieces.ids == bpe.encode(text)
    assert pieces.offsets[-1] == (8, 14)
    first = list(zip(pieces.ids, pieces.offsets, strict=True))[:2]
    assert all(bpe.decode([token]) == text[begin:end] for token, (begin, end) in first)
    assert bpe.encoding(["ask", "not"]).ids == [*bpe.encode("ask"), *bpe.encode("not")]


def test_vocabulary_and_merges_are_those_of_the_files(folder):
    bpe = BytePairEncoding.from_folder(folder)
    assert bpe.vocabulary(with_added=False) == json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    assert [" ".join(pair) for pair in bpe.merges()] == lines
    assert len(bpe.vocabulary()) == len(bpe)
    assert {i for i, token in bpe.added_tokens.items() if token.special} == set(bpe.special_ids)
    again = BytePairEncoding.from_files(folder / "vocab.json", folder / "merges.txt")
    assert again.vocabulary() == bpe.vocabulary()
