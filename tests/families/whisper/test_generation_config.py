"""What a checkpoint says of decoding, and where it comes from when it says nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.whisper.config import GenerationConfig, WhisperConfig
from corpus_asr.families.whisper.tokenizer import WhisperTokenizer
from tests.support.tokenizers import tiny_tokenizer

NAME = "generation_config.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_tokenizer(tmp_path)
    return tmp_path


def write(folder: Path, name: str = NAME, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_real_file_is_read_key_by_key(checkpoint):
    ours = GenerationConfig.from_pretrained(checkpoint)
    theirs = transformers.GenerationConfig.from_pretrained(checkpoint)
    for key, value in ours.to_dict().items():
        if key not in ("forced_decoder_ids", "transformers_version"):
            assert value == getattr(theirs, key), key


def test_a_real_tokenizer_gives_the_ids_of_the_real_file(checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).symlink_to(checkpoint / name)
    derived, given = (GenerationConfig.from_pretrained(f) for f in (tmp_path, checkpoint))
    elsewhere = ("alignment_heads", "max_initial_timestamp_index", "return_timestamps")
    kept = {name: getattr(given, name) for name in (*elsewhere, "transformers_version")}
    assert replace(derived, **kept) == given


def test_without_the_file_ids_come_from_the_tokenizer_and_the_rest_from_config_json(folder):
    write(folder, "config.json", suppress_tokens=[3, 4], max_length=100, d_model=8)
    config = GenerationConfig.from_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    assert config.eos_token_id == tokenizer.eot
    assert config.no_timestamps_token_id == tokenizer.timestamp_begin - 1
    assert config.lang_to_id is not None
    assert config.lang_to_id["<|su|>"] == tokenizer.language_ids["su"]
    tasks = {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate}
    assert config.task_to_id == tasks
    assert (config.suppress_tokens, config.max_length) == ((3, 4), 100)
    assert config.extra == {}


def test_the_first_timestamp_is_bound_to_one_second_unless_the_file_says_otherwise(folder):
    assert GenerationConfig.from_pretrained(folder).initial_timestamp_bound == 50
    # The reference knows no bound where the file has none, and neither does `generate`.
    assert GenerationConfig.from_pretrained(folder).max_initial_timestamp_index is None
    write(folder, max_initial_timestamp_index=None)
    assert GenerationConfig.from_pretrained(folder).initial_timestamp_bound is None
    write(folder, max_initial_timestamp_index=7)
    assert GenerationConfig.from_pretrained(folder).initial_timestamp_bound == 7


def test_a_file_needs_no_tokenizer_and_what_it_lacks_stays_unknown(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither generation_config.json nor config.json"):
        GenerationConfig.from_pretrained(tmp_path)
    write(tmp_path, eos_token_id=2, is_multilingual=False)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.eos_token_id, config.no_timestamps_token_id) == (2, None)
    assert not config.is_multilingual
    tiny_tokenizer(tmp_path / "english", multilingual=False)
    config = GenerationConfig.from_pretrained(tmp_path / "english")
    assert (config.is_multilingual, config.lang_to_id, config.task_to_id) == (False, None, None)


def test_a_value_of_another_type_is_a_checkpoint_error(folder):
    for content, message in (
        ({"lang_to_id": {"<|en|>": "1"}}, r"lang_to_id.* is '1'"),
        ({"alignment_heads": [[1, 2, 3]]}, r"alignment_heads\[0\] is .*expected \[int, int\]"),
        ({"is_multilingual": 1}, "is_multilingual is 1"),
        ({"num_beams": 0}, "num_beams is 0"),
    ):
        write(folder, **content)
        with pytest.raises(CheckpointError, match=message):
            GenerationConfig.from_pretrained(folder)


def test_what_the_file_says_wins_and_is_saved_for_here_and_the_reference(folder, tmp_path):
    given: dict[str, Any] = {"eos_token_id": 7, "lang_to_id": None, "alignment_heads": [[0, 1]]}
    write(folder, **given, suppress_tokens=[1], new_key=1)
    config = GenerationConfig.from_pretrained(folder)
    assert config.eos_token_id == 7
    assert config.lang_to_id is not None
    assert config.alignment_heads == ((0, 1),)
    assert config.extra == {"new_key": 1}
    config.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved") == config
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "saved").to_dict()
    assert theirs["lang_to_id"] == config.lang_to_id
    assert theirs["alignment_heads"] == [[0, 1]]


WRONG: dict[str, Any] = {
    "early_stopping": "often", "max_new_tokens": 0, "num_beams": "5", "top_p": 2.0,
    "repetition_penalty": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_meant_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is {WRONG[name]!r}"):
        GenerationConfig().update(**{name: WRONG[name]})


def test_settings_without_effect_are_refused_on_demand():
    config = GenerationConfig(top_k=3, length_penalty=2.0)
    config.validate()
    with pytest.raises(ValueError, match=r"top_k is set.*length_penalty is set"):
        config.validate(strict=True)
    GenerationConfig(do_sample=True, top_k=3, num_beams=2, length_penalty=2.0).validate(strict=True)


def test_a_models_configuration_gives_what_early_files_kept_there() -> None:
    ours = WhisperConfig(suppress_tokens=[3], decoder_start_token_id=7, max_length=9)
    theirs = transformers.WhisperConfig(suppress_tokens=[3], decoder_start_token_id=7)
    expected = transformers.GenerationConfig.from_model_config(theirs)
    config = GenerationConfig.from_model_config(ours)
    for name in ("suppress_tokens", "begin_suppress_tokens", "decoder_start_token_id"):
        found = getattr(config, name)
        assert (list(found) if isinstance(found, tuple) else found) == getattr(expected, name)
    assert config.max_length == 9
    assert config.eos_token_id == expected.eos_token_id
