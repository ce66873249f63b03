"""Byte-level byte-pair encoding from a checkpoint's files: the one door to `tokenizers`.

The files are checked here before the library sees them: it ignores a vocabulary that is no object
and panics, past `except Exception`, on a merge whose parts are not in the vocabulary.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Encoding, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from corpus_asr.errors import CheckpointError
from corpus_asr.text.added_tokens import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    added_token,
)

__all__ = ["BytePairEncoding", "Encoding"]

_OTHER_SPECIAL = "additional_special_tokens"


class BytePairEncoding:
    """A vocabulary with its merges and added tokens.

    Special tokens written out in a text are encoded as themselves, as `transformers` does.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids: tuple[int, ...] | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load tokenizer.json, or build the same from vocab.json and merges.txt.

        Raises:
            CheckpointError: neither is there, or a file is broken or contradicts another.
        """
        if (folder / TOKENIZER_NAME).is_file():
            return cls(_from_tokenizer_file(folder / TOKENIZER_NAME))
        if (folder / VOCAB_NAME).is_file() and (folder / MERGES_NAME).is_file():
            return cls(_from_vocabulary(folder / VOCAB_NAME, folder / MERGES_NAME))
        raise CheckpointError(
            f"loading a tokenizer from {folder}: found neither {TOKENIZER_NAME} nor both "
            f"{VOCAB_NAME} and {MERGES_NAME}; fetch the checkpoint's tokenizer files too"
        )

    @classmethod
    def from_files(cls, vocab: Path, merges: Path) -> Self:
        """Build one from a vocabulary and its merges, whatever their names.

        What lies beside the vocabulary, such as added_tokens.json, is read too.
        """
        return cls(_from_vocabulary(vocab, merges))

    @classmethod
    def from_tokenizer_file(cls, path: Path) -> Self:
        """Load a file in the format of tokenizer.json."""
        return cls(_from_tokenizer_file(path))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens, ascending."""
        if self._special_ids is None:
            added = self.added_tokens.items()
            self._special_ids = tuple(sorted(i for i, token in added if token.special))
        return self._special_ids

    @property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The tokens beside the vocabulary by id."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    def vocabulary(self, *, with_added: bool = True) -> dict[str, int]:
        """Return the id of every token."""
        return self._tokenizer.get_vocab(with_added_tokens=with_added)

    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs that are merged, in the order of their ranks."""
        pairs = json.loads(self._tokenizer.to_str())["model"]["merges"]
        return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]

    def add_tokens(self, tokens: Iterable[str], *, special: bool) -> int:
        """Add tokens after the last id; returns how many were new."""
        size = len(self)
        self._tokenizer.add_tokens([added_token(token, special=special) for token in tokens])
        self._special_ids = None
        return len(self) - size

    def set_prefix_space(self, add: bool) -> None:
        """Choose whether a text without a blank at its start is encoded as if it had one."""
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add)

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None where the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token with this id, None where there is none."""
        # The library's ids are unsigned: a negative one would raise OverflowError.
        return self._tokenizer.id_to_token(token_id) if token_id >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Encode `text` and nothing around it."""
        return list(self.encoding(text).ids)

    def encoding(self, text: str | Sequence[str]) -> Encoding:
        """Encode a text, or words one by one, with the place of each token in its text or word.

        Raises:
            ValueError: `text` holds half a surrogate pair, which has no bytes.
        """
        words = not isinstance(text, str)
        try:
            return self._tokenizer.encode(
                list(text) if words else text, is_pretokenized=words, add_special_tokens=False
            )
        except TypeError as error:
            raise ValueError(
                f"encoding {text[:40]!r}: found {type(text).__name__} that is no valid Unicode "
                f"text; decode it with errors='replace' first"
            ) from error

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        errors: str = "replace",
    ) -> str:
        """Join tokens to text; unknown ids become nothing.

        Raises:
            ValueError: an id is negative, such as a label's padding; or bytes are no UTF-8 and
                `errors` is `strict`.
        """
        ids = list(token_ids)
        if min(ids, default=0) < 0:
            raise ValueError(
                f"decoding {len(ids)} token ids: found {min(ids)}, expected ids from 0; replace "
                f"the padding of labels by the end token first"
            )
        if errors == "replace":
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        skipped = set(self.special_ids) if skip_special_tokens else set()
        tokens = [self.id_to_token(i) for i in ids if i not in skipped]
        return b"".join(map(_token_bytes, filter(None, tokens))).decode("utf-8", errors)

    def join(self, tokens: Sequence[str]) -> str:
        """Join tokens as the vocabulary spells them to text."""
        return b"".join(map(_token_bytes, tokens)).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into `folder`."""
        self._tokenizer.save(str(folder / TOKENIZER_NAME))


