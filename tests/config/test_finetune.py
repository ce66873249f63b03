"""Settings of trainings: the example shows them all, and what does not go together is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from corpus_asr.config.finetune import AugmentationSettings, FinetuneConfig
from corpus_asr.config.load import load_finetune
from corpus_asr.config.settings import Settings
from corpus_asr.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "finetune.yaml"
MINIMAL: dict[str, Any] = {
    "model": {"checkpoint": "m"}, "data": {"train": ["m.jsonl"]}, "output": {"uri": "out"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S3_ENDPOINT", raising=False)


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for section, field in FinetuneConfig.model_fields.items():
        found = re.search(rf"^{section}:\n((?: .*\n)*)", text, re.MULTILINE)
        assert found, section
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Settings)
        shown = set(re.findall(r"^  (?:# )?(\w+): ", found[1], re.MULTILINE))
        assert shown == set(kind.model_fields), section


def test_the_example_loads_and_says_the_defaults() -> None:
    shown = load_finetune(EXAMPLE)
    for section in ("lora", "windows", "training", "distillation", "evaluation", "cluster"):
        found = getattr(shown, section)
        assert found == type(found)(), section
    assert shown.output.save_steps == 200


def test_augmentation_is_off_unless_asked_for_and_ranges_arrive_as_written() -> None:
    plain = AugmentationSettings()
    assert (plain.speed, plain.gain_db) == ((1.0, 1.0), (0.0, 0.0))
    values = plain.model_dump()
    assert {values[name] for name in values if name.endswith(("_prob", "_probability"))} == {0.0}
    assert load_finetune(EXAMPLE).augmentation.speed == (0.9, 1.1)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    load_finetune(path, ["lora.rank=8"])
    for override, messages in (
        ("training.gradient_accumulation_steps=0", "expected a whole number above 0"),
        ("training.adam_beta2=1", "at least 0 and below 1"),
        ("lora.rank=0", "expected a whole number above 0"),
        ("windows.max_pause_s=11", "at least 0 and at most 10"),
        ("augmentation.mask_feature_length=61", "at least 1 and at most 60"),
        ("augmentation.speed=[1.1, 0.9]", "smaller number first"),
        ("augmentation.speed=[0.1, 1]", "factors from 0.5 to 2"),
        ("training.lerning_rate=1", "learning_rate"),
        ("data.train=[]", r"data\.train"),
        ("model.freeze=[model.encoder.*]", r"remove\s+model\.freeze"),
    ):
        with pytest.raises(ConfigError, match=messages):
            load_finetune(path, ["lora.rank=8", override])
