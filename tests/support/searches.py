"""A small Whisper of random weights, and windows to search for text in."""

from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.decoding.jobs import AlignJob, Search, TokenRules, TokenTiming, WindowJob
from corpus_asr.decoding.phrases import PhraseTrie
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from tests.support.checkpoints import tiny_whisper

VOCAB, END, NO_TIMESTAMPS, BEGIN, POSITIONS, SOURCE = 60, 30, 39, 40, 48, 20
PLAIN = TokenRules(end=END)
GRAMMAR = TokenRules(
    end=END,
    suppress=(1, 2),
    suppress_first=(END,),
    timestamp_begin=BEGIN,
    no_timestamps=NO_TIMESTAMPS,
    max_initial_timestamp=6,
)


def small_whisper(folder: Path, **changes: Any) -> WhisperForConditionalGeneration:
    """Write a checkpoint into `folder` and load it; `changes` are of its config."""
    usual: dict[str, Any] = {
        "d_model": 16, "layers": 2, "heads": 2, "vocab_size": VOCAB, "spread": 0.3,
        "max_target_positions": POSITIONS, "max_source_positions": SOURCE,
    }  # fmt: skip
    tiny_whisper(folder, **usual | changes)
    return WhisperForConditionalGeneration.from_pretrained(folder)


def job(
    seed: int,
    rules: TokenRules = PLAIN,
    *,
    prompt: tuple[int, ...] = (31, 32),
    limit: int = 30,
    **search: Any,
) -> WindowJob:
    """Ask for the text of a window of noise."""
    return WindowJob(
        features=np.random.default_rng(seed).standard_normal((80, 2 * SOURCE), dtype=np.float32),
        window=(seed,),
        prompt=prompt,
        rules=rules,
        max_new_tokens=limit,
        search=Search(**search),
        seed=seed,
        score_token=33,
    )


PHRASES = PhraseTrie.of([((4, 5, 6), 2.0), ((5, 7), 1.5), ((8,), 3.0)])
NAMES = PhraseTrie.of([((number, 3, number), 1.0 + number / 30) for number in range(6, 30)])

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"search": Search(temperature=0.8)},
    "grammar": {"rules": GRAMMAR},
    "sampled grammar": {"rules": GRAMMAR, "search": Search(temperature=1.2)},
    "watched": {"search": Search(stop_loops=True), "max_new_tokens": 40},
    "penalised": {"search": Search(repetition_penalty=1.5, no_repeat_ngram_size=3)},
    "narrowed": {"search": Search(temperature=1.0, top_k=4)},
    "nucleus": {"search": Search(temperature=1.0, top_p=0.7, no_repeat_ngram_size=2)},
    "kept": {"search": Search(keep_scores=True)},
    "short": {"num_frames": 100},
    "beams": {"search": Search(num_beams=3)},
    "phrases": {"search": Search(phrases=PHRASES)},
    "names": {"rules": GRAMMAR, "search": Search(phrases=NAMES, temperature=0.5)},
    "phrase beams": {"search": Search(phrases=PHRASES, num_beams=3)},
    "grammar beams": {"rules": GRAMMAR, "search": Search(num_beams=3, length_penalty=0.5)},
    "watched beams": {
        "search": Search(num_beams=3, stop_loops=True, early_stopping=True), "max_new_tokens": 40,
    },
    "penalised beams": {
        "search": Search(num_beams=3, repetition_penalty=1.5, no_repeat_ngram_size=3),
    },
    "short beams": {"search": Search(num_beams=3), "num_frames": 100},
    "align": {},
    "timed": {},
}  # fmt: skip


def ask(kind: str, number: int, *, frames: int = 2 * SOURCE) -> Any:
    """Make a job of a kind; texts of one number differ from those of another."""
    features = np.random.default_rng(number).standard_normal((80, frames), dtype=np.float32)
    if kind in ("align", "timed"):
        tokens = (31, 4, 5, *range(6, 6 + number % 5), END)
        ends = {"first": 1, "count": len(tokens) - 2, "positions": 40 + number, "filter_width": 3}
        return AlignJob(
            features=features,
            window=(number,),
            tokens=tokens,
            heads=((0, 1), (1, 0)),
            timing=TokenTiming(**ends) if kind == "timed" else None,
        )
    usual: dict[str, Any] = {
        "rules": PLAIN,
        "max_new_tokens": 5 + 4 * (number % 4),
        "prompt": (31, 32, 7, 8)[: 1 + number % 4],
    }
    return WindowJob(
        features=features,
        window=(number,),
        seed=number,
        score_token=3 if number % 3 else None,
        **(usual | KINDS[kind]),
    )
