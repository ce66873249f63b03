"""Parakeet's tokenizer: converts between text and IDs; for CTC it collapses repeated tokens.

Method and parameter names, defaults and results are those of `transformers.ParakeetTokenizer`,
version 5.23.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from corpus_asr.errors import CheckpointError
from corpus_asr.families.library_tokenizer import LibraryTokenizer, read_tokenizer_file
from corpus_asr.families.tokenizer import (
    ROLES,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    added_token,
)
from corpus_asr.families.truncation_padding import NO_LIMIT, decode_each


class ParakeetTokenizer(LibraryTokenizer):
    """A vocabulary from tokenizer.json, without control tokens around texts.

    Args:
        tokenizer_file: tokenizer.json, as transformers converts it from NeMo's SentencePiece.
        pad_token: padding, and CTC's blank. Decoding omits it.

    Raises:
        CheckpointError: the file is missing or broken.
        ValueError: the vocabulary lacks a named token.
    """

    def __init__(
        self,
        tokenizer_file: str | PathLike[str],
        *,
        unk_token: str | None = "<unk>",
        pad_token: str | None = "<pad>",
        bos_token: str | None = None,
        eos_token: str | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int = NO_LIMIT,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        # Before other local names are bound: all settings by name.
        arguments = locals()
        self._tokenizer = read_tokenizer_file(Path(tokenizer_file))
        self._set_up({name: arguments[name] for name in self._defaults()})

    def _set_up(self, settings: Mapping[str, Any]) -> None:
        self._special_ids = None
        self._take_settings(settings)
        for role in ROLES:
            self._check_setting(role, settings[role])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    @property
    def prefix_tokens(self) -> list[int]:
        """IDs at the start of labels: none."""
        return []

    @property
    def _end(self) -> None:
        return None

    def _unknown(self) -> str | None:
        return self.unk_token

    # IDs to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        group_tokens: bool = True,
    ) -> Any:
        """Decode one sequence of IDs to text, or several to a list of texts.

        Args:
            skip_special_tokens: omit control tokens, such as a transducer's blank.
            clean_up_tokenization_spaces: remove spaces before punctuation, including intended
                ones; None for the tokenizer's setting.
            group_tokens: collapse repeated tokens, as for CTC outputs; false for texts and for
                transducer outputs.

        Raises:
            ValueError: an ID is negative, such as a label's padding.
        """
        clean = self._clean(clean_up_tokenization_spaces)

        def decode_one(ids: list[int]) -> str:
            if min(ids, default=0) < 0:
                raise ValueError(
                    f"decoding {len(ids)} token ids: found {min(ids)}, expected ids from 0; "
                    "replace the padding of labels by the padding token first"
                )
            if group_tokens:
                ids = [token for token, _ in groupby(ids)]
            kept = [token for token in ids if token != self.pad_token_id]
            text = self._tokenizer.decode(kept, skip_special_tokens=skip_special_tokens)
            return self.clean_up_tokenization(text) if clean else text

        return decode_each(token_ids, decode_one)

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return the text without control tokens; repeated tokens are not collapsed."""
        text: str = self.decode(list(token_ids), skip_special_tokens=True, group_tokens=False)
        return text

    def pieces(self, token_ids: Iterable[int]) -> list[str | None]:
        """Return the text added by each token; None for an incomplete character."""
        stream = DecodeStream(skip_special_tokens=True)
        return [stream.step(self._tokenizer, int(token)) for token in token_ids]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text."""
        decoder = self._tokenizer.decoder
        return decoder.decode(tokens) if decoder is not None else " ".join(tokens)

    # Files

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        path = folder / TOKENIZER_NAME
        if not path.is_file():
            raise CheckpointError(
                f"loading a tokenizer from {folder}: found no {TOKENIZER_NAME}; fetch the "
                "checkpoint's tokenizer file, too"
            )
        self._tokenizer = read_tokenizer_file(path)
        # The caller's role tokens are added if they are new; those of files must exist.
        tokens = [given[role] for role in ROLES if given.get(role) is not None]
        new = [token for token in tokens if self._tokenizer.token_to_id(token) is None]
        self._tokenizer.add_special_tokens([added_token(token, special=True) for token in new])
        self._set_up(self._defaults() | self._saved_settings(folder, given))

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        self._save_settings(folder, special_tokens=self.additional_special_tokens)
        self._tokenizer.save(str(folder / TOKENIZER_NAME))
        names = (SETTINGS_NAME, SPECIAL_NAME, TOKENIZER_NAME)
        return tuple(str(folder / name) for name in names)
