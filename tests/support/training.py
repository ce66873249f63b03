"""Small trainings on words that are tones, and data sets as `corpus-asr label` writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.config.finetune import FinetuneConfig
from corpus_asr.labelling.writers import DATA_FOLDER, HuggingFaceWriter
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer


def tiny_student(folder: Path) -> Path:
    """Write a random checkpoint with a tokenizer; returns its folder."""
    tiny_tokenizer(folder / "tokenizer")
    return tiny_whisper(
        folder / "model",
        tokenizer=folder / "tokenizer",
        d_model=16,
        layers=1,
        heads=2,
        max_target_positions=60,
    )


def write_set(folder: Path, **counts: int) -> Path:
    """Write a data set with that many examples of each split, of three speakers."""
    (folder / DATA_FOLDER).mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(counts.items()):
        rows = [
            {
                "example_id": f"{split}-{number}",
                "text": text,
                "whisper_transcript": f"<|0.30|> {text}<|2.00|>",
                "condition_on_prev": "the wind",
                "language": "en",
                "task": "transcribe",
                "speaker": f"reader_{number % 3}",
            }
            for number, text in enumerate(sentences(count, seed=seed))
        ]
        write_shard(folder / DATA_FOLDER, f"{split}-00000", rows)
    return folder


def write_shard(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write examples, whose audio says their text, as a Parquet file; returns it."""
    writer = HuggingFaceWriter(folder, name, "wav")
    for row in rows:
        writer.add(
            {"example_id": "x", **row}, wav_bytes(spoken(row["text"]), rate_hz=SAMPLE_RATE_HZ)
        )
    writer.close()
    return folder / f"{name}.parquet"


def training(folder: Path, student: Path, output: str = "out", **sections: Any) -> FinetuneConfig:
    """Return a training of two steps on the data set `set` of a folder."""
    settings: dict[str, Any] = {
        "model": {"checkpoint": str(student)},
        "data": {"train": [str(folder / "set")]},
        "training": {
            "use_cpu": True,
            "max_steps": 2,
            "save_steps": 1,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
        },
        "output": str(folder / output),
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section}
    return FinetuneConfig.model_validate(settings)


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
