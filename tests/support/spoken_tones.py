"""Words that are tones: a language a tiny network can learn, and audio of it.

Each word is a tone of its own height; a recording is some words with pauses.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes

HEIGHTS_HZ = {"ask": 300.0, "country": 700.0, "wind": 1500.0, "sun": 3000.0}
WORD_S, PAUSE_S = 0.5, 0.3


def sentences(count: int, *, seed: int, words: int = 4) -> list[str]:
    """Draw sentences of so many words at most."""
    draw = np.random.default_rng(seed)
    return [
        " ".join(draw.choice(list(HEIGHTS_HZ), size=draw.integers(1, words + 1)))
        for _ in range(count)
    ]


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
