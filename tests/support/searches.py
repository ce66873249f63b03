"""A small Whisper of random weights, and windows to search for text in."""

from pathlib import Path
from typing import Any

import numpy as np

from corpus_asr.decoding.protocols import Search, TokenRules, WindowJob
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
