"""Whisper's byte-level BPE vocabulary as a `tokenizers.Tokenizer`: read, written, encoded with.

The files are checked here before the library sees them: it ignores a vocabulary that is no object
and panics, past `except Exception`, on a merge whose parts are not in the vocabulary.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    optional_object,
    read_json_object,
    read_saved_bytes,
    write_json_object,
)
from corpus_asr.families.tokenizer import (
    ADDED_NAME,
    MERGES_NAME,
    OTHER_SPECIAL,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    added_token,
)
from corpus_asr.families.truncation_padding import NO_LIMIT, EncodeOptions

_MAX_ID = 2**32 - 1  # of the library


def load_vocabulary(folder: Path) -> Tokenizer:
    """Load tokenizer.json, or build the same from vocab.json and merges.txt.

    Raises:
        CheckpointError: neither is there, or a file is broken or contradicts another.
    """
    if (folder / TOKENIZER_NAME).is_file():
        return read_tokenizer_file(folder / TOKENIZER_NAME)
    if (folder / VOCAB_NAME).is_file() and (folder / MERGES_NAME).is_file():
        return build_vocabulary(folder / VOCAB_NAME, folder / MERGES_NAME)
    raise CheckpointError(
        f"loading a tokenizer from {folder}: found neither {TOKENIZER_NAME} nor both "
        f"{VOCAB_NAME} and {MERGES_NAME}; fetch the checkpoint's tokenizer files too. Trainers "
        "save none: take those of the checkpoint it was trained from, `corpus-asr convert "
        f"{folder} NEW_FOLDER --tokenizer {_trained_from(folder)}`"
    )


# Those of Whisper's checkpoints with as many tokens are equal; the first one is packaged.
_BY_VOCABULARY = {
    51_864: "whisper-tiny.en", 51_865: "openai/whisper-tiny", 51_866: "openai/whisper-large-v3",
}  # fmt: skip


def _trained_from(folder: Path) -> str:
    path = folder / "config.json"
    size = read_json_object(path).get("vocab_size") if path.is_file() else None
    return _BY_VOCABULARY.get(size, "BASE") if isinstance(size, int) else "BASE"


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Load a file in the format of tokenizer.json; raises CheckpointError."""
    about = path.stat() if path.is_file() else None
    _check_tokenizer_file(path, about and (about.st_mtime_ns, about.st_size))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(
            f"reading {path}: found no usable tokenizer ({error}); fetch the checkpoint again"
        ) from error
    # A file may ask for truncated or padded texts; calls alone decide that here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# Loading a model reads its tokenizer before its weights are fetched and again with them; the check
# is most of a reading's time.
@lru_cache(maxsize=64)
def _check_tokenizer_file(path: Path, _version: tuple[int, int] | None) -> None:
    model = read_json_object(path).get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise CheckpointError(
            f"reading {path}: found a model of type {kind!r}, expected 'BPE'; choose a checkpoint "
            f"with a byte-level BPE tokenizer"
        )
    merges = model.get("merges")
    if isinstance(merges, list):
        # Older files write a pair as one string.
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    _check_vocabulary(model.get("vocab"), merges, path=path, merges_path=path)


