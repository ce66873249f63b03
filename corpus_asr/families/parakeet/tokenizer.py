"""Parakeet's tokenizer: text to token IDs and back, from tokenizer.json."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers.decoders import DecodeStream

from corpus_asr.families.library_tokenizer import TOKENIZER_NAME, encoding_of, read_tokenizer_file

_UNKNOWN = "<unk>"


class ParakeetTokenizer:
    """The vocabulary of a checkpoint folder, as transformers converts it from SentencePiece.

    Raises:
        CheckpointError: the file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = read_tokenizer_file(folder / TOKENIZER_NAME)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """ID of every token."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def num_pieces(self) -> int:
        """Number of tokens without the added ones."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """IDs of tokens that are no text: the unknown one, and such as padding and blank."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {token_id for token_id, token in added if token.special}
        return frozenset(special | {self.vocabulary.get(_UNKNOWN, -1)})

    def encode(self, text: str) -> list[int]:
        """Return the IDs of a text; raises ValueError for invalid Unicode."""
        return list(encoding_of(self._tokenizer, text, words=False).ids)

    def token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it; None for an unknown ID."""
        return self._tokenizer.id_to_token(token_id)

    def pieces(self, token_ids: Iterable[int]) -> list[str | None]:
        """Return the text added by each token; None for an incomplete character."""
        stream = DecodeStream(skip_special_tokens=True)
        return [stream.step(self._tokenizer, int(token)) for token in token_ids]
