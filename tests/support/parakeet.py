"""Tiny random Parakeet checkpoints, written by transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from corpus_asr.families.parakeet import model as networks
from tests.support.parakeet_networks import BINS as BINS
from tests.support.parakeet_networks import BLANK as BLANK
from tests.support.parakeet_networks import ENCODER as ENCODER
from tests.support.parakeet_networks import KINDS as KINDS
from tests.support.parakeet_networks import VOCAB as VOCAB
from tests.support.parakeet_networks import features as features
from tests.support.parakeet_networks import randomize, settings_of
from tests.support.tokenizers import tiny_parakeet_tokenizer


@dataclass(frozen=True)
class Pair:
    """The same weights here and in transformers."""

    kind: str
    ours: Any
    theirs: Any
    folder: Path


def parakeet_pair(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    blanks: float = 6.0,
    encoder: dict[str, Any] | None = None,
    unsaid: Any = (),
    **config: Any,
) -> Pair:
    """Write a random checkpoint of `CTC`, `RNNT` or `TDT`, and load it by both.

    More `blanks` make them likelier; `unsaid` tokens are never said.
    """
    settings = settings_of(kind, **config)
    make_config = getattr(transformers, f"Parakeet{kind}Config", None)
    if make_config is None:
        pytest.skip(f"transformers {transformers.__version__} has no Parakeet of this kind")
    made = make_config(encoder_config=ENCODER | (encoder or {}), **settings)
    theirs = getattr(transformers, f"ParakeetFor{kind}")(made).eval()
    randomize(theirs, seed=seed, blanks=blanks)
    if kind != "CTC":
        theirs.generation_config.decoder_start_token_id = settings["blank_token_id"]
        # transformers would take scores of durations for those of tokens.
        after = range(settings["vocab_size"], len(theirs.joint.head.bias))
        theirs.generation_config.suppress_tokens = list(after) or None
    with torch.no_grad():
        (theirs.ctc_head if kind == "CTC" else theirs.joint.head).bias[list(unsaid)] = -1e4
    theirs.save_pretrained(folder)
    loaded = getattr(networks, f"Parakeet{kind}").from_pretrained(folder)
    return Pair(kind=kind, ours=loaded, theirs=theirs, folder=folder)


def parakeet_checkpoint(
    kind: str, folder: Path, *, seed: int = 7, blanks: float = 9.0, words: bool = False
) -> Pair:
    """Write a whole one with tokenizer and processor, which says tokens and blanks of speech.

    With `words`, all of these are pieces of words, else bytes among them.
    """
    if transformers.__version__.startswith("4."):
        pytest.skip(f"transformers {transformers.__version__} needs librosa for Parakeet")
    size = tiny_parakeet_tokenizer(folder, kind)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    unsaid = [token for piece, token in vocabulary.items() if words and piece.startswith("<")]
    blank = "pad_token_id" if kind == "CTC" else "blank_token_id"
    made = parakeet_pair(
        kind, folder, encoder={"num_mel_bins": 80}, vocab_size=size, seed=seed, blanks=blanks,
        unsaid=unsaid, **{blank: size - 1},
    )  # fmt: skip
    transformers.ParakeetProcessor(
        transformers.ParakeetFeatureExtractor(),
        transformers.ParakeetTokenizer.from_pretrained(folder),
        decoder_type=kind.lower(),
    ).save_pretrained(folder)
    return made
