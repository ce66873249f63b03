"""How good a window's text is, and so whether to try again warmer, or to leave it out.

In: a window's tokens and log-probabilities. Out: a verdict. Equal to transformers, which differs
from openai-whisper: it compresses token ids where that compresses text, and its average counts the
tokens said and nothing more.
"""

import math
import zlib
from dataclasses import dataclass

from corpus_asr.decoding.protocols import WindowResult
from corpus_asr.models.generation.settings import Settings


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a window's text."""

    try_again: bool
    """It is likely wrong: decode the window again at the next temperature."""
    skip: bool
    """There is no speech: keep nothing and go on to the next window."""


def judge(said: tuple[int, ...], result: WindowResult, settings: Settings) -> Verdict:
    """Compare a window with the thresholds; None switches one off.

    Args:
        said: the window's tokens, its end token included.
        result: as search returned it.
        settings: hold the thresholds.
    """
    config = settings.config
    again = False
    if config.compression_ratio_threshold is not None:
        ratio = compression_ratio(said, vocab_size=settings.vocab_size)
        again = ratio > config.compression_ratio_threshold
    if config.logprob_threshold is None:
        return Verdict(again, skip=False)
    unlikely = average_logprob(said, result) < config.logprob_threshold
    silent = (
        config.no_speech_threshold is not None
        and result.score is not None
        and result.score > config.no_speech_threshold
    )
    if unlikely and silent:
        return Verdict(try_again=False, skip=True)
    return Verdict(again or unlikely, skip=False)


def compression_ratio(tokens: tuple[int, ...], *, vocab_size: int) -> float:
    """Bytes of the token ids over bytes of the same compressed; high when a text repeats itself."""
    width = int(math.log2(vocab_size) / 8) + 1
    raw = b"".join(token.to_bytes(width, "little") for token in tokens)
    return len(raw) / len(zlib.compress(raw))


def average_logprob(said: tuple[int, ...], result: WindowResult) -> float:
    """Mean log-probability of what was said."""
    total = sum(result.logprobs) + (result.end_logprob or 0.0)
    return total / len(said)
