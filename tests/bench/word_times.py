"""Word times of this engine, openai-whisper and `transformers`, against known ones.

    python -m tests.bench.word_times --model FOLDER --data FOLDER

DATA holds recordings and a manifest.jsonl with the true `words` of each. All three transcribe
greedily in float32; a word counts where it was recognised. Errors are in milliseconds.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
import whisper

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.models.whisper.features import WhisperPartFeatures
from corpus_asr.transcription.dialect import Dialect
from corpus_asr.transcription.engine import Engine
from tests.support.accuracy import manifest, matches, whole
from tests.support.alignment import align_with
from tests.support.oracles import openai_whisper, read_audio

WITHIN_MS = (50, 100, 200)


@dataclass(frozen=True)
class Timed:
    word: str
    start_s: float
    end_s: float


Transcribe = Callable[[np.ndarray], list[Timed]]


def main() -> None:
    arguments = _arguments()
    items = list(manifest(arguments.data))
    audio = [read_audio(item["file"]) for item in items]
    true = [
        [Timed(_plain(word["word"]), word["start"], word["end"]) for word in item["words"]]
        for item in items
    ]
    print(f"{arguments.model.name}, float32, greedy; {len(items)} recordings, "
          f"{sum(map(len, true))} words")  # fmt: skip
    print(
        f"{'':<16}{'words':>6}  "
        + "  ".join(
            f"{edge} {'median':>7}{'mean':>6}{'p90':>6}"
            + "".join(f"{'<' + str(limit):>6}" for limit in WITHIN_MS)
            for edge in ("start", "end  ")
        )
    )
    for name, make in (
        ("corpus-asr", _ours),
        ("openai-whisper", _openai),
        ("transformers", _transformers),
    ):
        transcribe = make(arguments.model)
        pairs = [
            pair
            for samples, words in zip(audio, true, strict=True)
            for pair in _matched(transcribe(samples), words)
        ]
        print(f"{name:<16}{len(pairs):>6}  " + "  ".join(_errors(pairs)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    return parser.parse_args()


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.lower())


def _matched(found: list[Timed], true: list[Timed]) -> Iterator[tuple[Timed, Timed]]:
    for one, other in matches([word.word for word in found], [word.word for word in true]):
        yield found[one], true[other]


def _errors(pairs: list[tuple[Timed, Timed]]) -> Iterator[str]:
    for edge in ("start_s", "end_s"):
        errors = np.array([abs(getattr(a, edge) - getattr(b, edge)) * 1000 for a, b in pairs])
        shares = "".join(f"{np.mean(errors < limit):>6.0%}" for limit in WITHIN_MS)
        yield (
            f"      {np.median(errors):>7.0f}{errors.mean():>6.0f}"
            f"{np.quantile(errors, 0.9):>6.0f}{shares}"
        )


def _ours(model: Path) -> Transcribe:
    settings = DecodingSettings.model_validate(
        {
            "language": "en",
            "temperature": 0.0,
            "compression_ratio_threshold": None,
            "logprob_threshold": None,
            "no_speech_threshold": None,
            "word_timestamps": True,
        }
    )
    engine = Engine.from_folder(model, decoding=settings, device="cpu", dtype="float32", slots=1)
    extract = WhisperPartFeatures.from_folder(model)

    def transcribe(samples: np.ndarray) -> list[Timed]:
        transcript = engine.submit(whole(extract, samples, name="recording")).result()
        return [
            Timed(_plain(word.word), word.start_s, word.end_s)
            for segment in transcript.segments
            for word in segment.words or ()
        ]

    return transcribe


def _openai(model: Path) -> Transcribe:
    network = openai_whisper(model)
    align_with(network, Dialect.from_folder(model).alignment_heads)

    def transcribe(samples: np.ndarray) -> list[Timed]:
        said = whisper.transcribe(
            network,
            samples,
            language="en",
            temperature=0.0,
            compression_ratio_threshold=None,
            logprob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            word_timestamps=True,
            fp16=False,
        )
        return [
            Timed(_plain(word["word"]), word["start"], word["end"])
            for segment in said["segments"]
            for word in segment["words"]
        ]

    return transcribe


def _transformers(model: Path) -> Transcribe:
    transformers.logging.set_verbosity_error()
    pipeline = transformers.pipeline(
        "automatic-speech-recognition", model=str(model), dtype="float32", device="cpu"
    )

    def transcribe(samples: np.ndarray) -> list[Timed]:
        said: Any = pipeline(
            samples,
            return_timestamps="word",
            generate_kwargs={"language": "en", "task": "transcribe", "do_sample": False},
        )
        return [
            Timed(_plain(chunk["text"]), *map(float, chunk["timestamp"]))
            for chunk in said["chunks"]
            if None not in chunk["timestamp"]
        ]

    return transcribe


if __name__ == "__main__":
    main()