def _from_tokenizer_file(path: Path) -> Tokenizer:
    text = _read_text(path)
    content = _parse_object(text, path)
    model = content.get("model")
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
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(
            f"reading {path}: found no usable tokenizer ({error}); fetch the checkpoint again"
        ) from error
    # A file may ask for cut or padded texts; nothing here ever wants them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_vocabulary(vocab_path: Path, merges_path: Path) -> Tokenizer:
    folder = vocab_path.parent
    vocab = _parse_object(_read_text(vocab_path), vocab_path)
    lines = _read_text(merges_path).replace("\r\n", "\n").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version:")]
    _check_vocabulary(vocab, merges, path=vocab_path, merges_path=merges_path)
    settings = _optional_object(folder / SETTINGS_NAME)
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
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected an object of tokens and their ids; "
            f"fetch the checkpoint again"
        )
    if not isinstance(merges, list):
        raise CheckpointError(
            f"reading {merges_path}: found no merges, expected a list of pairs; "
            f"fetch the checkpoint again"
        )
    for number, pair in enumerate(merges):
        fits = isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        if not fits or not {*pair, "".join(pair)} <= vocab.keys():
            raise CheckpointError(
                f"reading {merges_path}: merge {number} is {str(pair)[:60]}, expected two tokens "
                f"of {path.name} that make a third; fetch the checkpoint again"
            )


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> list[tuple[AddedToken, int | None]]:
    """Collect the tokens beside the vocabulary: those with ids by id, then the rest in order."""
    special = dict.fromkeys(
        [*_special_tokens(_optional_object(folder / SPECIAL_NAME)), *_special_tokens(settings)]
    )
    ids: dict[str, int | None] = dict.fromkeys(special)
    ids.update(_listed_ids(folder / ADDED_NAME))
    for token, token_id, is_special in _described_tokens(settings, folder / SETTINGS_NAME):
        # tokenizer_config.json says more than the older files: it wins.
        ids[token] = token_id
        if is_special:
            special[token] = None
    order = sorted(ids, key=lambda token: (ids[token] is None, ids[token] or 0))
    return [(added_token(token, special=token in special), ids[token]) for token in order]


def _listed_ids(path: Path) -> dict[str, int]:
    """Read added_tokens.json: ids by token."""
    content = _optional_object(path)
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
    """Yield the tokens that a file names for a role: values of its `..._token(s)` keys."""
    for key, value in content.items():
        if key == _OTHER_SPECIAL or key.endswith("_token"):
            for entry in value if isinstance(value, list) else [value]:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token:
                    yield token


def _optional_object(path: Path) -> dict[str, Any]:
    return _parse_object(_read_text(path), path) if path.is_file() else {}


def _parse_object(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"reading {path}: found no JSON ({error}); fetch the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"reading {path}: found a {type(content).__name__}, expected an object of keys and "
            f"values; fetch the checkpoint again"
        )
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"reading {path}: found no readable text ({error}); fetch the checkpoint again"
        ) from error


def _token_bytes(token: str) -> bytes:
    """Return what a token stands for; one with other letters than bytes have is its own text."""
    values = [bytes_by_letter().get(letter) for letter in token]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(token) else token.encode()


@cache
def bytes_by_letter() -> Mapping[str, int]:
    """The byte of each letter that spells one; openai/gpt-2, encoder.py, bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    letters = {chr(value): value for value in printable}
    return letters | {chr(256 + rank): value for rank, value in enumerate(others)}
