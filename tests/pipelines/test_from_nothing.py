"""A training from nothing: speech and network are made once, and then trained."""

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from corpus_asr.cli import app
from corpus_asr.models.whisper.processor import WhisperProcessor
from tests.support.audio import tone, wav_bytes


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flite that hums for two seconds, whatever is to be said."""
    folder = tmp_path / "programs"
    folder.mkdir()
    wav = folder / "spoken.wav"
    wav.write_bytes(wav_bytes(tone(2.0), rate_hz=16_000))
    program = folder / "flite"
    program.write_text(f'#!/bin/sh\nfor out; do :; done\nexec /bin/cp {wav} "$out"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def settings(folder: Path) -> dict[str, Any]:
    speech = folder / "speech"
    return {
        "model": {"checkpoint": str(folder / "fresh"), "device": "cpu", "dtype": "float32"},
        "speech": {
            "folder": str(speech), "hours": 0.01, "validation_hours": 0.003, "workers": 1,
        },
        "network": {
            "text_tokens": 300, "width": 32, "feed_forward": 64, "heads": 2,
            "encoder_layers": 1, "decoder_layers": 1,
        },
        "data": {
            "train": [str(speech / "train.jsonl")],
            "validation": [str(speech / "validation.jsonl")],
            "cache": str(folder / "cache"), "workers": 1,
        },
        "training": {"steps": 1, "batch_windows": 1, "windows_at_once": 1, "ctc_weight": 0.3},
        "evaluation": {"max_windows": 1},
        "output": {"uri": str(folder / "trained")},
    }  # fmt: skip


@pytest.mark.slow
def test_a_network_is_made_trained_and_written(tmp_path: Path, voices: None) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)), encoding="utf-8")
    done = CliRunner().invoke(app, ["finetune", str(path)])
    assert done.exit_code == 0, done.output
    assert "spoken by 4 voices: 0.01 h for train" in done.output
    assert "trained for 1 steps" in done.output
    tokenizer = WhisperProcessor.from_pretrained(tmp_path / "trained" / "model").tokenizer
    assert tokenizer.decode(tokenizer("The old bridge.").input_ids, skip_special_tokens=True) == (
        "The old bridge."
    )
    made = {name: (tmp_path / name).stat().st_mtime_ns for name in ("speech", "fresh")}
    again = CliRunner().invoke(app, ["finetune", str(path)])
    assert again.exit_code == 0, again.output
    assert "spoken by" not in again.output
    assert made == {name: (tmp_path / name).stat().st_mtime_ns for name in made}


def test_a_section_that_is_not_known_is_told(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    wrong = {**settings(tmp_path), "network": {"wide": 3}}
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    done = CliRunner().invoke(app, ["finetune", str(path)])
    assert done.exit_code == 2
    assert "network.wide: unknown key; did you mean network.width?" in done.output