def build_vocabulary(vocab_path: Path, merges_path: Path) -> Tokenizer:
    """Build a tokenizer from its vocabulary and merges, whatever the names of these files.

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
    # Only the version line is a comment: `#` itself is a token, and may be merged.
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    merges = [line.split(" ") for line in lines if not line.startswith("#version:")]
    _check_vocabulary(vocab, merges, path=vocab_path, merges_path=merges_path)
    settings = optional_object(folder / SETTINGS_NAME)
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[(left, right) for left, right in merges]))
    prefix_space = settings.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    added = _added_tokens(folder, settings)
    tokenizer.add_tokens([token for token, _ in added])
    for token, token_id in added:
        found = tokenizer.token_to_id(token.content)
        if token_id is not None and found != token_id:
            raise CheckpointError(
                f"loading a tokenizer from {folder}: {token.content} got id {found}, expected "
                f"{token_id} as its files say; ids must follow {VOCAB_NAME} without holes: fetch "
                f"the checkpoint again"
            )
    return tokenizer


def _check_vocabulary(vocab: object, merges: object, *, path: Path, merges_path: Path) -> None:
    # Not `isinstance` for ids: true is an int for Python, but no id.
    if not isinstance(vocab, dict) or not all(
        type(i) is int and 0 <= i <= _MAX_ID for i in vocab.values()
    ):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected an object of tokens and their ids, "
            f"whole numbers of 0 to {_MAX_ID:,}; fetch the checkpoint again"
        )
    if not isinstance(merges, list):
        raise CheckpointError(
            f"reading {merges_path}: found no merges, expected a list of pairs; "
            f"fetch the checkpoint again"
        )
    known = vocab.keys()  # texts, as keys of JSON are
    for number, pair in enumerate(merges):
        left, right = pair if type(pair) is list and len(pair) == 2 else (None, None)
        if not (
            type(left) is str
            and type(right) is str
            and left in known
            and right in known
            and left + right in known
        ):
            raise CheckpointError(
                f"reading {merges_path}: merge {number} is {str(pair)[:60]}, expected two tokens "
                f"of {path.name} that make a third; fetch the checkpoint again"
            )


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> list[tuple[AddedToken, int | None]]:
    # Those with ids by id, then the rest in order: the library numbers them as they come.
    special = dict.fromkeys(
        [*_special_tokens(optional_object(folder / SPECIAL_NAME)), *_special_tokens(settings)]
    )
    ids: dict[str, int | None] = dict.fromkeys(special)
    # Roles name special tokens without ids; those are listed in a file of their own.
    ids.update(_listed_ids(folder / ADDED_NAME))
    for token, token_id, is_special in _described_tokens(settings, folder / SETTINGS_NAME):
        # tokenizer_config.json says more than the older files: it wins.
        ids[token] = token_id
        if is_special:
            special[token] = None
    order = sorted(ids, key=lambda token: (ids[token] is None, ids[token] or 0))
    return [(added_token(token, special=token in special), ids[token]) for token in order]


def _listed_ids(path: Path) -> dict[str, int]:
    content = optional_object(path)
    for token, token_id in content.items():
        if type(token_id) is not int:
            raise CheckpointError(
                f"reading {path}: {token} has id {token_id!r}, expected a whole number; fetch the "
                f"checkpoint again"
            )
    return content


def _described_tokens(settings: Mapping[str, Any], path: Path) -> Iterator[tuple[str, int, bool]]:
    try:
        for token_id, flags in settings.get("added_tokens_decoder", {}).items():
            yield str(flags["content"]), int(token_id), flags.get("special") is True
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: found an unusable added_tokens_decoder ({error!r}), expected an "
            f"object of ids and descriptions; fetch the checkpoint again"
        ) from error


def _special_tokens(content: Mapping[str, Any]) -> Iterator[str]:
    # Files name a token for a role under keys `..._token`, as its text or with flags.
    for key, value in content.items():
        if key in OTHER_SPECIAL or key.endswith("_token"):
            for entry in value if isinstance(value, list) else [value]:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token:
                    yield token


def write_vocabulary(tokenizer: Tokenizer, vocab_path: Path, merges_path: Path) -> None:
    """Write a tokenizer's vocabulary and merges, without the tokens added to them."""
    write_json_object(vocab_path, tokenizer.get_vocab(with_added_tokens=False))
    # The library's model has no attribute for its merges.
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    merges_path.write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")


def fitting_tokenizer(
    options: EncodeOptions, *, around: tuple[Sequence[int], int] | None, truncation_side: str
) -> Tokenizer:
    """Return what truncates encodings and puts special tokens around them, and does no more.

    `around` are the ids before a text and the one after it.

    Raises:
        ValueError: the stride does not fit the length.
    """
    # Truncation set on the vocabulary's own tokenizer would be seen by threads that encode with it
    # at the same time; making this one takes 25 us.
    fitting = Tokenizer(BPE())
    if around is not None:
        prefix, end = around
        before = [f"{token}:0" for token in prefix]
        fitting.post_processor = TemplateProcessing(
            single=[*before, "$A:0", f"{end}:0"],
            pair=[*before, "$A:0", "$B:1", f"{end}:1"],
            special_tokens=[(str(token), token) for token in {*prefix, end}],
        )
    lengths = options.lengths
    if lengths.limit == NO_LIMIT:
        return fitting
    try:
        fitting.enable_truncation(
            lengths.limit,
            stride=options.stride,
            strategy=lengths.truncation,
            direction=truncation_side,
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"encoding texts: found stride={options.stride} and max_length={lengths.limit} "
            f"({error}), expected a stride from 0 and below the tokens of text in a row; "
            f"change one of them"
        ) from error
    return fitting


def encoding_of(tokenizer: Tokenizer, text: Any, *, words: bool) -> Encoding:
    """Encode a text, or a list of words, without special tokens.

    Raises:
        ValueError: it is no such thing, or no valid Unicode.
    """
    of_words = isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
    if not (of_words if words else isinstance(text, str)):
        expected = "a list of words" if words else "a text"
        raise ValueError(
            f"encoding texts: found {str(text)[:40]!r} of type {type(text).__name__}, expected "
            f"{expected}; correct it or is_split_into_words"
        )
    try:
        return tokenizer.encode(
            list(text) if words else text, is_pretokenized=words, add_special_tokens=False
        )
    except TypeError as error:
        raise ValueError(
            f"encoding {text[:40]!r}: found {type(text).__name__} that is no valid Unicode "
            f"text; decode it with errors='replace' first"
        ) from error


def token_bytes(token: str) -> bytes:
    """Return what a token stands for; one with other letters than bytes have is its own text."""
    values = [bytes_by_letter().get(letter) for letter in token]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(token) else token.encode()


@cache
def bytes_by_letter() -> Mapping[str, int]:
    """The byte of each letter that spells one; openai/gpt-2, encoder.py, bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # Bytes that cannot be printed are spelled by the letters from U+0100 on, in their order.
    others = [value for value in range(256) if value not in printable]
    letters = {chr(value): value for value in printable}
    return letters | {chr(256 + rank): value for rank, value in enumerate(others)}
