"""The guide and the example configuration name every rule, key and column there is."""

from pathlib import Path

from corpus_asr.config.load import load_config
from corpus_asr.config.run import DatasetSettings, PseudoLabelConfig, SelectionSettings
from corpus_asr.schemas import EXAMPLES
from tests.labelling.test_selection import BAD

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = (REPOSITORY / "docs" / "pseudo_labels.md").read_text()
EXAMPLE = REPOSITORY / "configs" / "pseudo_label.yaml"


def test_the_guide_names_every_rule_column_and_setting_of_a_rule() -> None:
    for name in (*BAD, *EXAMPLES.names):
        assert f"`{name}`" in GUIDE, name
    for key in SelectionSettings.model_fields:
        assert f"`{key}`" in GUIDE or f"selection.{key}" in GUIDE, key


def test_the_example_shows_every_key_with_its_default() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for section in (SelectionSettings, DatasetSettings):
        for key in section.model_fields:
            assert any(line.startswith((f"  {key}:", f"  # {key}:")) for line in lines), key
    config = load_config(EXAMPLE)
    assert isinstance(config, PseudoLabelConfig)
    usual = SelectionSettings(drop_texts=config.selection.drop_texts)
    assert config.selection == usual
    assert config.dataset == DatasetSettings(uri=config.dataset.uri)
