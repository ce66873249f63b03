"""How far confidences can be believed, and the default model of them, fitted again.

    python -m benchmarks.calibration --cache FOLDER --models FOLDER... --data FOLDER...
        [--stress FOLDER...] [--words FOLDER...]

Each data folder holds recordings and a manifest.jsonl with their texts, best none a model was
trained on, and noisy and empty ones among them. They are transcribed with default settings, once:
transcripts are kept below --cache. Those of --stress are transcribed without speech detection, and
again without temperature fallback and thresholds too, so that loops and invented text are among
them; those of --words with word times. A word counts as right where a cheapest alignment pairs it
with the same word of the reference. All figures of confidences are of models fitted to other
speakers.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.confidence import DEFAULT_MODEL, FEATURES, ConfidenceModel
from corpus_asr.export.recordings import segment_from
from corpus_asr.report.accuracy.calibration import (
    Reliability,
    SegmentOutcome,
    area_under_curve,
    cross_validated,
    fit,
    reliability,
    segment_outcomes,
    word_outcomes,
)
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import Segment
from tests.support.audio import read_manifest

NO_FALLBACK: dict[str, Any] = {
    "temperature": 0.0, "compression_ratio_threshold": None, "logprob_threshold": None,
    "no_speech_threshold": None, "stop_loops": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "loops": NO_FALLBACK,
    "words": {"word_timestamps": True},
    "beams": {"word_timestamps": True, "beam_size": 5},
}
STRESSES = {"undetected": ", no detection", "loops": ", no fallback"}
ZERO_PRIOR = ConfidenceModel(name="default", offset=0.0, weights=(0.0,) * len(FEATURES))


@dataclass(frozen=True)
class Transcribed:
    """A recording with what a model made of it."""

    set: str
    group: str
    language: str
    reference: str
    segments: tuple[Segment, ...]

    def outcomes(self) -> list[SegmentOutcome]:
        return segment_outcomes(self.segments, self.reference, self.language, group=self.group)


def main() -> None:
    arguments = _arguments()
    labels: list[tuple[str, str]] = []
    outcomes: list[SegmentOutcome] = []
    for model in arguments.models:
        for kind in ("data", *STRESSES):
            folders = arguments.data if kind == "data" else arguments.stress
            for one in transcribed(model, folders, arguments.cache, kind, arguments.threads):
                theirs = one.outcomes()
                outcomes += theirs
                name = one.set if kind == "data" else f"{one.set}{STRESSES[kind]}"
                labels += [(model.name, name)] * len(theirs)
    fitted = fit(outcomes, ZERO_PRIOR)
    print(f"{len(outcomes)} segments of {len({one.group for one in outcomes})} speakers and others")
    print("fitted:", _shown(fitted), " shipped:", _shown(DEFAULT_MODEL))
    held_out = np.array(cross_validated(outcomes, ZERO_PRIOR))
    for model in arguments.models:
        ours = [at for at, (name, found) in enumerate(labels)
                if name == model.name and not found.endswith(tuple(STRESSES.values()))]  # fmt: skip
        _print_bands(model.name, _of(outcomes, held_out, ours))
    print(f"\n{'model':<18}{'set':<26}segments  words  right claimed  ECE  Brier   AUC")
    for name, found in sorted(set(labels)):
        ours = [at for at, label in enumerate(labels) if label == (name, found)]
        _print_line(name, found, _of(outcomes, held_out, ours))
    for model in arguments.models:
        words = list(transcribed(model, arguments.words, arguments.cache, "words",
                                  arguments.threads))  # fmt: skip
        if words:
            _print_words(model.name, words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, type=Path)
    parser.add_argument("--data", nargs="+", required=True, type=Path)
    parser.add_argument("--stress", nargs="*", default=[], type=Path)
    parser.add_argument("--words", nargs="*", default=[], type=Path)
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def transcribed(
    model: Path, folders: Sequence[Path], cache: Path, kind: str, threads: int | None
) -> Iterator[Transcribed]:
    for folder in folders:
        path = cache / f"{model.name}-{kind}-{folder.name}.jsonl"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            rows = list(_rows(model, folder, kind, threads))
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for line in path.read_text().splitlines():
            row = json.loads(line)
            row["segments"] = tuple(segment_from(each) for each in row["segments"])
            yield Transcribed(**row)


def _rows(model: Path, folder: Path, kind: str, threads: int | None) -> Iterator[dict[str, Any]]:
    items = {
        str(folder / item["path"]): item
        for item in read_manifest(folder)
        if item.get("text") is not None
        and item.get("whisper_language", item["language"]) is not None
    }
    english = model.name.endswith(".en")
    wanted = [uri for uri, item in items.items() if item["language"] == "en" or not english]
    decoding = KINDS.get(kind, {})
    with Transcriber.from_pretrained(
        str(model), vad_filter=kind not in STRESSES, num_threads=threads
    ) as transcriber:
        for said in transcriber.transcribe_many(wanted, **decoding):
            item = items[str(said.uri)]
            yield {
                "set": folder.name,
                "group": item.get("speaker") or f"{folder.name}/{item['id']}",
                "language": item.get("whisper_language", item["language"]),
                "reference": item["text"],
                "segments": [asdict(segment) for segment in said.segments],
            }


def _of(outcomes: Sequence[SegmentOutcome], held_out: np.ndarray, at: Sequence[int]) -> Reliability:
    return reliability([outcomes[each] for each in at], held_out[list(at)].tolist())


def _shown(model: ConfidenceModel) -> str:
    weights = zip(FEATURES, model.weights, strict=True)
    named = ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    return f"offset {model.offset:.2f}, {named}"


def _print_bands(name: str, found: Reliability) -> None:
    print(f"\n{name}: ECE {found.ece:.3f}, Brier {found.brier:.3f}, AUC {found.auc:.3f}")
    print("confidence  segments  words  claimed  right  with errors")
    for band in found.bands:
        print(f"{band.low:.2f}-{band.high:.2f}  {band.segments:>9}{band.words:>8}"
              f"{band.confidence:>8.3f}{band.right:>8.3f}{band.with_errors:>10.1%}")  # fmt: skip


def _print_line(name: str, data: str, found: Reliability) -> None:
    claimed = sum(band.confidence * band.words for band in found.bands) / found.words
    print(f"{name:<18}{data:<26}{found.segments:>8}{found.words:>7}{found.right:>7.3f}"
          f"{claimed:>8.3f}{found.ece:>6.3f}{found.brier:>7.3f}{found.auc:>6.3f}")  # fmt: skip


def _print_words(name: str, found: Sequence[Transcribed]) -> None:
    """Show what the probabilities of words say, as they are."""
    claimed, right = [], []
    for one in found:
        words = [word for segment in one.segments for word in segment.words or ()]
        marks, _ = word_outcomes([word.word for word in words], one.reference, one.language)
        for word, mark in zip(words, marks, strict=True):
            if mark:
                claimed.append(word.probability)
                right.append(all(mark))
    said, was = np.array(claimed), np.array(right)
    bins = np.minimum(9, (said * 10).astype(int))
    ece = sum(abs((said - was)[bins == at].sum()) for at in range(10)) / len(said)
    print(f"\n{name}, {len(said)} words, {was.mean():.3f} right: ECE {ece:.3f}, Brier "
          f"{((said - was) ** 2).mean():.3f}, AUC {area_under_curve(said, ~was):.3f}")  # fmt: skip
    for at in range(10):
        if (inside := bins == at).any():
            print(f"{at / 10:.1f}-{at / 10 + 0.1:.1f}  {inside.sum():>6}"
                  f"{said[inside].mean():>8.3f}{was[inside].mean():>8.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
