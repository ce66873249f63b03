"""OpenAI's vocabulary files become the tokenizer that Hugging Face publishes."""

import json
from pathlib import Path

import pytest
import whisper.tokenizer

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.models.convert import write_tokenizer_files

ASSETS = Path(whisper.tokenizer.__file__).parent / "assets"
TEXTS = [
    "And so, my fellow Americans: ask not what your country can do for you!",
    " Straße und Größe — naïve café 12,345.67",
    "北風と太陽が言い争っていました。",
    "Однажды северный ветер\n\n  и  солнце 👩‍👩‍👧",
]


@pytest.mark.parametrize(
    ("name", "vocab_size", "languages"),
    [
        pytest.param("multilingual", 51865, 99, marks=pytest.mark.slow),
        ("multilingual", 51866, 100),
        pytest.param("gpt2", 51864, 99, marks=pytest.mark.slow),
    ],
)
def test_ids_are_those_of_openai_whisper(
    tmp_path: Path, name: str, vocab_size: int, languages: int
) -> None:
    write_tokenizer_files(ASSETS / f"{name}.tiktoken", tmp_path, vocab_size=vocab_size)
    ours = WhisperTokenizer.from_pretrained(tmp_path)
    theirs = whisper.tokenizer.get_tokenizer(name != "gpt2", num_languages=languages)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == text
    assert ours.eot == theirs.eot
    assert ours.sot == theirs.sot
    assert ours.no_speech == theirs.no_speech
    assert ours.timestamp_begin == theirs.timestamp_begin
    assert len(ours) == vocab_size


def test_the_merges_equal_the_published_ones(tmp_path: Path, float_model: Path) -> None:
    write_tokenizer_files(ASSETS / "gpt2.tiktoken", tmp_path, vocab_size=51864)
    published = json.loads((float_model / "tokenizer.json").read_text())["model"]["merges"]
    pairs = [one if isinstance(one, str) else " ".join(one) for one in published]
    assert (tmp_path / "merges.txt").read_text().split("\n")[1:-1] == pairs


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"room for 100 languages|English-only models need"):
        write_tokenizer_files(ASSETS / "gpt2.tiktoken", tmp_path, vocab_size=70000)


@pytest.mark.parametrize("content", ["not base64 at all", "IQ== 0\nIg== 7\n", ""])
def test_a_broken_file_is_told_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.tiktoken"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"broken\.tiktoken: found"):
        write_tokenizer_files(path, tmp_path / "out", vocab_size=51865)
