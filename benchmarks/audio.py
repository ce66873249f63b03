"""Recordings to measure with, joined from a corpus of utterances.

    python -m benchmarks.audio OUT --joined MANIFEST --clips MANIFEST...

In: manifests with `path`, `text` and `duration_s`; of --joined also ids such as `ls_84-121123-0004`
(LibriSpeech: speaker, chapter, utterance). Out: OUT/long and OUT/short, each with 16 kHz mono WAV
files and a manifest.jsonl, and OUT/warm_up.wav. Utterances of a chapter follow one another with a
quarter of a second of silence between, as in the readings that they were cut from.
"""

import argparse
import itertools
import json
import shutil
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import read_samples
from corpus_asr.units import SAMPLE_RATE_HZ

GAP_S = 0.25
MIN_S, MAX_S = 180.0, 360.0
CORPUS = "librispeech-dev-clean"
_PCM_MAX = 32767


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--joined", type=Path, required=True)
    parser.add_argument("--clips", type=Path, nargs="+", required=True)
    options = parser.parse_args(arguments)
    long = ((name, utterances) for name, utterances in joined(rows(options.joined)))
    write(options.out / "long", options.joined.parent, long)
    clips = [
        row | {"path": manifest.parent / row["path"]}
        for manifest in options.clips
        for row in rows(manifest)
    ]
    write(options.out / "short", Path(), ((row["id"], [row]) for row in clips))
    shutil.copy(options.out / "short" / f"{clips[0]['id']}.wav", options.out / "warm_up.wav")


def rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def joined(utterances: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield chapters of three minutes or more, up to six of each, one of every speaker first."""
    order: Counter[str] = Counter()
    found = [(name, taken, number_of(name, order)) for name, taken in chapters(utterances)]
    for name, taken, _ in sorted(found, key=lambda chapter: (chapter[2], chapter[0])):
        yield name, taken


def number_of(name: str, order: Counter[str]) -> int:
    speaker = name.partition("-")[0]
    order[speaker] += 1
    return order[speaker]


def chapters(utterances: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    ours = sorted((row for row in utterances if row["corpus"] == CORPUS), key=lambda row: row["id"])
    for name, chapter in itertools.groupby(ours, key=lambda row: row["id"].rpartition("-")[0]):
        taken, length_s = [], 0.0
        for row in chapter:
            if length_s + row["duration_s"] > MAX_S:
                break
            taken.append(row)
            length_s += row["duration_s"] + GAP_S
        if length_s >= MIN_S:
            yield name, taken


def write(
    folder: Path, source: Path, recordings: Iterator[tuple[str, list[dict[str, Any]]]]
) -> None:
    folder.mkdir(parents=True)
    gap = np.zeros(int(GAP_S * SAMPLE_RATE_HZ), np.float32)
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for name, utterances in recordings:
            parts = [read_samples(str(source / row["path"])) for row in utterances]
            samples = np.concatenate([each for part in parts for each in (part, gap)][:-1])
            with wave.open(str(folder / f"{name}.wav"), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
                file.writeframes((samples.clip(-1, 1) * _PCM_MAX).astype("<i2").tobytes())
            row = {
                "path": f"{name}.wav",
                "text": " ".join(row["text"] for row in utterances),
                "duration_s": len(samples) / SAMPLE_RATE_HZ,
            }
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
