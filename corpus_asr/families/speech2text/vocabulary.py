"""Speech2Text's vocabulary: SentencePiece, after texts were split at added tokens."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import sentencepiece
from tokenizers import AddedToken

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import read_saved_bytes
from corpus_asr.families.tokenizer import added_token

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def described_token(description: Any) -> AddedToken:
    """Convert a file's token description, a text or an object with flags, to a token."""
    if isinstance(description, str):
        return added_token(description, special=True)
    if isinstance(description, Mapping) and isinstance(description.get("content"), str):
        flags = {name: description.get(name, name == "special") is True for name in _FLAGS}
        return AddedToken(description["content"], **flags)
    raise ValueError(
        f"reading a token: found {str(description)[:60]!r}, expected its text, or an object with "
        f"'content'; fetch the checkpoint again"
    )


def token_flags(token: AddedToken) -> dict[str, Any]:
    """Return the description of a token for a file."""
    return {"content": token.content} | {name: getattr(token, name) for name in _FLAGS}


class AddedTokens:
    """Tokens by id and ids by token."""

    def __init__(self) -> None:
        self.tokens: dict[int, AddedToken] = {}
        self.ids: dict[str, int] = {}

    def put(self, token_id: int, token: AddedToken) -> None:
        """Assign an ID to a token, replacing its previous token."""
        former = self.tokens.get(token_id)
        if former is not None:
            self.ids.pop(former.content, None)
        self.tokens[token_id] = token
        self.ids[token.content] = token_id

    def split(self, text: str) -> list[str]:
        """Split a text at these tokens, keeping them and omitting empty strings.

        A token may absorb adjacent spaces, or match whole words only.
        """
        parts = [part for part in _pattern(frozenset(self.ids)).split(text) if part]
        for i, part in enumerate(parts):
            if part in self.ids:
                self._settle(parts, i)
        return [part for part in parts if part]

    def _settle(self, parts: list[str], i: int) -> None:
        token = self.tokens[self.ids[parts[i]]]
        left_part = parts[i - 1] if i > 0 else ""
        right_part = parts[i + 1] if i + 1 < len(parts) else ""
        if token.rstrip and right_part:
            parts[i + 1] = right_part.lstrip()
        if token.lstrip and left_part:
            parts[i - 1] = left_part.rstrip()
        if not token.single_word:
            return
        if left_part and left_part[-1] != " ":
            parts[i - 1], parts[i] = parts[i - 1] + parts[i], ""
        elif right_part and right_part[0] != " ":
            parts[i + 1], parts[i] = parts[i] + parts[i + 1], ""

    def lower(self, text: str) -> str:
        """Convert a text to lower case, except these tokens in it."""
        kept = {t.content for t in self.tokens.values() if t.special or not t.normalized}
        parts = _pattern(frozenset(kept)).split(text)
        return "".join(part if i % 2 else part.lower() for i, part in enumerate(parts))


# Adding tokens one by one creates a pattern each, so the cache is bounded.
@lru_cache(maxsize=16)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    # Alternatives are tried in order: `<a>` must precede `<a`.
    longest_first = sorted(tokens, key=len, reverse=True)
    # Without tokens, a pattern that never matches.
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


class SentencePieces:
    """A SentencePiece model, unigram or byte-pair encoding, from the content of its file.

    `options` are keywords of `sentencepiece.SentencePieceProcessor`, such as `enable_sampling`.

    Raises:
        ValueError: the content is not a SentencePiece model.
        TypeError: an option is unknown, or has an invalid value.
    """

    def __init__(self, model: bytes, options: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self._options = dict(options or {})
        try:
            if reserved := sorted(self._options.keys() & {"model_file", "model_proto"}):
                raise TypeError(f"{', '.join(reserved)} cannot be set")
            self._processor = sentencepiece.SentencePieceProcessor(**self._options)
        except (TypeError, RuntimeError) as error:
            raise self._unusable(error) from error
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(
                f"reading a SentencePiece model of {len(model)} bytes: found no such model "
                f"({error}); fetch the checkpoint again"
            ) from error
        try:
            # Values of options are only validated here.
            self._processor.encode("a", out_type=str)
        except (TypeError, RuntimeError) as error:
            raise self._unusable(error) from error
        self.unknown_id: int = self._processor.unk_id()

    def _unusable(self, error: Exception) -> TypeError:
        reason = str(error).partition("\n")[0]
        return TypeError(
            f"setting up SentencePiece: found the options {self._options} ({reason}), expected "
            "keywords of SentencePieceProcessor; correct sp_model_kwargs"
        )

    @classmethod
    def from_file(cls, path: Path, options: Mapping[str, Any] | None = None) -> Self:
        """Read a model file; raises CheckpointError, or TypeError as the class does."""
        try:
            return cls(read_saved_bytes(path), options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"reading {path}: found no SentencePiece model ({error}); fetch the checkpoint's "
                f"{path.name} again"
            ) from error

    def piece_id(self, piece: str) -> int:
        """Return the model's own ID of a piece; the unknown one if it has none."""
        piece_id: int = self._processor.PieceToId(piece)
        return piece_id

    def pieces(self, text: str) -> list[str]:
        """Split a text into pieces; unknown characters are unchanged."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encoding {text[:40]!r}: found text that is not valid Unicode ({error.reason}); "
                "decode it with errors='replace' first"
            ) from error
        pieces: list[str] = self._processor.encode(text, out_type=str)
        return pieces

    def join(self, pieces: Sequence[str]) -> str:
        """Join pieces to text."""
        text: str = self._processor.decode(list(pieces))
        return text

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
