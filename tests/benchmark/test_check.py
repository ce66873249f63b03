"""`check`: a checkpoint's texts are compared with those of transformers, and differences shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from corpus_asr.benchmark import check as checking
from corpus_asr.benchmark.check import differing_words
from corpus_asr.cli import main as cli
from corpus_asr.families.registry import family_of
from corpus_asr.models import auto
from corpus_asr.report.text import duration
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip, wav_bytes
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.parakeet import KINDS, parakeet_checkpoint
from tests.support.tokenizers import tiny_speech2text_tokenizer, tiny_tokenizer

FAMILIES = ("Whisper", "Speech2Text", *KINDS)
LOADERS = {"Whisper": "SpeechSeq2Seq", "Speech2Text": "SpeechSeq2Seq"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what writes a random checkpoint of a family, once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(family: str) -> Path:
        folder, tokens = root / family, root / f"{family}-tokenizer"
        if folder.exists():
            return folder
        # They find no end, and with one matrix for both say one token over and over.
        sizes: dict[str, Any] = {"tokenizer": tokens, "spread": 0.25, "max_target_positions": 24}
        if family == "Whisper":
            tiny_tokenizer(tokens)
            tiny_whisper(folder, seed=3, **sizes)
        elif family == "Speech2Text":
            tiny_speech2text_tokenizer(tokens)
            tiny_speech2text(folder, tie_word_embeddings=False, **sizes)
        else:
            parakeet_checkpoint(family, folder)
        return folder

    return checkpoint


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    samples = read_clip(Path(__file__).parents[1] / "data" / "clips" / "english.wav")
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    path.write_bytes(wav_bytes(samples[None, : 3 * SAMPLE_RATE_HZ], rate_hz=SAMPLE_RATE_HZ))
    return str(path)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["check", *map(str, arguments)])


def compared(*arguments: str | Path, code: int) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.output
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["equal"] is (code == 0)
    return data


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_checkpoint_says_the_same(
    family: str, made: Callable[[str], Path], clip: str
) -> None:
    (file,) = compared(made(family), clip, code=0)["files"]
    assert file["transformers"] == file["ours"] != ""
    assert file["compared_s"] == file["duration_s"] == 3.0
    assert (file["words"], file["first_token"]) == ([], None)
    assert file["num_tokens"] > 1
    assert file["features_difference"] < 2e-3
    assert file["scores_difference"] < 2e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_are_a_difference(
    family: str, made: Callable[[str], Path], clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = getattr(auto, f"AutoModelFor{LOADERS.get(family, family)}")
    load = loader.from_pretrained

    def perturbed(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        return model

    monkeypatch.setattr(loader, "from_pretrained", perturbed)
    (file,) = compared(made(family), clip, code=1)["files"]
    assert file["transformers"] != file["ours"]
    assert file["words"]
    assert file["first_token"]["transformers"] != file["first_token"]["ours"]
    assert file["features_difference"] < 2e-3 < file["scores_difference"]


def test_another_tokenizer_is_a_difference_of_words_alone(
    made: Callable[[str], Path], clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = made("TDT"), tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    words = [piece for piece in vocabulary if piece.startswith("▁") and len(piece) > 4]
    (text,) = [file["ours"] for file in compared(folder, clip, code=0)["files"]]
    said, unsaid = (
        next(word for word in words if (word[1:] in text) is wanted) for wanted in (True, False)
    )
    vocabulary[said], vocabulary[unsaid] = vocabulary[unsaid], vocabulary[said]
    path.write_text(json.dumps(content))
    load = auto.AutoProcessor.from_pretrained
    monkeypatch.setattr(auto.AutoProcessor, "from_pretrained", lambda *_, **__: load(other))
    file = compared(folder, clip, code=1)["files"][0]
    assert file["first_token"] is None
    assert file["scores_difference"] < 2e-3
    assert any(said[1:] in theirs and unsaid[1:] in ours for theirs, ours in file["words"])
    done = run(folder, clip, clip)
    assert done.exit_code == 1
    assert f"{clip}, 3.0 s: different" in done.stdout
    assert unsaid[1:] in done.stdout
    assert "2 of 2 texts different" in done.stdout


def test_long_files_are_compared_in_one_window(made: Callable[[str], Path], tmp_path: Path) -> None:
    samples = read_clip(Path(__file__).parents[1] / "data" / "clips" / "english.wav")
    path = tmp_path / "long.wav"
    path.write_bytes(wav_bytes(samples[None].repeat(4, axis=1), rate_hz=SAMPLE_RATE_HZ))
    done = run(made("Whisper"), path)
    assert done.exit_code == 0
    assert f"{path}, the first 30 s of {duration(len(samples) * 4 / SAMPLE_RATE_HZ)}" in done.stdout
    assert "all texts are equal" in done.stdout


def test_windows_are_those_of_a_run(made: Callable[[str], Path]) -> None:
    # Two minutes of Parakeet: longer ones are read in another way, or not at all.
    folder = made("CTC")
    assert checking._window_s(family_of(folder), folder) == 120


def test_what_is_missing_is_named(
    made: Callable[[str], Path], clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(made("CTC"), "none.wav")
    assert (done.exit_code, done.stderr.strip()) == (
        2, "corpus-asr: opening none.wav: no such file; check the name"
    )  # fmt: skip
    done = run("whisper-tiny.en", clip)
    assert done.exit_code == 2
    assert "name a checkpoint that transformers can load, with float weights" in done.stderr
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    done = run(made("CTC"), clip)
    assert done.exit_code == 2
    assert "found no package transformers, expected it; pip install faster-whisper " in " ".join(
        done.stderr.split()
    )


def test_an_older_transformers_is_named(
    made: Callable[[str], Path], clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checking._MODEL_CLASSES, "parakeet_ctc", "AutoModelForNothing")
    done = run(made("CTC"), clip)
    assert done.exit_code == 2
    assert "has no AutoModelForNothing" in done.stderr


def test_differing_words() -> None:
    assert list(differing_words("a b c", "a x c d")) == [("b", "x"), ("", "d")]
    assert list(differing_words("", "a b")) == [("", "a b")]
    assert list(differing_words("a", "")) == [("a", "")]
    assert list(differing_words("", "")) == []
