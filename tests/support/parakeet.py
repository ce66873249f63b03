"""Tiny random Parakeet checkpoints, written by transformers, and features for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from corpus_asr.models.generation import parakeet as ours
from tests.support.tokenizers import tiny_parakeet_tokenizer

KINDS = ("CTC", "RNNT", "TDT")
BINS, VOCAB = 16, 12
BLANK = VOCAB - 1
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 4,
    "num_mel_bins": BINS,
}


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
    blank = {"pad_token_id": BLANK} if kind == "CTC" else {"blank_token_id": BLANK}
    sizes = {} if kind == "CTC" else {"decoder_hidden_size": 16}
    settings = {"vocab_size": VOCAB, **blank, **sizes, **config}
    make_config = getattr(transformers, f"Parakeet{kind}Config")
    made = make_config(encoder_config=ENCODER | (encoder or {}), **settings)
    theirs = getattr(transformers, f"ParakeetFor{kind}")(made).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # Biases, norms and statistics too: zeros and ones would hide a mistake in their use.
        for parameter in theirs.parameters():
            parameter.normal_(std=0.4)
        for name, buffer in theirs.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 2)
            elif "running_mean" in name:
                buffer.normal_()
        if kind != "CTC":
            # As of trained ones, what is said depends on the position and on what was said before,
            # and is often a blank; durations are seldom 0.
            for module in (theirs.encoder_projector, theirs.decoder):
                for parameter in module.parameters():
                    parameter *= 3
            head = theirs.joint.head
            head.weight *= 3
            head.weight -= head.weight.mean(dim=1, keepdim=True)
            head.bias.zero_()
            head.bias[settings["blank_token_id"]] = blanks
            head.bias[settings["vocab_size"] :][:1] = -3.0
            theirs.generation_config.decoder_start_token_id = settings["blank_token_id"]
            # transformers would take scores of durations for those of tokens.
            after = range(settings["vocab_size"], len(head.bias))
            theirs.generation_config.suppress_tokens = list(after) or None
        (theirs.ctc_head if kind == "CTC" else theirs.joint.head).bias[list(unsaid)] = -1e4
    theirs.save_pretrained(folder)
    loaded = getattr(ours, f"ParakeetFor{kind}").from_pretrained(folder)
    return Pair(kind=kind, ours=loaded, theirs=theirs, folder=folder)


def features(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random features of rows of these lengths, padded with zeros, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    values = torch.randn(*mask.shape, BINS, generator=generator)
    return values * mask[..., None], mask


def parakeet_checkpoint(
    kind: str, folder: Path, *, seed: int = 7, blanks: float = 9.0, words: bool = False
) -> Pair:
    """Write a whole one with tokenizer and processor, which says tokens and blanks of speech.

    With `words`, all of these are pieces of words, else bytes among them.
    """
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
