"""OpenAI's vocabulary file, as the tokenizer files of a Hugging Face folder.

In: a .tiktoken file: a token's bytes in base64 and its rank per line. Out: vocab.json, merges.txt
and the files that name the control tokens. Knows the order of Whisper's control tokens, which the
file does not hold.
"""

import base64
import binascii
import json
from pathlib import Path

from corpus_asr.errors import CheckpointError
from corpus_asr.families.config_file import write_json_object
from corpus_asr.languages import LANGUAGES
from corpus_asr.text.added_tokens import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
)
from corpus_asr.units import TIMESTAMP_STEP_S

_END = "<|endoftext|>"
TIMESTAMPS = 1501
_FIXED_CONTROLS = 8  # all but languages and timestamps, the end token included


def write_tokenizer_files(ranks_path: Path, folder: Path, *, vocab_size: int) -> None:
    """Write the tokenizer of a model with `vocab_size` tokens into `folder`.

    Raises:
        CheckpointError: the file is broken, or cannot be the vocabulary of such a model.
    """
    ranks = _read_ranks(ranks_path)
    num_languages = vocab_size - len(ranks) - _FIXED_CONTROLS - TIMESTAMPS
    if not 0 < num_languages <= len(LANGUAGES):
        raise CheckpointError(
            f"reading {ranks_path}: {len(ranks)} tokens leave room for {num_languages} languages "
            f"in a vocabulary of {vocab_size}, expected 1 to {len(LANGUAGES)}; English-only models "
            "need gpt2.tiktoken, all others multilingual.tiktoken"
        )
    spelled = {_spell(token): rank for token, rank in ranks.items()}
    vocab = {**spelled, _END: len(ranks)}
    controls = [*_controls(num_languages), *_timestamps()]
    added = {token: len(ranks) + 1 + at for at, token in enumerate(controls)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCAB_NAME).write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(map(_spell, pair)) for pair in _merges(ranks))
    (folder / MERGES_NAME).write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write_json_object(folder / ADDED_NAME, added)
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _END)
    special = {**roles, "additional_special_tokens": [_END, *_controls(num_languages)]}
    write_json_object(folder / SPECIAL_NAME, special)
    settings = {
        **roles,
        "add_prefix_space": False,
        "errors": "replace",
        "model_max_length": 1024,
        "tokenizer_class": "WhisperTokenizer",
    }
    write_json_object(folder / SETTINGS_NAME, settings)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
    except (OSError, UnicodeDecodeError, ValueError, binascii.Error) as error:
        raise CheckpointError(
            f"reading {path}: found no vocabulary ({error}), expected lines of base64 and rank; "
            "openai-whisper's are called multilingual.tiktoken and gpt2.tiktoken"
        ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or len(ranks) < 256:
        raise CheckpointError(
            f"reading {path}: found {len(ranks)} tokens whose ranks have holes, expected 0, 1, 2 "
            "and so on; copy the file again"
        )
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _controls(num_languages: int) -> list[str]:
    """The control tokens after the end token, in the order of their ids."""
    languages = [f"<|{code}|>" for code in list(LANGUAGES)[:num_languages]]
    names = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    return ["<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in names)]


def _timestamps() -> list[str]:
    return [f"<|{step * TIMESTAMP_STEP_S:.2f}|>" for step in range(TIMESTAMPS)]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair each longer token was made of: what is left of it one merge before the last."""
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _merge_up_to(token, ranks, limit=rank)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _merge_up_to(token: bytes, ranks: dict[bytes, int], *, limit: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        found = [ranks.get(parts[at] + parts[at + 1], limit) for at in range(len(parts) - 1)]
        best = min(range(len(found)), key=found.__getitem__)
        if found[best] >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _spell(token: bytes) -> str:
    return "".join(_SPELLING[byte] for byte in token)


def _byte_spelling() -> list[str]:
    """A printable character for every byte: itself where it has a visible one in Latin-1.

    Source: openai/gpt-2 `encoder.py`, `bytes_to_unicode`.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelling, others = [], 0
    for byte in range(256):
        spelling.append(chr(byte) if byte in visible else chr(0x100 + others))
        others += byte not in visible
    return spelling


_SPELLING = _byte_spelling()
