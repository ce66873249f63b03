"""Where no model is named, the packaged one transcribes English, offline, and one line says so."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from corpus_asr import Transcriber, read_segments
from corpus_asr.cli import main as cli
from corpus_asr.config.load import load_config
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines import driver
from corpus_asr.runtime import checkpoints as weights
from corpus_asr.storage import model_files

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
SPEECH = REPOSITORY / "tests" / "data" / "speech"
CLIP = str(REPOSITORY / "tests" / "data" / "clips" / "english.wav")
COMMAND = str(Path(sys.executable).parent / "corpus-asr")
NOTICE = (
    "model: whisper-tiny.en, the English model that comes with the package (39M parameters); "
    "{} is more accurate, and multilingual"
)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job of one recording that names no model."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(f"source: {{uri: {CLIP}}}\noutput: {{uri: out}}\n")
    return "job.yaml"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_transcribe_writes_english_without_network_and_only_text_on_stdout(tmp_path: Path) -> None:
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [COMMAND, "transcribe", CLIP], env=os.environ | offline, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [NOTICE.format("--model small or large-v3")]
    assert all(line.startswith("[00:") for line in done.stdout.splitlines())
    assert "the rest being provided with" in done.stdout
    assert "in dimensions varying from 30 feet" in done.stdout


@pytest.mark.parametrize(
    "model", [[], pytest.param(["--model", "whisper-tiny.en"], marks=pytest.mark.slow)]
)
def test_more_than_english_is_refused_before_loading_with_a_model_that_can(
    model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ConfigError("it is loaded")

    monkeypatch.setattr("corpus_asr.transcription.engine.Engine.from_folder", load)
    for option, value, message in (
        ("--language", "de", "decoding.language: found de, but whisper-tiny.en is English-only"),
        ("--language", "German", "decoding.language: found de, but whisper-tiny.en is"),
        ("--set", "language=[en, fr]", "decoding.language: found fr, but whisper-tiny.en is"),
        ("--task", "translate", "decoding.task: found translate, but whisper-tiny.en is English"),
        ("--set", "language_mode=window", "decoding.language_mode: found window, but whisper-"),
    ):
        result = call("transcribe", CLIP, *model, option, value)
        assert result.exit_code == 2
        *notice, printed = result.stderr.splitlines()
        assert len(notice) == (not model)
        assert message in printed
        assert "name a multilingual model, such as base, as the model" in printed
    for language in ("en", "English", "auto"):
        suits = call("transcribe", CLIP, *model, "--language", language)
        assert "it is loaded" in suits.stderr


def test_speech_of_other_languages_is_told_and_marked(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    foreign = sorted((SPEECH / "multilingual").glob("*_[defhr][elsriu]_*.mp3"))
    assert len(foreign) == 6
    for drops in (False, True):
        caplog.clear()
        with Transcriber(beam_size=1, drop_known_hallucinations=drops) as model:
            found = {made.uri: made for made in model.transcribe_many([*foreign, CLIP])}
        english = found.pop(CLIP)
        assert len(found) == len(foreign)
        for transcript in found.values():
            marks = {segment.known_hallucination for segment in transcript.segments}
            assert marks == (set() if drops else {True})
            assert f"transcribing {transcript.uri}: found text of low confidence" in caplog.text
        assert not any(segment.known_hallucination for segment in english.segments)
        told = [words for words in caplog.messages if "(--model base)" in words]
        assert len(told) == len(foreign)
    caplog.clear()
    with Transcriber(beam_size=1, language="en") as model:
        given = model.transcribe(foreign[0])
    assert not any(segment.known_hallucination for segment in given.segments)
    assert "--model base" not in caplog.text
    source = tmp_path / "in"
    source.mkdir()
    for path in foreign[:2]:
        (source / path.name).write_bytes(path.read_bytes())
    job = f"source: {{uri: {source}}}\noutput: {{uri: {tmp_path / 'out'}}}\n"
    (tmp_path / "job.yaml").write_text(job + "decoding: {beam_size: 1}\n")
    done = subprocess.run(
        [COMMAND, "run", "job.yaml", "--local"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr.count("(--model base)") == 1, "the first of a worker"
    rows = read_segments(str(tmp_path / "out")).select(["known_hallucination"]).to_pylist()
    assert rows == [{"known_hallucination": True}] * 2


def test_a_job_in_another_language_is_refused_before_weights_are_fetched(
    job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[bool] = []
    fetch = model_files.fetch_checkpoint

    def watched(name: str, *, weights: bool = True, **rest: Any) -> Path:
        fetched.append(weights)
        return fetch(name, weights=weights, **rest)

    monkeypatch.setattr(weights, "fetch_checkpoint", watched)
    for override in ("decoding.language=de", "decoding.task=translate"):
        with pytest.raises(ConfigError, match=r"whisper-tiny\.en is English-only"):
            driver.prepare(load_config(job, [override]))
    assert fetched
    assert not any(fetched)
    result = call("run", job, "--local", "--set", "decoding.language=de")
    assert result.exit_code == 2
    assert "name a multilingual model" in result.stderr.splitlines()[-1]
