"""Whisper's tokenizers, ours and those of others, by the layout of their files."""

import json
import warnings
from functools import cache
from pathlib import Path

import pytest
import whisper.tokenizer

from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from corpus_asr.text.normalize import american_spellings
from tests.support.tokenizers import KINDS, TokenizerPair, real_tokenizer, tiny_tokenizer


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
