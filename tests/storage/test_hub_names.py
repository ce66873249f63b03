"""Short names mean the hub's, folders of such names are folders, misspelt names are recognized."""

from pathlib import Path

import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.hub_names import (
    KNOWN_NAMES,
    SHORT_NAMES,
    full_name,
    hub_name,
    probably_meant,
)
from corpus_asr.storage.versions import safe_config


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("tiny", "openai/whisper-tiny"),
        ("tiny.en", "openai/whisper-tiny.en"),
        ("base", "openai/whisper-base"),
        ("base.en", "openai/whisper-base.en"),
        ("small", "openai/whisper-small"),
        ("small.en", "openai/whisper-small.en"),
        ("medium", "openai/whisper-medium"),
        ("medium.en", "openai/whisper-medium.en"),
        ("large", "openai/whisper-large-v3"),
        ("large-v1", "openai/whisper-large"),
        ("large-v2", "openai/whisper-large-v2"),
        ("large-v3", "openai/whisper-large-v3"),
        ("turbo", "openai/whisper-large-v3-turbo"),
        ("large-v3-turbo", "openai/whisper-large-v3-turbo"),
        ("whisper-small", "openai/whisper-small"),
        ("whisper-turbo", "openai/whisper-large-v3-turbo"),
        ("distil-small.en", "distil-whisper/distil-small.en"),
        ("distil-medium.en", "distil-whisper/distil-medium.en"),
        ("distil-large-v2", "distil-whisper/distil-large-v2"),
        ("distil-large-v3", "distil-whisper/distil-large-v3"),
        ("distil-large-v3.5", "distil-whisper/distil-large-v3.5"),
        ("whisper-tiny.en", "whisper-tiny.en"),
        ("openai/whisper-tiny.en", "openai/whisper-tiny.en"),
        ("lab/small", "lab/small"),
        ("s3://models/small", "s3://models/small"),
    ],
)
def test_short_names_are_the_hubs_and_other_names_stay(short: str, full: str) -> None:
    assert full_name(short) == full


def test_every_short_name_leads_to_a_known_one() -> None:
    assert set(SHORT_NAMES.values()) <= set(KNOWN_NAMES)


def test_a_folder_of_a_short_name_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert full_name("small") == "small"
    assert hub_name("small") == "openai/whisper-small"
    assert full_name("base") == "openai/whisper-base"


def test_what_a_run_notes_has_the_full_names_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder has such a name
    model = {"checkpoint": "small", "by_language": {"de": "turbo", "fr": "lab/french"}}
    config = RunConfig.model_validate(
        {"source": {"uri": "a"}, "model": model, "output": {"uri": "b"}}
    )
    noted = safe_config(config)["model"]
    assert noted["checkpoint"] == "openai/whisper-small"
    assert noted["by_language"] == {"de": "openai/whisper-large-v3-turbo", "fr": "lab/french"}
    unnamed = RunConfig.model_validate({"source": {"uri": "a"}, "output": {"uri": "b"}})
    assert safe_config(unnamed)["model"]["checkpoint"] == "whisper-tiny.en"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("openai/whisper-smal", "openai/whisper-small"),
        ("smal", "small"),
        ("large-v4", "large-v3"),
        ("Turbo", "turbo"),
        ("whisper_tiny", "whisper-tiny"),
        ("whisper-tiny-en", "whisper-tiny.en"),
        ("distil-larg-v3", "distil-large-v3"),
        ("facebook/s2t-small", "facebook/s2t-small-librispeech-asr"),
        ("s2t-small-librispeech-asr", "facebook/s2t-small-librispeech-asr"),
        ("bert-base-uncased", None),
        ("lab/german-telephone", None),
    ],
)
def test_the_name_that_was_meant_is_found(typed: str, meant: str | None) -> None:
    assert probably_meant(typed) == meant


def test_known_names_are_not_corrected() -> None:
    known = (*KNOWN_NAMES, *SHORT_NAMES, "whisper-small", "whisper-tiny.en")
    assert {probably_meant(name) for name in known} == {None}
