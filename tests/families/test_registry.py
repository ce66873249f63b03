"""Families by their checkpoints, and what a new family has to bring."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families import registry
from corpus_asr.families.registry import FAMILIES, Family, family_of, resolve
from corpus_asr.models import auto
from corpus_asr.models.auto import AutoConfig, AutoProcessor, AutoTokenizer
from corpus_asr.stages.extraction import PartExtractor
from corpus_asr.stages.parts import ExtractRequest
from corpus_asr.transcription.engine import TRANSCRIBERS, Engine, part_transcriber
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes


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
        del references["model_type"], references["class_prefix"]
        for reference in filter(None, references.values()):
            assert isinstance(resolve(reference), type), reference


def test_a_reference_of_another_form_is_refused():
    for reference in ("json", "json:", ":loads", "json:loads()", "json:a.b"):
        with pytest.raises(ValueError, match="expected the form"):
            resolve(reference)


_HERE = "tests.support.levels"
LEVELS = Family(
    model_type="levels",
    class_prefix="Levels",
    config=f"{_HERE}:LevelsConfig",
    generation=f"{_HERE}:LevelsConfig",
    tokenizer=f"{_HERE}:LevelsTokenizer",
    part_features=f"{_HERE}:LevelsFeatures",
    slot_model=f"{_HERE}:LevelsModel",
)
DECODING = DecodingSettings()


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the new family, which the registry knows for this test."""
    known = MappingProxyType({**FAMILIES, LEVELS.model_type: LEVELS})
    for module in (registry, auto):
        monkeypatch.setattr(module, "FAMILIES", known)
    monkeypatch.setitem(TRANSCRIBERS, LEVELS.model_type, f"{_HERE}:LevelsTranscriber")
    resolve(LEVELS.config)(threshold=0.05).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def parts_of(checkpoint: Path, *sounds: Path) -> Iterator[PartRequest]:
    settings = ExtractSettings(part_s=30.0, vad_filter=False, vad_pad_s=0.0)
    extractor = PartExtractor(folder=str(checkpoint), settings=settings)
    for sound in sounds:
        for part in extractor(ExtractRequest(uri=str(sound))):
            same = {name: getattr(part, name) for name in ("part", "features", "pad_value")}
            same |= {"num_samples": part.num_samples, "recording_id": sound.name}
            yield PartRequest(start_s=part.start_sample / SAMPLE_RATE_HZ, speech=None, **same)


def test_its_checkpoints_are_extracted_and_decoded_by_what_there_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    sounds = {"loud.wav": noise(30), "quiet.wav": noise(5) / 100}
    for name, samples in sounds.items():
        (tmp_path / name).write_bytes(wav_bytes(samples, rate_hz=SAMPLE_RATE_HZ))
    parts = list(parts_of(checkpoint, *(tmp_path / name for name in sounds)))
    with Engine.from_folder(checkpoint, decoding=DECODING, device="cpu", slots=2) as engine:
        futures = [engine.submit(part) for part in parts]
        segments = [future.result(60).segments for future in futures]
    assert [part.recording_id for part in parts] == ["loud.wav", "quiet.wav"]
    assert [part[0].text for part in segments] == [" loud", " quiet"]
    assert [part[-1].end_s for part in segments] == [30.0, 5.0]


def test_it_refuses_what_it_cannot_do(checkpoint: Path) -> None:
    asked = DecodingSettings(word_timestamps=True)
    with pytest.raises(ConfigError, match=r"decoding\.word_timestamps: found true"):
        Engine.from_folder(checkpoint, decoding=asked, device="cpu", slots=1)
    with pytest.raises(CheckpointError, match="the family levels, which has no such class"):
        AutoProcessor.from_pretrained(checkpoint)


def test_its_parts_are_found_by_name_and_its_config_is_checked(checkpoint: Path) -> None:
    assert family_of(checkpoint) is LEVELS
    assert AutoConfig.from_pretrained(checkpoint, threshold=0.5).threshold == 0.5
    assert AutoTokenizer.from_pretrained(checkpoint).decode([2, 1, 0]) == " loud quiet"
    part_transcriber(checkpoint).check(DECODING)
    with pytest.raises(ValueError, match="num_words is 0, expected within 1 and"):
        AutoConfig.for_model("levels", num_words=0)
    with pytest.raises(TypeError, match="found the keyword 'threshold_', expected 'threshold'"):
        AutoConfig.for_model("levels", threshold_=0.5)
    (checkpoint / "config.json").write_text('{"model_type": "levels", "threshold": 2}')
    with pytest.raises(CheckpointError, match=r"threshold is 2\.0, expected within 0 and 1"):
        AutoConfig.from_pretrained(checkpoint)
