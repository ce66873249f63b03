"""Families by their checkpoints."""

import json
from dataclasses import fields

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import FAMILIES, family_of, resolve


def test_a_checkpoint_names_its_family(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert family_of(tmp_path) is FAMILIES["whisper"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', "found model_type 'bert', expected one of: speech_to_text, wh"),
        ('{"model_type": ["whisper"]}', "found model_type"),
        ("{}", "found model_type None"),
        ("[]", "expected an object"),
        ("{", "no readable JSON"),
    ],
)
def test_anything_else_is_a_checkpoint_error(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        family_of(tmp_path)


def test_a_folder_without_config_json_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: found no such file"):
        family_of(tmp_path)


def test_every_reference_names_something_that_exists():
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        references = {f.name: getattr(family, f.name) for f in fields(family)}
        del references["model_type"], references["class_prefix"]
        for reference in filter(None, references.values()):
            assert isinstance(resolve(reference), type), reference


@pytest.mark.parametrize("reference", ["json", "json:", ":loads", "json:loads()", "json:a.b"])
def test_a_reference_of_another_form_is_refused(reference):
    with pytest.raises(ValueError, match="expected the form"):
        resolve(reference)


def test_resolving_imports_the_module():
    assert resolve("json:loads") is json.loads
