"""Speech2Text checkpoints as small as the tests of networks want them, of sizes that all differ.

A folder goes in; config.json and weights are written there. A transposition in the wrong place, or
one size taken for another, cannot fit.
"""

from pathlib import Path
from typing import Any

from tests.support.checkpoints import tiny_speech2text

SIZES: dict[str, Any] = {
    "d_model": 24,
    "heads": 2,
    "vocab_size": 120,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "conv_channels": 20,
    "dropout": 0.0,
    "spread": 0.2,
}


def tiny_network(folder: Path, **settings: Any) -> Path:
    """Write a random checkpoint, without a tokenizer, and return its folder."""
    return tiny_speech2text(folder, **SIZES | settings)
