"""Files and texts of tokenizers, by the tokenizers library.

Files are validated before the library reads them: it ignores a vocabulary that is not an object
and panics, past `except Exception`, on a merge whose parts are not in the vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import checked, optional_object, read_json_object
from corpus_asr.families.truncation_padding import NO_LIMIT, EncodeOptions

TOKENIZER_NAME = "tokenizer.json"
VOCAB_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
ADDED_NAME = "added_tokens.json"
SPECIAL_NAME = "special_tokens_map.json"
SETTINGS_NAME = "tokenizer_config.json"

OTHER_SPECIAL = ("additional_special_tokens", "extra_special_tokens")

_MAX_ID = 2**32 - 1  # limit of the library


def added_token(token: str | AddedToken, *, special: bool) -> AddedToken:
    """Return a token object for a text; an existing token object is unchanged."""
    if isinstance(token, AddedToken):
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        described = {name: getattr(token, name) for name in flags}
        return AddedToken(token.content, special=special or token.special, **described)
    return AddedToken(token, special=special, normalized=not special)


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Load a file in the format of tokenizer.json; raises CheckpointError."""
    about = path.stat() if path.is_file() else None
    _check_tokenizer_file(path, about and (about.st_mtime_ns, about.st_size))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no specific exception
        raise CheckpointError(
            f"reading {path}: found no usable tokenizer ({error}); fetch the checkpoint again"
        ) from error
    # A file may enable truncation or padding; only calls decide that here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# A model's tokenizer is read before its weights are fetched and again with them; the check takes
# most of that time.
@lru_cache(maxsize=64)
def _check_tokenizer_file(path: Path, _version: tuple[int, int] | None) -> None:
    model = read_json_object(path).get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise CheckpointError(
            f"reading {path}: found a model of type {kind!r}, expected 'BPE'; choose a checkpoint "
            f"with a BPE tokenizer"
        )
    merges = model.get("merges")
    if isinstance(merges, list):
        # Older files have pairs as one string.
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    check_vocabulary(model.get("vocab"), merges, path=path, merges_path=path)


def check_vocabulary(vocab: object, merges: object, *, path: Path, merges_path: Path) -> None:
    """Raise CheckpointError for a vocabulary or merges on which the library would fail."""
    # Not `isinstance` for IDs: true is an int in Python, but no ID.
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
    tokens = vocab.keys()  # strings, as keys of JSON
    for number, pair in enumerate(merges):
        first, second = pair if type(pair) is list and len(pair) == 2 else (None, None)
        if not (
            type(first) is str
            and type(second) is str
            and first in tokens
            and second in tokens
            and first + second in tokens
        ):
            raise CheckpointError(
                f"reading {merges_path}: merge {number} is {str(pair)[:60]}, expected two tokens "
                f"of {path.name} that form a third; fetch the checkpoint again"
            )


def add_saved_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that a folder's files have beside the vocabulary, at the IDs they name.

    Raises:
        CheckpointError: a file is broken, or an ID does not follow the vocabulary's without gaps.
    """
    settings = optional_object(folder / SETTINGS_NAME)
    roles = (optional_object(folder / SPECIAL_NAME), settings)
    special = dict.fromkeys(token for content in roles for token in _special_tokens(content))
    # Role files name special tokens without IDs; a separate file has the IDs.
    path = folder / ADDED_NAME
    ids: dict[str, int | None] = dict.fromkeys(special)
    ids.update(checked(dict[str, int], optional_object(path), "", path=path))
    # tokenizer_config.json takes precedence over the older files.
    described = _described_tokens(settings, folder / SETTINGS_NAME)
    ids.update({token: token_id for token, (token_id, _) in described.items()})
    # Tokens with IDs by ID, then the others in order, as the library assigns IDs in sequence.
    for token in sorted(ids, key=lambda token: (ids[token] is None, ids[token] or 0)):
        flags = described[token][1] if token in described else {}
        is_special = token in special or flags.get("special", False)
        flags = {"normalized": not is_special, **flags, "special": is_special}
        tokenizer.add_tokens([AddedToken(token, **flags)])
        actual_id = tokenizer.token_to_id(token)
        if ids[token] not in (None, actual_id):
            raise CheckpointError(
                f"loading a tokenizer from {folder}: {token} got id {actual_id}, expected "
                f"{ids[token]}, without gaps after {VOCAB_NAME}; fetch the checkpoint again"
            )


def _described_tokens(
    settings: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, dict[str, bool]]]:
    try:
        return {
            str(described["content"]): (
                int(token_id),
                {name: flag for name, flag in described.items() if isinstance(flag, bool)},
            )
            for token_id, described in settings.get("added_tokens_decoder", {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: found an unusable added_tokens_decoder ({error!r}), expected an "
            f"object of ids and descriptions; fetch the checkpoint again"
        ) from error


def _special_tokens(content: Mapping[str, Any]) -> Iterator[str]:
    # Files name role tokens under keys `..._token`, as text or with flags.
    for key, value in content.items():
        if key in OTHER_SPECIAL or key.endswith("_token"):
            for entry in value if isinstance(value, list) else [value]:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token:
                    yield token


def fitting_tokenizer(
    options: EncodeOptions, *, around: tuple[Sequence[int], int] | None, truncation_side: str
) -> Tokenizer:
    """Return a tokenizer that only truncates encodings and adds special tokens around them.

    `around` has the IDs before a text and the one after it.

    Raises:
        ValueError: the stride does not fit the length.
    """
    # Truncation set on the vocabulary's own tokenizer would affect threads that encode with it
    # concurrently; creating this one takes 25 us.
    fitting = Tokenizer(BPE())
    if around is not None:
        prefix, end = around
        prefix_tokens = [f"{token}:0" for token in prefix]
        fitting.post_processor = TemplateProcessing(
            single=[*prefix_tokens, "$A:0", f"{end}:0"],
            pair=[*prefix_tokens, "$A:0", "$B:1", f"{end}:1"],
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
            f"({error}), expected a stride from 0 and below the text tokens of a row; change one "
            "of them"
        ) from error
    return fitting


def encoding_of(tokenizer: Tokenizer, text: Any, *, words: bool) -> Encoding:
    """Encode a text, or a list of words, without special tokens.

    Raises:
        ValueError: the input has another type, or is not valid Unicode.
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
            f"encoding {text[:40]!r}: found {type(text).__name__} that is not valid Unicode; "
            "decode it with errors='replace' first"
        ) from error
