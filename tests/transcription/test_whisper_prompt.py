import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faster_whisper.transcribe import WhisperModel
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.options import options_from
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.transcription.whisper_prompt import PromptFormat
from tests.support.checkpoints import tiny_whisper
from tests.support.prompt_formats import BEGIN, ENGLISH, GERMAN, PREVIOUS, START, prompt_format
from tests.support.tokenizers import tiny_tokenizer


def read(folder: Path, *, multilingual: bool = True) -> PromptFormat:
    tiny_tokenizer(folder / "tokenizer", multilingual=multilingual)
    return PromptFormat.from_folder(tiny_whisper(folder / "model", tokenizer=folder / "tokenizer"))


def test_a_checkpoint_folder_becomes_prompts_and_rules(tmp_path: Path) -> None:
    own = read(tmp_path)
    (start, language, task), at = own.prompt("de", "translate")
    assert (start, at) == (own.start, 0)
    assert language == own.languages["de"]
    assert own.prompt("de", "transcribe")[0][2] != task
    assert own.text_rules.timestamp_begin == own.timestamp_begin
    assert own.text_rules.max_initial_timestamp == 50


def refused(own: PromptFormat, message: str, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        own.check(options_from(settings).decoding)


def test_an_english_only_checkpoint_has_no_language_to_ask_for(tmp_path: Path) -> None:
    own = read(tmp_path, multilingual=False)
    assert own.prompt("en", "transcribe") == ((own.start,), 0)
    own.check(DecodingSettings())
    own.check(DecodingSettings(language="en"))
    refused(own, "found de, but this checkpoint is English-only; name a", language="de")
    refused(own, "English-only", task="translate")
    refused(own, "language_mode: found window", language_mode="window")


def test_what_no_multilingual_checkpoint_can_do_is_refused(tmp_path: Path) -> None:
    own = prompt_format()
    own.check(DecodingSettings(language=("de", "en"), task="translate", language_mode="window"))
    assert own.language_rules(["de"]).only == (GERMAN,)
    refused(own, "does not know fr, xx; it knows de, en", language=["de", "fr", "xx"])
    refused(own, r"decoding\.target_language: found it for Whisper", target_language="fr")
    own.check(DecodingSettings(window_s=20))
    message = r"decoding\.window_s: found 20.*strategy: chunked"
    refused(own, message, window_s=20, strategy="sequential")
    refused(own, message, window_s=20, condition_on_prev_tokens=True)
    for name in ("hotwords", "prefix"):
        own.check(options_from({name: "w1 " * 11, "hotwords_mode": "prompt"}).decoding)
        message = rf"{name}: found 12 tokens, .* room for 11; shorten"
        refused(own, message, hotwords_mode="prompt", **{name: "w1 " * 12})
    refused(own, "hotwords: found 12 tokens in 'w1 w1", hotwords="w1 " * 12)
    own.check(DecodingSettings(initial_prompt="w1 " * 12))  # the latest of it is shown
    words = "say <|startoftranscript|>"
    refused(read(tmp_path), r"decoding\.hotwords: .*startoftranscript", hotwords=words)


def checkpoint_naming(folder: Path, heads: Any) -> Path:
    tiny_tokenizer(folder / "tokenizer")
    model = tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", median_filter_width=5)
    path = model / "generation_config.json"
    content = json.loads(path.read_text()) | {"alignment_heads": heads}
    path.write_text(json.dumps(content))
    return model


def test_alignment_heads_are_those_named_or_all_of_the_upper_half(tmp_path: Path) -> None:
    named = PromptFormat.from_folder(checkpoint_naming(tmp_path / "named", [[0, 3], [1, 0]]))
    assert named.alignment_heads == ((0, 3), (1, 0))
    assert named.alignment_filter_width == 5
    unnamed = PromptFormat.from_folder(checkpoint_naming(tmp_path / "unnamed", None))
    assert unnamed.alignment_heads == ((1, 0), (1, 1), (1, 2), (1, 3))


@pytest.mark.parametrize("pair", [[2, 0], [0, 4], [-1, 0]])
def test_an_alignment_head_the_network_lacks_is_refused(tmp_path: Path, pair: list[int]) -> None:
    with pytest.raises(CheckpointError, match="expected a layer below 2 and a head below 4"):
        PromptFormat.from_folder(checkpoint_naming(tmp_path, [[0, 0], pair]))


@given(said=st.integers(0, 900), hot=st.integers(0, 223), begun=st.integers(0, 223))
def test_prompts_are_faster_whisper_s_and_leave_room_to_speak(
    said: int, hot: int, begun: int
) -> None:
    own = prompt_format(max_target_positions=448)
    previous = [1 + at % 9 for at in range(said)]
    hotwords, prefix = [20] * hot, [21] * begun

    class Words:
        sot_prev, sot_sequence, timestamp_begin = PREVIOUS, [START, ENGLISH], BEGIN

        def encode(self, text: str) -> list[int]:
            return hotwords if text == " hot" else prefix

    wanted = WhisperModel.get_prompt(
        SimpleNamespace(max_length=448), Words(), previous, hotwords="hot" if hot else None,
        prefix="prefix" if begun else None,
    )  # fmt: skip
    prompt, at = own.prompt(
        "en", "transcribe", previous, hotwords=() if begun else hotwords, prefix=prefix
    )
    assert prompt[at] == START
    assert 448 - len(prompt) >= 112
    if len(wanted) <= 336:
        assert list(prompt) == wanted
    else:
        assert len(prompt) == 336
