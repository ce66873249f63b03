"""Text to rows of token ids, whatever the vocabulary: labels, cut and padded as asked for.

In: texts. Out: rows of ids between the tokens that a label starts and ends with, and masks. How a
text becomes ids, and what becomes of one that is too long, is a family's. Knows no ids to text and
no audio.
"""

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from corpus_asr.families.tensors import BatchEncoding
from corpus_asr.families.token_roles import TokenRoles
from corpus_asr.families.tokenizer_rows import Lengths, chosen_lengths, gathered, pad_batch

OUTSIDE = (0, 0)
"""Where a token stands that is not of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call asks for, beside its texts."""

    words: bool
    """Whether texts come as lists of words."""
    special: bool
    """Whether to put special tokens around each."""
    lengths: Lengths
    stride: int
    """Tokens that are repeated where a row is cut."""
    overflow: bool
    """Whether what is cut off is wanted."""
    wanted: tuple[str, ...]
    """What else than ids is wanted, by name."""
    side: str
    """Where rows are padded."""
    tensors: str | None
    """`np`, `pt` or None for lists."""


class TextEncoding(TokenRoles):
    """What turns texts into rows of ids."""

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode one text or several as labels.

        Args:
            text: a text or a list of them; a list of words, or of such lists, where
                `is_split_into_words`.
            text_pair: a second text for each, put after the first.
            text_target: texts to encode as `labels` beside `text`, or alone.
            text_pair_target: a second text for each of these.
            add_special_tokens: put the prefix before each text and the end token after it.
            padding: True or `longest` for the longest row's width, `max_length` for that one.
            truncation: True or `longest_first`, `only_first`, `only_second`; by itself True where
                `max_length` is given and nothing is padded.
            max_length: tokens per row, special ones included; None for the tokenizer's own.
            stride: tokens that an overflowing row repeats of the one before.
            is_split_into_words: whether texts come as lists of words.
            pad_to_multiple_of: what the width of padded rows shall be a multiple of.
            padding_side: `left` or `right`; None for the tokenizer's own.
            return_tensors: `np`, `pt` or None for lists.
            return_token_type_ids: also tell first texts (0) and second ones (1) apart.
            return_attention_mask: 1 for tokens, 0 for padding; None for yes.
            return_overflowing_tokens: make rows of what was cut off, too.
            return_special_tokens_mask: also mark special tokens and padding by 1.
            return_offsets_mapping: also say where each token stands in its text, in characters.
            return_length: also give the number of tokens of each row.
            verbose: warn of an option that has no effect.

        Returns:
            `input_ids` and what was asked for: rows for several texts, one row for a single one
            unless tensors or overflowing rows are asked for.

        Raises:
            ValueError: no text was given, what was given is no text, or options contradict.
        """
        if text is None and text_target is None:
            raise ValueError(
                "encoding texts: found neither text nor text_target, expected one of them; pass it"
            )
        if padding is True and max_length is not None and not truncation and verbose:
            warnings.warn(
                "max_length has no effect with padding=True and no truncation: pass "
                "padding='max_length' to pad to it",
                stacklevel=2,
            )
        lengths = self._lengths(padding, truncation, max_length, pad_to_multiple_of)
        wanted = {
            "token_type_ids": bool(return_token_type_ids),
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        asked = Asked(
            words=is_split_into_words,
            special=add_special_tokens,
            lengths=lengths,
            stride=stride,
            overflow=return_overflowing_tokens,
            wanted=tuple(name for name, is_wanted in wanted.items() if is_wanted),
            side=padding_side or self.padding_side,
            tensors=return_tensors,
        )
        found = [
            self._batch(*texts, asked)
            for texts in ((text, text_pair), (text_target, text_pair_target))
            if texts[0] is not None
        ]
        if len(found) == 2:
            found[0]["labels"] = found[1]["input_ids"]
        return found[0]

    def encode(
        self,
        text: str | list[str],
        text_pair: str | list[str] | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """Encode one text as a label; `add_special_tokens=False` for the text alone.

        Args:
            text: the text, or its words with `is_split_into_words=True`.
            text_pair: a second text, put after the first.
            add_special_tokens: put the prefix before the text and the end token after it.
            options: `padding`, `truncation`, `max_length`, `stride`, `pad_to_multiple_of`,
                `padding_side` and `return_tensors`, as a call takes them.

        Raises:
            ValueError: `text` is no valid Unicode text, or options contradict.
        """
        if text_pair is None and not options and isinstance(text, str):
            ids = self._text_ids(text)
            return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad rows that were encoded earlier, as a collating function does.

        Args:
            encoded_inputs: what calls returned: one, a list of them, or rows by name.
            padding: True or `longest` for the longest row's width, `max_length` for that one.
            max_length: the width with `padding="max_length"`; None for the tokenizer's own.
            pad_to_multiple_of: what the width shall be a multiple of.
            padding_side: `left` or `right`; None for the tokenizer's own.
            return_attention_mask: make a mask where there is none; None for yes.
            return_tensors: `np`, `pt`, or None for what was passed in.
            verbose: warn of an option that has no effect.

        Raises:
            ValueError: there are no `input_ids`, the tokenizer has no padding token, or options
                contradict.
        """
        rows, kind = gathered(encoded_inputs)
        if padding is True and max_length is not None and verbose:
            warnings.warn(
                "max_length has no effect with padding=True: pass padding='max_length' to pad to "
                "it",
                stacklevel=2,
            )
        lengths = self._lengths(padding, False, max_length, pad_to_multiple_of)
        ids = rows["input_ids"]
        if return_attention_mask is not False and "attention_mask" not in rows:
            nested = bool(ids) and isinstance(ids[0], list)
            rows["attention_mask"] = [[1] * len(row) for row in ids] if nested else [1] * len(ids)
        return pad_batch(
            rows,
            lengths,
            fillers={name: f for name, f in self._fillers().items() if name != "offset_mapping"},
            side=padding_side or self.padding_side,
            tensors=return_tensors or kind,
        )

    # What stands around a text

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the prefix before ids, and the end token after them."""
        return [*self.prefix_tokens, *token_ids_0, *(token_ids_1 or []), self._end]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token, 0 for each other one.

        Args:
            token_ids_0: ids of a text.
            token_ids_1: ids of a second one.
            already_has_special_tokens: whether special tokens are among the ids already; otherwise
                the mask is that of the row they would be put into.

        Raises:
            ValueError: a second text was given apart, though both are one row already.
        """
        if not already_has_special_tokens:
            texts = [0] * (len(token_ids_0) + len(token_ids_1 or []))
            return [*([1] * len(self.prefix_tokens)), *texts, 1]
        if token_ids_1 is not None:
            raise ValueError(
                "marking special tokens: found a second list of ids, expected one where "
                "already_has_special_tokens; pass the whole row as token_ids_0"
            )
        special = set(self.all_special_ids)
        return [int(int(token) in special) for token in token_ids_0]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many tokens stand around a text, or around a pair."""
        return len(self.prefix_tokens) + 1

    @property
    @abstractmethod
    def prefix_tokens(self) -> list[int]:
        """Ids that labels start with."""

    @property
    @abstractmethod
    def _end(self) -> int:
        """The id that labels end with."""

    @abstractmethod
    def _text_ids(self, text: str) -> list[int]:
        """Return the ids of a text and nothing around it."""

    @abstractmethod
    def _batch(self, text: Any, pair: Any, asked: Asked) -> BatchEncoding:
        """Encode a text or several, and a second one or as many where `pair` is not None."""

    def _special_tokens_around(self, asked: Asked) -> int:
        """Return how many tokens stand around the text of a row.

        Raises:
            ValueError: a row may not even have those.
        """
        around = self.num_special_tokens_to_add() if asked.special else 0
        if asked.lengths.limit < around:
            raise ValueError(
                f"encoding texts: found max_length={asked.lengths.max_length}, expected room for "
                f"the {around} special tokens of a row at least; allow more, or pass "
                f"add_special_tokens=False"
            )
        return around

    def _fillers(self) -> dict[str, Any]:
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": OUTSIDE,
        }

    def _lengths(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        pad_to_multiple_of: int | None,
    ) -> Lengths:
        lengths = chosen_lengths(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            model_max_length=self.model_max_length,
        )
        if lengths.padding != "do_not_pad" and self.pad_token_id is None:
            raise ValueError(
                "padding texts: found no padding token, expected one; set it first, such as by "
                "tokenizer.pad_token = tokenizer.eos_token"
            )
        return lengths


def is_several(text: Any, *, words: bool) -> bool:
    """Tell a list of texts from one text, which is itself a list where it comes as words."""
    if not isinstance(text, list | tuple):
        return False
    return not words or (bool(text) and isinstance(text[0], list | tuple))
