"""Pieces of words from a SentencePiece model: the one door to `sentencepiece`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from corpus_asr.errors import CheckpointError


class SentencePieces:
    """A SentencePiece model, unigram or byte-pair encoding.

    Args:
        model: the file's content.
        options: keywords of `sentencepiece.SentencePieceProcessor`, such as `enable_sampling`,
            `nbest_size` and `alpha`.

    Raises:
        ValueError: the content is no SentencePiece model.
        TypeError: there is no such option, or it has a value that cannot be used.
    """

    def __init__(self, model: bytes, options: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._options = dict(options or {})
        reserved = self._options.keys() & {"model_file", "model_proto"}
        try:
            if reserved:
                raise TypeError(f"{', '.join(sorted(reserved))} cannot be chosen here")
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
            self._processor.encode("a", out_type=str)  # looks at the options' values for once
        except (TypeError, RuntimeError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> TypeError:
        reason = str(error).partition("\n")[0]
        return TypeError(
            f"setting up SentencePiece: found the options {self._options} ({reason}), expected "
            f"keywords of SentencePieceProcessor and their types; correct sp_model_kwargs"
        )

    @classmethod
    def from_file(cls, path: Path, options: Mapping[str, Any] | None = None) -> "SentencePieces":
        """Read a model file.

        Raises:
            CheckpointError: it is missing, unreadable, or no SentencePiece model.
            TypeError: an option is not known.
        """
        try:
            return cls(path.read_bytes(), options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"reading {path}: found no SentencePiece model ({error}); fetch the checkpoint's "
                f"{path.name} again"
            ) from error

    def __len__(self) -> int:
        return len(self._processor)

    @property
    def model(self) -> bytes:
        """The file's content."""
        return self._model

    def piece_id(self, piece: str) -> int | None:
        """Return the model's own id of a piece, None where it has none."""
        found: int = self._processor.PieceToId(piece)
        return found if self._processor.IdToPiece(found) == piece else None

    @property
    def unknown_id(self) -> int:
        """The model's own id of what it has no piece for."""
        found: int = self._processor.unk_id()
        return found

    def pieces(self, text: str) -> list[str]:
        """Cut a text into pieces; letters that the model lacks stay as they are."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"encoding {text[:40]!r}: found text that is no valid Unicode ({error.reason}); "
                f"decode it with errors='replace' first"
            ) from error
        found: list[str] = self._processor.encode(text, out_type=str)
        return found

    def join(self, pieces: Sequence[str]) -> str:
        """Join pieces to text."""
        found: str = self._processor.decode(list(pieces))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], state["options"])  # type: ignore[misc]
