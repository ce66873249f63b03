"""Settings of trainings: the example shows them all, and what does not go together is refused."""

import re
from pathlib import Path

import pytest

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.config.load import load_finetune
from corpus_asr.config.settings import section_of
from corpus_asr.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "finetune.yaml"
MINIMAL = "model: {checkpoint: m}\ndata: {train: m}\noutput: out\n"


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for name, field in FinetuneConfig.model_fields.items():
        found = re.search(rf"^{name}:(?: .*)?\n((?: .*\n)*)", text, re.MULTILINE)
        assert found, name
        section = section_of(field)
        if section is not None:
            shown = set(re.findall(r"^  (?:# )?(\w+): ", found[1], re.MULTILINE))
            assert shown == set(section.model_fields), name


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL + "lora: {r: 8}\ntraining:\n", encoding="utf-8")
    config = load_finetune(path, ["training.learning_rate=1e-3", "training.bf16=true"])
    assert config.training == {"learning_rate": 1e-3, "bf16": True}
    assert config.data.train == ("m",)
    for override, messages in (
        ("training=3", "expected keys below it"),
        ("windows.pack=true", r"windows: unknown key; expected one of: model, data, lora"),
        ("trainings.max_steps=3", r"trainings: unknown key; did you mean training\?"),
        ("data.held_out_speaker=a", r"did you mean data\.held_out_speakers\?"),
        ("data.timestamp_probability=1.1", "at least 0 and at most 1"),
        ("data.train=[]", r"data\.train"),
        ("model.freeze=[model.encoder.*]", r"remove model\.freeze"),
        ("output=s3://models/a", "expected a local folder"),
    ):
        with pytest.raises(ConfigError, match=messages):
            load_finetune(path, [override])
