"""Text to Whisper's token ids: where each token stands, and rows of what was cut off.

In: texts. Out: rows of ids between the tokens that a label starts and ends with, and masks. Knows
no ids to text and no audio.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from corpus_asr.families.tensors import BatchEncoding
from corpus_asr.families.text_encoding import OUTSIDE, Asked, TextEncoding, is_several
from corpus_asr.families.tokenizer_rows import cut_spans, pad_batch, pair_limits
from corpus_asr.families.whisper.tokenizer_vocabulary import WhisperVocabulary
from corpus_asr.text.bpe import Pieces

_NO_PIECES = Pieces(ids=[], offsets=[])


class WhisperTextEncoding(WhisperVocabulary, TextEncoding):
    """What turns texts into ids."""

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False
    ) -> list[str]:
        """Return the tokens of a text as the vocabulary spells them.

        Raises:
            ValueError: `text` is no valid Unicode text.
        """
        ids = self.encode(text, pair, add_special_tokens)
        return [token for i in ids if (token := self._bpe.id_to_token(i)) is not None]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for every id of the first sequence and 1 for every id of the second."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or [])

    @property
    def _end(self) -> int:
        return self.eot if self.eos_token_id is None else self.eos_token_id

    def _text_ids(self, text: str) -> list[int]:
        return self._bpe.encode(text)

    def _batch(self, text: Any, pair: Any, asked: Asked) -> BatchEncoding:
        several = is_several(text, words=asked.words)
        texts = list(text) if several else [text]
        sets = [texts] if pair is None else [texts, list(pair) if several else [pair]]
        if len(sets[-1]) != len(texts):
            raise ValueError(
                f"encoding pairs: found {len(texts)} texts and {len(sets[-1])} second ones, "
                f"expected as many; correct the lists"
            )
        rows: dict[str, list[Any]] = {"input_ids": []}
        rows |= {name: [] for name in asked.wanted}
        sources: list[int] = []
        for number, both in enumerate(zip(*sets, strict=True)):
            pieces = [self._pieces(one, words=asked.words) for one in both]
            for row in self._rows(pieces, asked):
                sources.append(number)
                for name, values in rows.items():
                    values.append(row[name])
        fillers = self._fillers()
        found = pad_batch(rows, asked.lengths, fillers=fillers, side=asked.side, tensors=None)
        if "length" in found:
            found["length"] = [len(row) for row in found["input_ids"]]
        if asked.overflow:
            found["overflow_to_sample_mapping"] = sources
        if not several and asked.tensors is None and not asked.overflow:
            return BatchEncoding({k: v if k == "length" else v[0] for k, v in found.items()})
        return found.convert_to_tensors(asked.tensors)

    def _rows(self, pieces: Sequence[Pieces], asked: Asked) -> Iterable[dict[str, Any]]:
        """Yield the row of a text or pair, and rows of what it was cut down by if asked for."""
        first, second = (*pieces, _NO_PIECES)[:2]
        lengths, around = asked.lengths, self._special_tokens_around(asked)
        if asked.overflow and len(pieces) > 1:
            raise ValueError(
                "encoding pairs: found return_overflowing_tokens=True, expected it for single "
                "texts only; encode the texts one by one"
            )
        limits = pair_limits(
            len(first.ids), len(second.ids), lengths.limit - around, lengths.truncation
        )
        side = self.truncation_side
        spans, other = (
            cut_spans(len(one.ids), limit, stride=asked.stride, side=side)
            for one, limit in zip((first, second), limits, strict=True)
        )
        for span in spans if asked.overflow else spans[:1]:
            parts = [first.part(*span), second.part(*other[0])]
            yield self._row(parts[: len(pieces)], asked.special)

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
                *([OUTSIDE] * len(before)),
                *(offset for part in parts for offset in part.offsets),
                *([OUTSIDE] * len(after)),
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
