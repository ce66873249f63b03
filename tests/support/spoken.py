"""The recordings of tests/data/spoken: what is said in them, and when."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jiwer import wer
from whisper.normalizers import EnglishTextNormalizer

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCES = REPOSITORY / "tests" / "data" / "spoken-references.jsonl"
NAMES = ("newgate.mp3", "inaugural.flac", "readers.opus")


class Sentence(NamedTuple):
    start_s: float
    end_s: float
    text: str


class Spoken(NamedTuple):
    """A recording and what is said in it."""

    path: Path
    text: str
    sentences: list[Sentence]
    words: list[dict[str, Any]]


def spoken() -> dict[str, Spoken]:
    rows = [json.loads(line) for line in REFERENCES.read_text(encoding="utf-8").splitlines()]
    return {
        Path(row["path"]).name: Spoken(
            path=REFERENCES.parent / row["path"],
            text=row["text"],
            sentences=[
                Sentence(each["start_s"], each["end_s"], each["text"]) for each in row["segments"]
            ],
            words=row["words"],
        )
        for row in rows
    }


@cache
def _normalizer() -> EnglishTextNormalizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its spellings open
        return EnglishTextNormalizer()


def error_rate(said: list[str], transcribed: list[str]) -> float:
    """Return the word error rate after openai-whisper's own normalizer."""
    plain = _normalizer()
    rate: float = wer([plain(text) for text in said], [plain(text) for text in transcribed])
    return rate
