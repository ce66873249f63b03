"""Families by their checkpoints."""

from dataclasses import fields

import pytest

from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import FAMILIES, family_of, resolve
from corpus_asr.models.auto import AutoProcessor


def test_a_checkpoint_that_names_no_family_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: found no such file"):
        family_of(tmp_path)
    for content, message in (
        ('{"model_type": "bert"}', "found model_type 'bert', expected one of: parakeet_ctc, pa"),
        ('{"model_type": ["whisper"]}', "found model_type"),
        ('{"model_type": "canary"}', "found model_type 'canary'"),
        ("{}", "found model_type None"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            family_of(tmp_path)


def test_every_reference_names_something_that_exists():
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        references = {f.name: getattr(family, f.name) for f in fields(family)}
        del references["model_type"], references["class_prefix"], references["wide"]
        for reference in filter(None, references.values()):
            assert isinstance(resolve(reference), type), reference


def test_a_reference_of_another_form_is_refused():
    for reference in ("json", "json:", ":loads", "json:loads()", "json:a.b"):
        with pytest.raises(ValueError, match="expected the form"):
            resolve(reference)


def test_a_family_without_a_class_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "parakeet_ctc"}')
    with pytest.raises(
        CheckpointError, match="the family parakeet_ctc, expected one with such a class"
    ):
        AutoProcessor.from_pretrained(tmp_path)
