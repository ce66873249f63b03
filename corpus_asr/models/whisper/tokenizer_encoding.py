"""Text to token ids: labels and prompts, one text or many, cut and padded as asked for.

In: texts. Out: rows of ids between the tokens that a label starts and ends with, and masks. Knows
no ids to text and no audio.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from corpus_asr.models.batch import BatchEncoding
from corpus_asr.models.whisper.tokenizer_rows import (
    Lengths,
    chosen_lengths,
    cut_spans,
    gathered,
    pad_batch,
    pair_limits,
)
from corpus_asr.models.whisper.tokenizer_vocabulary import WhisperVocabulary
from corpus_asr.text.bpe import Pieces

_NO_PIECES = Pieces(ids=[], offsets=[])
_OUTSIDE = (0, 0)
"""Where a token stands that is not of the text."""


class WhisperTextEncoding(WhisperVocabulary):
    """What turns texts into ids."""

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
        found = [
            self._batch(
                *texts,
                words=is_split_into_words,
                special=add_special_tokens,
                lengths=lengths,
                stride=stride,
                overflow=return_overflowing_tokens,
                wanted=wanted,
                side=padding_side or self.padding_side,
                tensors=return_tensors,
            )
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
            ids = self._bpe.encode(text)
            return [*self.prefix_tokens, *ids, self._end] if add_special_tokens else ids
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False
    ) -> list[str]:
        """Return the tokens of a text as the vocabulary spells them.

        Raises:
            ValueError: `text` is no valid Unicode text.
        """
        ids = self.encode(text, pair, add_special_tokens)
        return [token for i in ids if (token := self._bpe.id_to_token(i)) is not None]

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

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for every id of the first sequence and 1 for every id of the second."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or [])

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
    def _end(self) -> int:
        return self.eot if self.eos_token_id is None else self.eos_token_id

    def _fillers(self) -> dict[str, Any]:
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": _OUTSIDE,
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

    def _batch(
        self,
        text: Any,
        pair: Any,
        *,
        words: bool,
        special: bool,
        lengths: Lengths,
        stride: int,
        overflow: bool,
        wanted: dict[str, bool],
        side: str,
        tensors: str | None,
    ) -> BatchEncoding:
        several = _is_several(text, words=words)
        texts = list(text) if several else [text]
        sets = [texts] if pair is None else [texts, list(pair) if several else [pair]]
        if len(sets[-1]) != len(texts):
            raise ValueError(
                f"encoding pairs: found {len(texts)} texts and {len(sets[-1])} second ones, "
                f"expected as many; correct the lists"
            )
        rows: dict[str, list[Any]] = {"input_ids": []}
        rows |= {name: [] for name, asked in wanted.items() if asked}
        sources: list[int] = []
        for number, both in enumerate(zip(*sets, strict=True)):
            pieces = [self._pieces(one, words=words) for one in both]
            for row in self._rows(pieces, special, lengths, stride, overflow):
                sources.append(number)
                for name, values in rows.items():
                    values.append(row[name])
        fillers = self._fillers()
        found = pad_batch(rows, lengths, fillers=fillers, side=side, tensors=None)
        if "length" in found:
            found["length"] = [len(row) for row in found["input_ids"]]
        if overflow:
            found["overflow_to_sample_mapping"] = sources
        if not several and tensors is None and not overflow:
            return BatchEncoding({k: v if k == "length" else v[0] for k, v in found.items()})
        return found.convert_to_tensors(tensors)

    def _rows(
        self,
        pieces: Sequence[Pieces],
        special: bool,
        lengths: Lengths,
        stride: int,
        overflow: bool,
    ) -> Iterable[dict[str, Any]]:
        """Yield the row of a text or pair, and rows of what it was cut down by if asked for."""
        first, second = (*pieces, _NO_PIECES)[:2]
        around = self.num_special_tokens_to_add() if special else 0
        if lengths.limit < around:
            raise ValueError(
                f"encoding texts: found max_length={lengths.max_length}, expected room for the "
                f"{around} special tokens of a row at least; allow more, or pass "
                f"add_special_tokens=False"
            )
        if overflow and len(pieces) > 1:
            raise ValueError(
                "encoding pairs: found return_overflowing_tokens=True, expected it for single "
                "texts only; encode the texts one by one"
            )
        limits = pair_limits(
            len(first.ids), len(second.ids), lengths.limit - around, lengths.truncation
        )
        side = self.truncation_side
        spans, other = (
            cut_spans(len(one.ids), limit, stride=stride, side=side)
            for one, limit in zip((first, second), limits, strict=True)
        )
        for span in spans if overflow else spans[:1]:
            parts = [first.part(*span), second.part(*other[0])]
            yield self._row(parts[: len(pieces)], special)

    def _row(self, parts: Sequence[Pieces], special: bool) -> dict[str, Any]:
        before = self.prefix_tokens if special else []
        after = [self._end] if special else []
        text = [token for part in parts for token in part.ids]
        ids = [*before, *text, *after]
        # The end token counts as part of the text that it follows.
        first = len(before) + (len(parts[0].ids) if len(parts) > 1 else len(text) + len(after))
        return {
            "input_ids": ids,
            "token_type_ids": [0] * first + [1] * (len(ids) - first),
            "attention_mask": [1] * len(ids),
            "special_tokens_mask": [1] * len(before) + [0] * len(text) + [1] * len(after),
            "offset_mapping": [
                *([_OUTSIDE] * len(before)),
                *(offset for part in parts for offset in part.offsets),
                *([_OUTSIDE] * len(after)),
            ],
            "length": len(ids),
        }

    def _pieces(self, text: Any, *, words: bool) -> Pieces:
        if isinstance(text, str) and not words:
            return self._bpe.pieces(text)
        if words and isinstance(text, list | tuple) and all(isinstance(w, str) for w in text):
            return self._bpe.pieces(text)
        expected = "a list of words" if words else "a text"
        raise ValueError(
            f"encoding texts: found {str(text)[:40]!r} of type {type(text).__name__}, expected "
            f"{expected}; correct it or is_split_into_words"
        )


def _is_several(text: Any, *, words: bool) -> bool:
    """Tell a list of texts from one text, which is itself a list where it comes as words."""
    if not isinstance(text, list | tuple):
        return False
    return not words or (bool(text) and isinstance(text[0], list | tuple))
