"""Sounds made or read for tests: tones, noise, and real clips where the machine has them."""

import json
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32

from corpus_asr.units import SAMPLE_RATE_HZ


def read_clip(path: Path) -> Float32[np.ndarray, " sample"]:
    """Decode a well-formed file to 16 kHz mono, plainly: an oracle's input, no product code."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)


def read_manifest(folder: Path) -> list[dict]:
    """Read a folder's manifest.jsonl."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def made_sounds(num_samples: int) -> dict[str, Float32[np.ndarray, " sample"]]:
    """Tones, noises and silence by name, of one length."""
    noise = np.random.default_rng(0).standard_normal(num_samples)
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    sounds = {
        "silence": np.zeros(num_samples),
        "noise": 0.1 * noise,
        "quiet noise": 1e-4 * noise,
        "brown noise": 1e-3 * np.cumsum(noise),
        "tone": 0.9 * np.sin(2 * np.pi * 440 * seconds),
        "two tones": 0.3 * np.sin(2 * np.pi * 697 * seconds)
        + 0.3 * np.sin(2 * np.pi * 1209 * seconds),
        "hum": 0.01 * np.sin(2 * np.pi * 50 * seconds) + 1e-4 * noise,
        "click": np.eye(1, num_samples, num_samples // 2)[0],
        "offset": np.full(num_samples, 0.5),
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}
