"""The Auto classes find each checkpoint's family and hand over to it."""

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.models import speech2text, whisper
from corpus_asr.models.auto import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
)
from corpus_asr.models.speech2text import (
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from corpus_asr.models.whisper import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForCausalLM,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from tests.support.audio import read_clip
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

CLASSES: dict[str, dict[Any, type]] = {
    "whisper": {
        AutoConfig: WhisperConfig,
        AutoFeatureExtractor: WhisperFeatureExtractor,
        AutoTokenizer: WhisperTokenizer,
        AutoProcessor: WhisperProcessor,
        AutoModelForSpeechSeq2Seq: WhisperForConditionalGeneration,
        AutoModelForCausalLM: WhisperForCausalLM,
    },
    "speech2text": {
        AutoConfig: Speech2TextConfig,
        AutoFeatureExtractor: Speech2TextFeatureExtractor,
        AutoTokenizer: Speech2TextTokenizer,
        AutoProcessor: Speech2TextProcessor,
        AutoModelForSpeechSeq2Seq: Speech2TextForConditionalGeneration,
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("auto")
    tiny_tokenizer(folder / "tokenizer")
    tokens = tiny_speech2text_tokenizer(folder / "pieces")
    tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", d_model=16, layers=1)
    tiny_speech2text(folder / "other", tokenizer=tokens, layers=1)
    return {"whisper": folder / "model", "speech2text": folder / "other"}


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["whisper"]


@pytest.mark.parametrize("family", CLASSES)
def test_each_loads_the_familys_class(
    checkpoints: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = checkpoints[family]
    for auto_class, expected in CLASSES[family].items():
        for name in (folder, str(folder), f"file://{folder}"):
            assert type(auto_class.from_pretrained(name)) is expected
    # Without config.json the classes that wrote the files say whose they are.
    processor = AutoProcessor.from_pretrained(folder)
    for part in (processor, processor.feature_extractor, processor.tokenizer):
        saved = tmp_path / type(part).__name__
        part.save_pretrained(saved)
        assert not (saved / "config.json").exists()
        (auto_class,) = (one for one, own in CLASSES[family].items() if own is type(part))
        assert type(auto_class.from_pretrained(saved)) is type(part)
    file = tmp_path / type(processor).__name__ / "preprocessor_config.json"
    for auto_class in (AutoFeatureExtractor, AutoProcessor):
        assert type(auto_class.from_pretrained(file)) is CLASSES[family][auto_class]


def test_options_reach_the_class_and_what_has_no_meaning_does_not(checkpoint: Path) -> None:
    name: dict[str, Any] = {"pretrained_model_name_or_path": checkpoint.parent}
    name["subfolder"] = "model"
    ignored: dict[str, Any] = {"use_fast": False, "trust_remote_code": True}
    ignored |= {"revision": "main", "token": None}
    extractor = AutoFeatureExtractor.from_pretrained(**name, **ignored, dither=0.5)
    assert extractor.dither == 0.5
    tokenizer = AutoTokenizer.from_pretrained(**name, **ignored, language="de", task="transcribe")
    assert "<|de|>" in tokenizer.decode(tokenizer.prefix_tokens)
    assert AutoProcessor.from_pretrained(**name, **ignored, dither=0.5).feature_extractor.dither
    assert AutoConfig.from_pretrained(**name, **ignored).d_model == 16
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint, trust_remote_code=False)
    assert loaded.config.d_model == 16


@pytest.mark.parametrize("auto_class", CLASSES["whisper"])
def test_other_families_are_refused_by_name_and_none_is_ever_made(
    auto_class: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(CheckpointError, match="found model_type 'wav2vec2', expected one of"):
        auto_class.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=rf"expected {auto_class.__name__}\.from_pretrained"):
        auto_class()


def test_packages_list_what_they_load_when_it_is_asked_for() -> None:
    for package in (speech2text, whisper):
        assert {*package.__all__} <= {*dir(package)}


@pytest.mark.long
@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="it generates more than these positions"
)
def test_the_guides_loop_shows_the_texts_of_both_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "reference" / "transformers.md").read_text()
    section = guide.partition("## Check a checkpoint\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section.partition("\n## ")[0], re.M | re.S)
    tiny_tokenizer(tmp_path / "tokenizer")
    # With one matrix for both it says one token over and over.
    sizes: dict[str, Any] = {"spread": 0.25, "max_target_positions": 24}
    tiny_whisper(tmp_path / "model", tokenizer=tmp_path / "tokenizer", seed=3, **sizes)
    samples = read_clip(Path(__file__).parents[1] / "data" / "clips" / "english.wav")[:48_000]
    exec(code, {"checkpoint": tmp_path / "model", "samples": samples})
    expected, found = capsys.readouterr().out.splitlines()
    assert expected == found != "['']"
