"""Loading and building byte-level BPE; what the ids mean is tested with the model families."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.vocabulary import load_vocabulary
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


def special(tokenizer: Tokenizer) -> list[int]:
    return [i for i, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def same(one: Tokenizer, other: Tokenizer) -> bool:
    return (
        one.get_vocab() == other.get_vocab()
        and special(one) == special(other)
        and all(ids(one, text) == ids(other, text) for text in TEXTS)
    )


def test_the_older_files_give_the_same_tokenizer_as_tokenizer_json(whole, folder):
    (folder / "tokenizer.json").unlink()
    assert same(load_vocabulary(whole), load_vocabulary(folder))


def test_added_tokens_described_in_tokenizer_config_do_as_well(whole, folder):
    described = load_vocabulary(whole)
    added = json.loads((folder / "added_tokens.json").read_text())
    control = {described.id_to_token(i) for i in special(described)}
    decoder = {str(i): {"content": t, "special": t in control} for t, i in added.items()}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()
    assert same(described, load_vocabulary(folder))


def test_special_tokens_without_ids_follow_the_vocabulary_in_order(whole, folder):
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink()
    found = load_vocabulary(folder)
    assert special(found) == special(load_vocabulary(whole))
    assert found.token_to_id("<|0.00|>") is None


def test_truncation_and_padding_asked_for_by_a_file_are_not_done(folder):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=cut)
    found = load_vocabulary(folder)
    assert found.decode(ids(found, "a long text")) == "a long text"


def test_a_folder_without_tokenizer_files_names_what_is_missing(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor both vocab.json and"):
        load_vocabulary(tmp_path)


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
        ("tokenizer.json", json.dumps({"model": model}).encode(), messages)
        for model, messages in BAD_MODELS
    ),
    ("tokenizer.json", b"{", "found no readable JSON"),
    ("tokenizer.json", b"[]", r"found \[.*\(list\), expected an object"),
    ("tokenizer.json", b"\xff\xfe", "found no readable JSON"),
    # Unpickled, this would raise ZeroDivisionError.
    ("tokenizer.json", b"c__builtin__\neval\n(S'1/0'\ntR.", "found no readable JSON"),
    ("vocab.json", b'["a"]', r"found \[.*\(list\), expected an object"),
    ("merges.txt", b"\xff\xfe", "found no readable text"),
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
        load_vocabulary(folder)
    assert name in str(caught.value) or "got id" in message
