"""Small trainings on words that are tones, which a tiny network can learn."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.families.weights import stored_tensors
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

COMMAND = [sys.executable, "-c", "from corpus_asr.__main__ import main; main()", "finetune"]
CHECKPOINT_LIMIT_S = 250.0


def tiny_student(folder: Path, **config: Any) -> Path:
    """Write a random checkpoint with a tokenizer; returns its folder."""
    tiny_tokenizer(folder / "tokenizer")
    sizes = {"d_model": 32, "layers": 1, "heads": 2, "max_target_positions": 60}
    return tiny_whisper(folder / "model", tokenizer=folder / "tokenizer", **{**sizes, **config})


def write_sets(folder: Path, *, train: int = 12, validation: int = 4) -> None:
    """Write recordings to learn from and to be asked for, in folders of these names."""
    write_recordings(folder / "train", sentences(train, seed=0))
    write_recordings(folder / "validation", sentences(validation, seed=1))


def training(folder: Path, student: Path, output: str = "out", **sections: Any) -> FinetuneConfig:
    """Return a training of four steps on what `write_sets` wrote."""
    settings: dict[str, dict[str, Any]] = {
        "model": {"checkpoint": str(student), "compute_type": "float32", "device": "cpu"},
        "data": {
            "train": [str(folder / "train" / "manifest.jsonl")],
            "cache": str(folder / "cache"),
            # A process of many tests has threads whose locks a forked loader may inherit for good.
            "workers": 0,
        },
        "augmentation": {"noise_probability": 0.5, "mask_time_prob": 0.02},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
        },
        "output": {"uri": str(folder / output), "save_steps": 2},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section}
    return FinetuneConfig.model_validate(settings)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in stored_tensors(folder).items()}


def assert_same_weights(first: Path, second: Path, *, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(weights_in(second), weights_in(first), rtol=0, atol=tolerance)


def job(config: FinetuneConfig, path: Path) -> str:
    """Write the YAML file of a training; returns its path."""
    path.write_text(config.model_dump_json(), encoding="utf-8")  # YAML reads JSON
    return str(path)


def wait_for_checkpoint(output: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a training in another process can be gone on with."""
    limit = time.monotonic() + CHECKPOINT_LIMIT_S
    while process.poll() is None and time.monotonic() < limit:
        if list(output.glob("checkpoints/*/state.json")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint in {output}; exit code {process.poll()}")


HEIGHTS_HZ = {"ask": 300.0, "country": 700.0, "wind": 1500.0, "sun": 3000.0}
WORD_S, PAUSE_S = 0.5, 0.3


def sentences(count: int, *, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(list(HEIGHTS_HZ), size=draw.integers(1, 5))) for _ in range(count)]


def spoken(text: str) -> np.ndarray:
    """Return the samples of a sentence, with a pause after each word."""
    pause = np.zeros((1, round(PAUSE_S * SAMPLE_RATE_HZ)), np.float32)
    pieces = [part for word in text.split() for part in (tone(WORD_S, hz=HEIGHTS_HZ[word]), pause)]
    return np.concatenate([pause, *pieces], axis=1)


def write_recordings(folder: Path, texts: Sequence[str]) -> Path:
    """Write a recording of each text, and a manifest beside them; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for at, text in enumerate(texts):
        path = folder / f"{at:03}.wav"
        path.write_bytes(wav_bytes(spoken(text), rate_hz=SAMPLE_RATE_HZ))
        rows.append({"path": path.name, "text": text, "language": "en"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
