"""What is read of a Speech2Text checkpoint, from real tokenizer files."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import CheckpointError
from corpus_asr.transcription.speech2text import Speech2TextPromptFormat
from corpus_asr.transcription.words import split_words
from tests.support.tokenizers import TARGETS, made_words, tiny_speech2text_tokenizer


def checkpoint(folder: Path, *, languages: tuple[str, ...] = (), **config: Any) -> Path:
    """Write all of a checkpoint but its weights and features."""
    more: dict[str, Any] = {"lang_codes": "mustc"} if languages else {}
    tiny_speech2text_tokenizer(folder, languages=languages, **more)
    given = {"model_type": "speech_to_text", "vocab_size": 200} | config
    (folder / "config.json").write_text(json.dumps(given))
    return folder


def test_text_is_that_of_transformers_after_a_blank_and_its_parts_add_up(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path, languages=TARGETS))
    theirs = transformers.Speech2TextTokenizer.from_pretrained(tmp_path)
    ids = theirs(" ".join(made_words(8, seed=3)), add_special_tokens=False).input_ids
    said = [own.targets["fr"], *ids[:5], 3, *ids[5:], own.end, 1]  # unknown, end, padding
    text = own.text(said)
    assert text == " " + theirs.decode(said, skip_special_tokens=True)
    for cut in range(len(said)):
        assert own.text(said[:cut]) + own.text(said[cut:]) == text
    words = split_words(ids, own.text, None)
    assert [word for word, _ in words] == [f" {word}" for word in made_words(8, seed=3)]
    assert [token for _, tokens in words for token in tokens] == ids
    assert own.text([]) == own.text([own.end]) == ""


def test_the_target_language_is_the_last_of_the_prompt(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path, languages=TARGETS))
    theirs = transformers.Speech2TextTokenizer.from_pretrained(tmp_path)
    assert own.targets == theirs.lang_code_to_id
    assert own.prompt("fr") == (2, theirs.lang_code_to_id["fr"])
    assert own.alignment("fr").prompt == own.prompt("fr")
    assert own.task(DecodingSettings(target_language="fr")) == "translate"
    one = Speech2TextPromptFormat.from_folder(checkpoint(tmp_path / "one"))
    assert (one.prompt(None), one.targets) == ((2,), {})
    assert one.task(DecodingSettings()) == "transcribe"


def test_limits_and_heads_are_the_checkpoint_s(tmp_path: Path) -> None:
    own = Speech2TextPromptFormat.from_folder(
        checkpoint(
            tmp_path,
            decoder_layers=3,
            decoder_attention_heads=2,
            max_target_positions=77,
            max_source_positions=900,
            forced_bos_token_id=9,
            suppress_tokens=[5],
        )
    )
    assert own.alignment_heads == ((1, 0), (1, 1), (2, 0), (2, 1))
    assert (own.max_target_positions, own.window_frames) == (77, 900)
    assert own.prompt(None) == (2, 9)
    assert (own.rules.end, own.rules.suppress) == (2, (5,))


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the network has 20 tokens and the tokenizer"):
        Speech2TextPromptFormat.from_folder(checkpoint(tmp_path, vocab_size=20))
