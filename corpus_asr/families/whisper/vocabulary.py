"""Reading and writing of Whisper's byte-level BPE vocabulary as a `tokenizers.Tokenizer`."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from corpus_asr.errors import CheckpointError
from corpus_asr.families.library_tokenizer import (
    MERGES_NAME,
    SETTINGS_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    add_saved_tokens,
    check_vocabulary,
    read_tokenizer_file,
)
from corpus_asr.families.saved_files import (
    optional_object,
    read_json_object,
    read_saved_bytes,
    write_json_object,
)


def load_vocabulary(folder: Path) -> Tokenizer:
    """Load tokenizer.json, or build an equal tokenizer from vocab.json and merges.txt.

    Raises:
        CheckpointError: all files are missing, or one is broken or contradicts another.
    """
    if (folder / TOKENIZER_NAME).is_file():
        return read_tokenizer_file(folder / TOKENIZER_NAME)
    if (folder / VOCAB_NAME).is_file() and (folder / MERGES_NAME).is_file():
        return build_vocabulary(folder / VOCAB_NAME, folder / MERGES_NAME)
    raise CheckpointError(
        f"loading a tokenizer from {folder}: found neither {TOKENIZER_NAME} nor both {VOCAB_NAME} "
        f"and {MERGES_NAME}; fetch them, or save those of the base checkpoint: "
        f"AutoProcessor.from_pretrained({_trained_from(folder)!r}).save_pretrained({str(folder)!r})"
    )


# Equal for all Whisper checkpoints with this number of tokens; the first one is packaged.
_BY_VOCABULARY = {
    51_864: "whisper-tiny.en", 51_865: "openai/whisper-tiny", 51_866: "openai/whisper-large-v3",
}  # fmt: skip


def _trained_from(folder: Path) -> str:
    path = folder / "config.json"
    size = read_json_object(path).get("vocab_size") if path.is_file() else None
    return _BY_VOCABULARY.get(size, "BASE") if isinstance(size, int) else "BASE"


def build_vocabulary(vocab_path: Path, merges_path: Path) -> Tokenizer:
    """Build a tokenizer from its vocabulary and merges, with any file names.

    Files next to the vocabulary, such as added_tokens.json, are read too; raises CheckpointError.
    """
    folder = vocab_path.parent
    vocab = read_json_object(vocab_path)
    try:
        text = read_saved_bytes(merges_path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"reading {merges_path}: found no readable text ({error}); fetch the checkpoint again"
        ) from error
    # Only the version line is a comment: `#` is a token and may be merged.
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    merges = [line.split(" ") for line in lines if not line.startswith("#version:")]
    check_vocabulary(vocab, merges, path=vocab_path, merges_path=merges_path)
    settings = optional_object(folder / SETTINGS_NAME)
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[(first, second) for first, second in merges]))
    prefix_space = settings.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    add_saved_tokens(tokenizer, folder)
    return tokenizer


def write_vocabulary(tokenizer: Tokenizer, vocab_path: Path, merges_path: Path) -> None:
    """Write a tokenizer's vocabulary and merges, without added tokens."""
    write_json_object(vocab_path, tokenizer.get_vocab(with_added_tokens=False))
    # The library's model does not expose its merges.
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    merges_path.write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")


def token_bytes(token: str) -> bytes:
    """Return the bytes of a token; a token with other characters is encoded as text."""
    values = [_bytes_by_letter().get(letter) for letter in token]
    byte_values = [value for value in values if value is not None]
    return bytes(byte_values) if len(byte_values) == len(token) else token.encode()


@cache
def _bytes_by_letter() -> Mapping[str, int]:
    """Return the byte of each byte-level character; openai/gpt-2, encoder.py, bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # Non-printable bytes are represented by characters from U+0100, in order.
    unprintable_bytes = [value for value in range(256) if value not in printable]
    letters = {chr(value): value for value in printable}
    return letters | {chr(256 + rank): value for rank, value in enumerate(unprintable_bytes)}
