"""Text to Speech2Text's token ids: rows, and what is cut off them.

In: texts, or ids. Out: rows of ids between the tokens that a label starts and ends with, and masks.
Cuts pairs as the reference's tokenizers in Python do, which differ in this from those in Rust.
Knows no ids to text.
"""

from collections.abc import Sequence
from typing import Any

from corpus_asr.families.speech2text.tokenizer_vocabulary import Speech2TextVocabulary
from corpus_asr.families.tensors import BatchEncoding
from corpus_asr.families.text_encoding import Asked, TextEncoding, is_several
from corpus_asr.families.tokenizer_rows import pad_batch

_OVERFLOW = ("overflowing_tokens", "num_truncated_tokens")


class Speech2TextTextEncoding(Speech2TextVocabulary, TextEncoding):
    """What turns texts into rows of ids."""

    @property
    def _end(self) -> int:
        if self.eos_token_id is None:
            raise ValueError(
                "encoding texts: found no eos_token, expected one to end labels with; set it, or "
                "pass add_special_tokens=False"
            )
        return self.eos_token_id

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for every id of the first label and 1 for what a second text adds to it."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        return [0] * first + [1] * len(token_ids_1 or [])

    def _text_ids(self, text: str) -> list[int]:
        return self.convert_tokens_to_ids(self.tokenize(text))

    def _batch(self, text: Any, pair: Any, asked: Asked) -> BatchEncoding:
        if "offset_mapping" in asked.wanted:
            raise ValueError(
                "encoding texts: found return_offsets_mapping=True, expected it for tokenizers "
                "that keep the text as it is only; leave it out"
            )
        several = _is_batch(text, words=asked.words)
        texts, pairs = list(text) if several else [text], _pairs(text, pair, several=several)
        found = []
        for both in zip(texts, pairs, strict=True):
            one, second = _unpaired(*both, words=asked.words) if several else both
            ids = self._ids(one, words=asked.words)
            second_ids = None if second is None else self._ids(second, words=asked.words)
            found.append(self._row(ids, second_ids, asked))
        names = ["input_ids", *asked.wanted]
        tells_overflow = asked.overflow and asked.tensors is None
        if tells_overflow and any(row["overflowing_tokens"] for row in found):
            names += _OVERFLOW
        rows = {name: [row[name] for row in found] for name in names}
        batch = pad_batch(
            rows, asked.lengths, fillers=self._fillers(), side=asked.side, tensors=None
        )
        if several or asked.tensors is not None:
            return batch.convert_to_tensors(asked.tensors)
        single = BatchEncoding({name: values[0] for name, values in batch.items()})
        if "length" in single:
            single["length"] = len(single["input_ids"])
        return single

    def _row(self, ids: list[int], second: list[int] | None, asked: Asked) -> dict[str, Any]:
        lengths, around = asked.lengths, self._special_tokens_around(asked)
        excess = max(0, len(ids) + len(second or []) + around - lengths.limit)
        overflowing: list[int] = []
        if excess:
            ids, second, overflowing = self.truncate_sequences(
                ids, second, excess, lengths.truncation, asked.stride
            )
        row = [*ids, *(second or [])]
        types, mask = [0] * len(row), [0] * len(row)
        if asked.special:
            types = self.create_token_type_ids_from_sequences(ids, second)
            mask = self.get_special_tokens_mask(ids, second)
            row = self.build_inputs_with_special_tokens(ids, second)
        return {
            "input_ids": row,
            "token_type_ids": types,
            "attention_mask": [1] * len(row),
            "special_tokens_mask": mask,
            "length": len(row),
            "overflowing_tokens": overflowing,
            "num_truncated_tokens": excess,
        }

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Cut ids, or a pair of such, at the side that the tokenizer is set to.

        Args:
            ids: of a text.
            pair_ids: of a second one.
            num_tokens_to_remove: how many are cut off.
            truncation_strategy: `longest_first`, `only_first` or `only_second`.
            stride: how many of the kept ids next to the cut are returned with those cut off.

        Returns:
            Both, and what was cut off: nothing where a pair is cut `longest_first`.
        """
        if num_tokens_to_remove <= 0:
            return ids, pair_ids, []
        if truncation_strategy == "only_second":
            if not pair_ids:
                return ids, pair_ids, []
            second, overflowing = self._cut(pair_ids, num_tokens_to_remove, stride)
            return ids, second, overflowing
        if truncation_strategy == "only_first" or pair_ids is None:
            first, overflowing = self._cut(ids, num_tokens_to_remove, stride)
            return first, pair_ids, overflowing
        difference = min(abs(len(pair_ids) - len(ids)), num_tokens_to_remove)
        half = (num_tokens_to_remove - difference) // 2
        of_first = difference + half if len(ids) > len(pair_ids) else half
        first, _ = self._cut(ids, of_first, 0)
        second, _ = self._cut(pair_ids, num_tokens_to_remove - of_first, 0)
        return first, second, []

    def _cut(self, ids: list[int], count: int, stride: int) -> tuple[list[int], list[int]]:
        seen = min(len(ids), stride + count)
        if self.truncation_side == "left":
            return ids[count:], ids[:seen]
        return ids[: max(0, len(ids) - count)], ids[len(ids) - seen :]

    def _ids(self, text: Any, *, words: bool) -> list[int]:
        if isinstance(text, str) and not words:
            return self._text_ids(text)
        if isinstance(text, list | tuple):
            if text and all(isinstance(one, int) for one in text):
                return list(text)
            if words and all(isinstance(word, str) for word in text):
                return [token for word in text for token in self._text_ids(word)]
        expected = "a list of words" if words else "a text or ids"
        raise ValueError(
            f"encoding texts: found {str(text)[:40]!r} of type {type(text).__name__}, expected "
            f"{expected}; correct it or is_split_into_words"
        )


def _is_batch(text: Any, *, words: bool) -> bool:
    """Tell several texts from one, which is itself a list where it comes as words or ids."""
    of_ids = isinstance(text, list | tuple) and bool(text) and isinstance(text[0], int)
    return is_several(text, words=words) and not of_ids


def _pairs(text: Any, pair: Any, *, several: bool) -> Sequence[Any]:
    if not several:
        return [pair]
    if pair is None:
        return [None] * len(text)
    if isinstance(pair, str) or len(pair) != len(text):
        found = 1 if isinstance(pair, str) else len(pair)
        raise ValueError(
            f"encoding pairs: found {len(text)} texts and {found} second ones, expected as many; "
            f"correct the lists"
        )
    return list(pair)


def _unpaired(text: Any, pair: Any, *, words: bool) -> tuple[Any, Any]:
    """Take apart a text of a batch that comes together with its second one."""
    together = isinstance(text, tuple) or (isinstance(text, list) and not words)
    if pair is None and together and len(text) == 2 and not isinstance(text[0], int):
        return text[0], text[1]
    return text, pair
