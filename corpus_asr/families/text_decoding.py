"""Token ids as callers have them, as lists; and what text of any family may be tidied by.

In: ids, or lists, arrays or tensors of them. Out: lists of Python numbers. How ids become text is a
family's. Knows no vocabulary.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from corpus_asr.families.tensors import as_lists

# In this order: a later pair sees what the earlier ones left.
# Source: transformers 5.23, `PreTrainedTokenizerBase.clean_up_tokenization`.
_TIGHT = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class TextDecoding(ABC):
    """What a tokenizer of any family does with ids."""

    @abstractmethod
    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Turn one sequence of ids into text, or several into a list of texts."""

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Decode each sequence as `decode` does; one sequence gives a list of one text.

        Args:
            sequences: a list, array or tensor of two dimensions; rows may differ in length.
            skip_special_tokens: leave control tokens out.
            clean_up_tokenization_spaces: remove blanks before punctuation.
            kwargs: the other options of `decode`.

        Raises:
            ValueError: `decode` refuses an id.
            TypeError: these are no ids.
        """
        rows = id_lists(sequences)
        if not rows:
            return []
        found = self.decode(rows, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        return found if isinstance(found, list) else [found]

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Remove blanks before punctuation and English endings."""
        for loose, tight in _TIGHT.items():
            text = text.replace(loose, tight)
        return text


def id_lists(token_ids: Any) -> list[Any]:
    """Return ids as a list of numbers, or of such lists.

    Raises:
        TypeError: these are no ids.
    """
    values = as_lists(token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids)
    if isinstance(values, int):
        return [values]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise _no_ids(values)
    found = [as_lists(value) for value in values]
    return [list(value) if isinstance(value, list | tuple) else _as_id(value) for value in found]


def _as_id(value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise _no_ids(value) from error


def _no_ids(found: Any) -> TypeError:
    return TypeError(
        f"decoding: found {str(found)[:40]!r} of type {type(found).__name__}, expected token ids: "
        f"whole numbers, or lists or tensors of them; pass what generate() or a call returned"
    )
