"""Whisper's tokenizer and its files: loaded, saved, changed and broken, against transformers."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.families.whisper.vocabulary import load_vocabulary
from tests.support.tokenizers import END

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
        WhisperTokenizer(str(vocab), str(merges), None, END, END, END, False, pad_token=END),
        WhisperTokenizer(tokenizer_file=whole, pad_token=END),
    ):
        assert_same(found, pair.theirs)
    spanish = WhisperTokenizer(vocab, merges, language="spanish", task="translate")
    assert spanish.prefix_tokens[1:3] == spanish.convert_tokens_to_ids(["<|es|>", "<|translate|>"])
    assert (spanish.pad_token, spanish.pad_token_id) == (None, None)


def test_saving_writes_what_both_load(folder, tmp_path):
    ours = WhisperTokenizer.from_pretrained(folder, language="fr", padding_side="left")
    ours.add_tokens(["<new>"])
    ours.add_tokens("<|pad|>", special_tokens=True)
    ours.pad_token = "<|pad|>"
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


TEXTS = ["", " ", "ask not what", "wäre stärker。北風", "\n\t\x00", "a<|en|> b<|0.02|>", "🙂‍↔️"]


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """The files of a tokenizer, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


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


def test_the_older_files_give_the_same_tokenizer_as_tokenizer_json(folder, copied):
    (copied / "tokenizer.json").unlink()
    assert same(load_vocabulary(folder), load_vocabulary(copied))


def test_added_tokens_described_in_tokenizer_config_do_as_well(folder, copied):
    described = load_vocabulary(folder)
    added = json.loads((copied / "added_tokens.json").read_text())
    control = {described.id_to_token(i) for i in special(described)}
    decoder = {str(i): {"content": t, "special": t in control} for t, i in added.items()}
    edit(copied / "tokenizer_config.json", added_tokens_decoder=decoder)
    for name in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        (copied / name).unlink()
    assert same(described, load_vocabulary(copied))


def test_special_tokens_without_ids_follow_the_vocabulary_in_order(folder, copied):
    for name in ("tokenizer.json", "added_tokens.json"):
        (copied / name).unlink()
    found = load_vocabulary(copied)
    assert special(found) == special(load_vocabulary(folder))
    assert found.token_to_id("<|0.00|>") is None


def test_truncation_and_padding_asked_for_by_a_file_are_not_done(copied):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(copied / "tokenizer.json", truncation=cut)
    found = load_vocabulary(copied)
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
    ("added_tokens.json", b'{"<|x|>": "7"}', r"\['<\|x\|>'\] is '7'"),
    ("added_tokens.json", b'{"<|x|>": 9999}', r"got id \d+, expected 9999"),
    ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {}}}', "added_tokens_decoder"),
    ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "added_tokens_decoder"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_broken_file_is_a_checkpoint_error_that_says_how(copied, name, content, message):
    if name != "tokenizer.json":
        (copied / "tokenizer.json").unlink()
    (copied / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vocabulary(copied)
    assert name in str(caught.value) or "got id" in message
