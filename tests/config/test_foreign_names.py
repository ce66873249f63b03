"""Who writes another program's name of a setting is told ours."""

from pathlib import Path

import pytest

from corpus_asr.config import foreign_names
from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.foreign_names import name_hint
from corpus_asr.config.load import load_config, load_finetune
from corpus_asr.config.options import options_from
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.config.settings import keys_of
from corpus_asr.errors import ConfigError

MODELS = (PseudoLabelConfig, FinetuneConfig)
OURS = [".".join(key) for model in MODELS for key, _ in keys_of(model)]


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("num_beams", "did you mean decoding.beam_size?"),
        ("--beam-width", "did you mean decoding.beam_size?"),
        ("fp16", "did you mean model.compute_type?"),
        ("dtype", "did you mean model.compute_type?"),
        ("Prompt", "did you mean decoding.initial_prompt?"),
        ("word_level", "did you mean decoding.word_timestamps?"),
        ("batch_size", "did you mean transcribe.slots?"),
        ("condition_on_previous_text", "did you mean decoding.condition_on_prev_tokens?"),
        ("best_of", "there is none here: one sample"),
        ("patience", "there is none here: beam search"),
        ("suppress_tokens", "there is none here: the checkpoint's generation_config.json"),
        ("temprature", ""),  # only slips of a name of the same place are guessed
        ("quite_another", ""),
    ],
)
def test_a_foreign_name_is_answered_with_ours(written: str, hint: str) -> None:
    found = name_hint(written, [], OURS)
    assert found.startswith(hint)
    assert bool(found) == bool(hint)


def test_no_foreign_name_is_one_of_ours_and_every_hint_names_a_setting() -> None:
    known = {key.rpartition(".")[2] for key in OURS} | {"num_threads"}
    named = foreign_names._FOREIGN_NAMES
    foreign = [name for names in named.values() for name in names.split()]
    assert set(named) <= known
    assert not known & {*foreign, *foreign_names._ABSENT}


def test_every_way_in_gives_the_hint(tmp_path: Path) -> None:
    job, tuning = tmp_path / "job.yaml", tmp_path / "tuning.yaml"
    job.write_text("source: {uri: a}\nmodel: {checkpoint: b, dtype: int8}\noutput: {uri: c}\n")
    tuning.write_text("model: {checkpoint: a, dtype: b}\ndata: {train: [a]}\noutput: {uri: b}\n")
    with pytest.raises(ConfigError, match=r"line 2: model\.dtype: .*mean model\.compute_type\?"):
        load_config(job)
    with pytest.raises(ConfigError, match=r"num_beams: .* did you mean decoding\.beam_size\?"):
        load_config(job, ["decoding.num_beams=5"])
    with pytest.raises(ConfigError, match=r"model\.dtype: .* did you mean model\.compute_type\?"):
        load_finetune(tuning)
    with pytest.raises(ConfigError, match=r"num_beams: .* beam_size\?; fp16: .* compute_type\?"):
        options_from({"num_beams": 5, "fp16": True}, fixed=["compute_type"])
