"""The guide and the example configuration name every rule, key and column; its commands upload."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from corpus_asr.config.load import load_config
from corpus_asr.config.run import DatasetSettings, PseudoLabelConfig, SelectionSettings
from corpus_asr.schemas import EXAMPLES
from tests.labelling.test_selection import BAD

REPOSITORY = Path(__file__).resolve().parents[2]
HOW_TO = ("pseudo_labels.md", "dataset_formats.md", "two_runs.md")
PAGES = (*(f"how-to/{name}" for name in HOW_TO), "reference/label_rules.md")
GUIDE = "\n".join((REPOSITORY / "docs" / name).read_text() for name in PAGES)
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


def test_the_client_of_the_hub_takes_the_commands_that_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", minversion="2")
    from huggingface_hub.cli.hf import app

    calls: list[dict] = []

    def record(_, **options):
        calls.append(options)
        return SimpleNamespace(repo_id=options["repo_id"])

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(hub.HfApi, name, record)
    for folder in ("training", "better/model"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^\$ hf (upload .*)$", GUIDE, re.MULTILINE):
        app.main(shlex.split(command), standalone_mode=False)
    data_set, files, model, weights = calls
    assert (data_set["repo_type"], model["repo_type"]) == ("dataset", "model")
    assert data_set["private"] is model["private"] is True
    assert (files["path_in_repo"], weights["path_in_repo"]) == (".", ".")
    assert files["ignore_patterns"] == ["_run/*"]
