"""Texts to a vocabulary of their own: a byte-level BPE with Whisper's control tokens.

In: texts. Out: the files of a tokenizer, as published checkpoints have them. It knows one language:
there are no language tokens, as in Whisper's English-only checkpoints. Knows no network.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from corpus_asr.text.tokenizer_files import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
)
from corpus_asr.units import TIMESTAMP_STEP_S, WINDOW_S

END, START = "<|endoftext|>", "<|startoftranscript|>"
NO_TIMESTAMPS, PREVIOUS = "<|notimestamps|>", "<|startofprev|>"
# Source: openai/whisper, tokenizer.py, get_encoding.
_CONTROL = (
    START, "<|translate|>", "<|transcribe|>", "<|startoflm|>", PREVIOUS, "<|nospeech|>",
    NO_TIMESTAMPS,
)  # fmt: skip
_STEPS = round(WINDOW_S / TIMESTAMP_STEP_S)


def train_tokenizer(texts: Iterable[str], folder: Path, *, text_tokens: int) -> dict[str, int]:
    """Learn a vocabulary and write a tokenizer's files; returns the ids of control tokens.

    Args:
        texts: what it is learnt from; the order does not matter.
        folder: has to be there.
        text_tokens: how many tokens stand for text, 256 bytes among them.

    Raises:
        OSError: the folder cannot be written.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=text_tokens, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator((f" {text.strip()}" for text in texts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**model["vocab"], END: len(model["vocab"])}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer.model = BPE(vocab=vocabulary, merges=merges)
    special = [END, *_CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    times = [f"<|{step * TIMESTAMP_STEP_S:.2f}|>" for step in range(_STEPS + 1)]
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in times])
    tokenizer.save(str(folder / TOKENIZER_NAME))
    known = tokenizer.get_vocab(with_added_tokens=True)
    ids = {token: known[token] for token in (*special, *times)}
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    names = {**roles, "additional_special_tokens": special}
    settings = {**names, "errors": "replace", "model_max_length": 1024}
    _write(folder / VOCAB_NAME, vocabulary)
    _write(folder / ADDED_NAME, {token: i for token, i in ids.items() if token != END})
    _write(folder / SPECIAL_NAME, names)
    _write(folder / SETTINGS_NAME, {**settings, "tokenizer_class": "WhisperTokenizer"})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / MERGES_NAME).write_text("\n".join(lines), encoding="utf-8")
    return {token: ids[token] for token in special}


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
