"""When each word starts, measured against word times of a forced aligner.

    python -m benchmarks.alignment FOLDER [--model CHECKPOINT] [--clips N]

FOLDER holds clips and a `manifest.jsonl` with `path`, `text` and `words` (`word`, `start`, `end` in
seconds), such as tests/data/speech/timings or the larger set of the same layout. Three ways are
compared: words that are recognized, with `word_timestamps`; the reference text, aligned; and both
on all clips joined into one recording, whole and in parts of 60 s, where words may be lost at the
seams. An error is the difference of two starts of the same word.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import markdown
from corpus_asr import Transcriber
from corpus_asr.formats.transcript import Transcript
from corpus_asr.transcription.anchors import find_pairs
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip

# Between clips of the joined recording: silence, as between sentences.
PAUSE_S = 0.4
PART_S = 60.0


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording, what is said in it, and when."""

    samples: np.ndarray
    text: str
    words: tuple[str, ...]
    starts_s: tuple[float, ...]


def references(folder: Path, most: int | None) -> list[Reference]:
    """Read the clips of a folder."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").open(encoding="utf-8")]
    return [
        Reference(
            read_clip(folder / row["path"]),
            row["text"],
            tuple(word["word"] for word in row["words"]),
            tuple(word["start"] for word in row["words"]),
        )
        for row in rows[:most]
        if row.get("words")
    ]


def joined(clips: Sequence[Reference]) -> Reference:
    """Return all clips as one recording, with pauses between them."""
    samples, starts_s, at = [], [], 0
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE_HZ), dtype=np.float32)
    for clip in clips:
        starts_s += [at / SAMPLE_RATE_HZ + start_s for start_s in clip.starts_s]
        samples += [clip.samples, pause]
        at += len(clip.samples) + len(pause)
    return Reference(
        np.concatenate(samples),
        "\n".join(clip.text for clip in clips),
        tuple(word for clip in clips for word in clip.words),
        tuple(starts_s),
    )


def start_errors(reference: Reference, transcript: Transcript) -> Iterator[float]:
    """Yield by how much each word that both have starts late."""
    words = [word for segment in transcript.segments for word in segment.words or ()]
    for pair in find_pairs([word.word for word in words], reference.words):
        if pair.is_anchor:
            yield words[pair.said].start_s - reference.starts_s[pair.given]


def main() -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--clips", type=int, default=None, help="only the first ones")
    options = parser.parse_args()
    clips = references(options.folder, options.clips)
    whole = joined(clips)
    rate: dict[str, Any] = {"sampling_rate": SAMPLE_RATE_HZ}
    parts: dict[str, Any] = {"part_s": PART_S}
    ways: tuple[tuple[str, list[Reference], dict[str, Any]], ...]
    ways = (("clips", clips, {}), ("joined", [whole], {}), ("joined, in parts", [whole], parts))
    print(f"{options.model}: {len(whole.words)} words, {len(whole.samples) / SAMPLE_RATE_HZ:.0f} s")
    rows = []
    with Transcriber(options.model, language="en", temperature=0) as model:
        for name, recordings, part in ways:
            recognized = [
                model.transcribe(each.samples, word_timestamps=True, **rate, **part)
                for each in recordings
            ]
            aligned = [model.align(each.samples, each.text, **rate, **part) for each in recordings]
            for way, transcripts in (("model", recognized), ("text", aligned)):
                rows.append(_row(name, way, recordings, transcripts))
    titles = ("recording", "words of", "timed", "median error", "90 % below", "median, signed")
    print("\n".join(markdown((*titles, "missing"), rows, left=(0, 1))))


def _row(
    name: str, way: str, recordings: Sequence[Reference], transcripts: Sequence[Transcript]
) -> list[object]:
    late_s = [
        error
        for reference, transcript in zip(recordings, transcripts, strict=True)
        for error in start_errors(reference, transcript)
    ]
    errors_s = np.abs(late_s)
    missing = sum(len(each.missing or ()) for each in transcripts)
    shares = [f"{np.median(errors_s):.3f} s", f"{np.quantile(errors_s, 0.9):.3f} s"]
    return [name, way, len(late_s), *shares, f"{np.median(late_s):+.3f} s", missing]


if __name__ == "__main__":
    main()
