"""How far a segment's confidence can be believed: the reliability table, and what would fit best.

    python -m tests.bench.calibration --model FOLDER DATA...

Each DATA holds recordings and a manifest.jsonl with their texts, best none the model was trained
on. All are transcribed greedily, without thresholds, in their own language; a word counts as right
where a cheapest alignment with the reference pairs it with the same word (both normalised as for
word error rates; single characters in languages written without blanks).
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import ConfigError
from corpus_asr.models.whisper.features import WhisperPartFeatures
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer
from corpus_asr.transcription.confidence import OFFSET, SLOPE
from corpus_asr.transcription.engine import Engine, PartTranscript
from tests.support.accuracy import manifest, matches, whole
from tests.support.oracles import read_audio

WITHOUT_BLANKS = {"zh", "ja", "th", "lo", "my", "yue"}
BINS = 10
FOLDS = 8


@dataclass(frozen=True)
class Scored:
    """One segment: what it claimed, and how many of its words were right."""

    recording: str
    confidence: float
    words: int
    right: int


def main() -> None:
    arguments = _arguments()
    threads = arguments.threads
    every: list[Scored] = []
    with Engine.from_folder(
        arguments.model, decoding=DecodingSettings(), dtype=arguments.dtype, num_threads=threads
    ) as engine:
        print(f"{arguments.model.name}, {arguments.dtype}, greedy, no thresholds")
        print(f"{'':<16}{'segments':>9}{'words':>7}{'right':>7}{'claimed':>9}{'error':>7}")
        for folder in arguments.data:
            found = list(_scored(engine, arguments.model, folder))
            every += found
            _print_sums(folder.name, found)
    _print_sums("all", every)
    print("\nconfidence  segments  words  claimed  right")
    for low, bin_ in _bins(every):
        print(f"{low:>4.1f}-{low + 1 / BINS:.1f}    {len(bin_):>8}{sum(s.words for s in bin_):>7}"
              f"{_claimed(bin_):>9.2f}{_right(bin_):>7.2f}")  # fmt: skip
    offset, slope = _fit(every)
    print(f"\nbest fit: offset {offset:.2f}, slope {slope:.2f}; fitted to other recordings it errs "
          f"by {_error(list(_cross_validated(every))):.3f}")  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


def _scored(engine: Engine, model: Path, folder: Path) -> Iterator[Scored]:
    extract = WhisperPartFeatures.from_folder(model)
    asked: list[tuple[dict[str, Any], str, Future[PartTranscript]]] = []
    for item in manifest(folder):
        language = item.get("whisper_language", item["language"])
        if language is None or not _knows(engine, language):
            continue
        settings = DecodingSettings(
            language=language,
            temperature=(0.0,),
            compression_ratio_threshold=None,
            logprob_threshold=None,
            no_speech_threshold=None,
        )
        part = whole(extract, read_audio(item["file"]), name=item["id"])
        asked.append((item, language, engine.submit(part, decoding=settings)))
    for item, language, future in asked:
        yield from _compare(item, language, future.result())


def _knows(engine: Engine, language: str) -> bool:
    try:
        engine.check(DecodingSettings(language=language))
    except ConfigError:
        return False
    return True


def _compare(item: dict[str, Any], language: str, said: PartTranscript) -> Iterator[Scored]:
    texts = [_words(segment.text, language) for segment in said.segments]
    wanted = _words(item["text"], language)
    found = [word for text in texts for word in text]
    right = {at for at, _ in matches(found, wanted)}
    first = 0
    for segment, text in zip(said.segments, texts, strict=True):
        stop = first + len(text)
        if text:
            count = sum(at in right for at in range(first, stop))
            yield Scored(item["id"], segment.confidence, len(text), count)
        first = stop


_ENGLISH, _BASIC = EnglishTextNormalizer(), BasicTextNormalizer()


def _words(text: str, language: str) -> list[str]:
    if language == "en":
        return _ENGLISH(text).split()
    words = _BASIC(text)
    return list(words.replace(" ", "")) if language in WITHOUT_BLANKS else words.split()


def _right(found: Sequence[Scored]) -> float:
    return sum(one.right for one in found) / sum(one.words for one in found)


def _claimed(found: Sequence[Scored]) -> float:
    return sum(one.confidence * one.words for one in found) / sum(one.words for one in found)


def _bins(found: Sequence[Scored]) -> Iterator[tuple[float, list[Scored]]]:
    for number in range(BINS):
        bin_ = [s for s in found if min(BINS - 1, int(s.confidence * BINS)) == number]
        if bin_:
            yield number / BINS, bin_


def _error(found: Sequence[Scored]) -> float:
    """Expected calibration error: how far claims are off, over bins, by words."""
    words = sum(one.words for one in found)
    return math.fsum(
        abs(_claimed(bin_) - _right(bin_)) * sum(one.words for one in bin_) / words
        for _, bin_ in _bins(found)
    )


def _print_sums(name: str, found: Sequence[Scored]) -> None:
    print(f"{name:<16}{len(found):>9}{sum(s.words for s in found):>7}{_right(found):>7.2f}"
          f"{_claimed(found):>9.2f}{_error(found):>7.3f}", flush=True)  # fmt: skip


def _mean_logprob(one: Scored) -> float:
    """What the confidence was made of."""
    return (math.log(one.confidence / (1 - one.confidence)) - OFFSET) / SLOPE


def _fit(found: Sequence[Scored]) -> tuple[float, float]:
    """Offset and slope of a logistic curve over the mean log-probability, by likelihood."""
    means = np.array([_mean_logprob(one) for one in found])
    right = np.array([one.right for one in found])
    wrong = np.array([one.words for one in found]) - right

    def surprise(curve: np.ndarray) -> float:
        logits = curve[0] + curve[1] * means
        total = right @ np.logaddexp(0, -logits) + wrong @ np.logaddexp(0, logits)
        return float(total / (right + wrong).sum())

    offset, slope = minimize(surprise, np.zeros(2)).x
    return float(offset), float(slope)


def _cross_validated(found: Sequence[Scored]) -> Iterator[Scored]:
    """Claim for each recording what a fit to other recordings says."""
    names = sorted({one.recording for one in found})
    for fold in range(FOLDS):
        left_out = set(names[fold::FOLDS])
        offset, slope = _fit([one for one in found if one.recording not in left_out])
        for one in found:
            if one.recording in left_out:
                claim = 1 / (1 + math.exp(-offset - slope * _mean_logprob(one)))
                yield Scored(one.recording, claim, one.words, one.right)


if __name__ == "__main__":
    main()
