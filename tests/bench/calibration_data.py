"""Make recordings to calibrate confidence on, of a folder of single utterances.

    python -m tests.bench.calibration_data SOURCE TARGET [--recordings N]

Below TARGET: `joined` (each speaker's utterances with pauses between, so that windows are full),
`noisy` (a quarter of them each at 0, 5, 10 and 15 dB with white noise, babble or rumble), and
`nonspeech` (noise, silence, babble played backwards and tones, without any text).
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.units import SAMPLE_RATE_HZ
from tests.bench.recognizers import manifest
from tests.support.audio import wav_bytes
from tests.support.references import read_audio

UTTERANCES = 10
SNRS_DB = (0, 5, 10, 15)
NUM_NONSPEECH = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--recordings", type=int, default=40)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    joined = _joined(arguments.source, arguments.recordings, rng)
    _write(arguments.target / "joined", joined)
    voices = [samples for samples, _ in joined[:8]]
    noisy = [
        (_mixed(samples, _noise(number % 3, len(samples), voices, rng), SNRS_DB[number % 4]), item)
        for number, (samples, item) in enumerate(joined)
    ]
    _write(arguments.target / "noisy", noisy)
    empty = []
    for number in range(NUM_NONSPEECH):
        length = SAMPLE_RATE_HZ * int(rng.integers(5, 60))
        samples = _nonspeech(number % 4, length, voices, rng)
        empty.append((samples, {"speaker": f"none-{number}", "text": "", "language": "en"}))
    _write(arguments.target / "nonspeech", empty)


def _joined(
    source: Path, most: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, dict[str, Any]]]:
    by_speaker: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in manifest(source):
        by_speaker[item["speaker"]].append(item)
    found = []
    for speaker in sorted(by_speaker):
        chosen = by_speaker[speaker][:UTTERANCES]
        if len(chosen) < 3:
            continue
        pieces = []
        for item in chosen:
            pieces += [read_audio(item["file"]), np.zeros(rng.integers(4_000, 14_000))]
        text = " ".join(item["text"] for item in chosen)
        item = {"speaker": speaker, "text": text, "language": chosen[0]["language"]}
        found.append((np.concatenate(pieces), item))
    return [found[at] for at in rng.permutation(len(found))[:most]]


def _noise(
    kind: int, length: int, voices: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    if kind == 0:
        return rng.normal(size=length)
    if kind == 1:
        rolled = (np.roll(voice, rng.integers(len(voice))) / voice.std() for voice in voices)
        babble: np.ndarray = np.sum([np.resize(voice, length) for voice in rolled], axis=0)
        return babble
    walk = np.cumsum(rng.normal(size=length))
    rumble: np.ndarray = walk - np.convolve(walk, np.full(400, 1 / 400), "same")
    return rumble


def _mixed(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    spoken = samples[np.abs(samples) > 0.01].std()
    mixed: np.ndarray = samples + noise / noise.std() * spoken * 10 ** (-snr_db / 20)
    return mixed / max(1.0, float(np.abs(mixed).max()))


def _nonspeech(
    kind: int, length: int, voices: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    if kind == 0:
        return 0.05 * rng.normal(size=length)
    if kind == 1:
        return np.zeros(length)
    if kind == 2:
        return 0.03 * _noise(1, length, voices, rng)[::-1]
    hz = 200 + 300 * rng.random() * np.sin(np.arange(length) / 8_000)
    tones: np.ndarray = 0.2 * np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ)
    return tones


def _write(folder: Path, recordings: Sequence[tuple[np.ndarray, dict[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (samples, item) in enumerate(recordings):
        path = f"{number:03d}.wav"
        pcm = np.clip(samples, -1, 1)[None, :].astype(np.float32)
        (folder / path).write_bytes(wav_bytes(pcm, rate_hz=SAMPLE_RATE_HZ))
        lines.append(json.dumps({"id": str(number), "path": path, **item}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
