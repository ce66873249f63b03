import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.transcription.dialect import Dialect
from tests.support.checkpoints import tiny_whisper
from tests.support.dialects import ENGLISH, GERMAN, PREVIOUS, START, dialect
from tests.support.tokenizers import tiny_tokenizer


def test_a_checkpoint_folder_becomes_prompts_and_rules(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    own = Dialect.from_folder(tiny_whisper(tmp_path / "model", tokenizer=tmp_path / "tokenizer"))
    (start, language, task), at = own.prompt("de", "translate")
    assert (start, at) == (own.start, 0)
    assert language == own.languages["de"]
    assert own.prompt("de", "transcribe")[0][2] != task
    assert own.text_rules.timestamp_begin == own.timestamp_begin
    assert own.text_rules.max_initial_timestamp == 50


def test_an_english_only_checkpoint_has_no_language_to_ask_for(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "tokenizer", multilingual=False)
    own = Dialect.from_folder(tiny_whisper(tmp_path / "model", tokenizer=tmp_path / "tokenizer"))
    assert own.prompt("en", "transcribe") == ((own.start,), 0)
    own.check("auto", "transcribe")
    own.check("en", "transcribe")
    with pytest.raises(ConfigError, match="does not know de; it knows en"):
        own.check("de", "transcribe")
    with pytest.raises(ConfigError, match="English-only"):
        own.check("auto", "translate")


def test_previous_text_goes_before_the_prompt_and_the_latest_fits() -> None:
    own = dialect()
    prompt, at = own.prompt("en", "transcribe", [1, 2, 3])
    assert prompt == (PREVIOUS, 1, 2, 3, START, ENGLISH)
    assert prompt[at] == START
    long = list(range(1, 10)) * 5
    prompt, at = own.prompt("en", "transcribe", long)
    kept = own.max_target_positions // 2 - 1
    assert prompt == (PREVIOUS, *long[-kept:], START, ENGLISH)
    assert prompt[at] == START


def test_languages_that_are_not_known_are_refused_with_those_that_are() -> None:
    own = dialect()
    own.check(("de", "en"), "translate")
    with pytest.raises(ConfigError, match="does not know fr, xx; it knows de, en"):
        own.check(("de", "fr", "xx"), "transcribe")
    assert own.language_rules(["de"]).only == (GERMAN,)


def checkpoint_naming(folder: Path, heads: Any) -> Path:
    tiny_tokenizer(folder / "tokenizer")
    model = tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", median_filter_width=5)
    path = model / "generation_config.json"
    content = json.loads(path.read_text()) | {"alignment_heads": heads}
    path.write_text(json.dumps(content))
    return model


def test_alignment_heads_are_those_named_or_all_of_the_upper_half(tmp_path: Path) -> None:
    named = Dialect.from_folder(checkpoint_naming(tmp_path / "named", [[0, 3], [1, 0]]))
    assert named.alignment_heads == ((0, 3), (1, 0))
    assert named.alignment_filter_width == 5
    unnamed = Dialect.from_folder(checkpoint_naming(tmp_path / "unnamed", None))
    assert unnamed.alignment_heads == ((1, 0), (1, 1), (1, 2), (1, 3))


@pytest.mark.parametrize("pair", [[2, 0], [0, 4], [-1, 0]])
def test_an_alignment_head_the_network_lacks_is_refused(tmp_path: Path, pair: list[int]) -> None:
    with pytest.raises(CheckpointError, match="expected a layer below 2 and a head below 4"):
        Dialect.from_folder(checkpoint_naming(tmp_path, [[0, 0], pair]))
