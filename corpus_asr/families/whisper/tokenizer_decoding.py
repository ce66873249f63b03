"""Token ids to text: single sequences and batches, with times, and normalised.

In: ids as a model or a tokenizer wrote them. Out: text, with timestamps written into it or as
offsets beside it. Knows no prompts and no audio.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from corpus_asr.families.text_decoding import TextDecoding, id_lists
from corpus_asr.families.whisper.timestamps import (
    TimedTokens,
    split_timestamps,
    timed_stretches,
    without_timestamps,
    written_timestamps,
)
from corpus_asr.families.whisper.tokenizer_vocabulary import WhisperVocabulary
from corpus_asr.text.normalize import BasicTextNormalizer, EnglishTextNormalizer
from corpus_asr.units import TIMESTAMP_STEP_S


class WhisperTextDecoding(TextDecoding, WhisperVocabulary):
    """What turns ids into text."""

    english_spelling_normalizer: Mapping[str, str] | None
    """American spellings by British ones, of the checkpoint's normalizer.json; None where it has
    none and Whisper's own list is taken."""

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_offsets: bool = False,
        time_precision: float = TIMESTAMP_STEP_S,
        decode_with_timestamps: bool = False,
        normalize: bool = False,
        basic_normalize: bool = False,
        remove_diacritics: bool = False,
    ) -> Any:
        """Turn one sequence of ids into text, or several into a list of texts.

        A character that the end of a sequence cuts short becomes U+FFFD.

        Args:
            token_ids: one id, or a list, array or tensor of one dimension, or of two for several.
            skip_special_tokens: leave control tokens out, and the previous text before the start
                token with them.
            clean_up_tokenization_spaces: remove blanks before punctuation; None for what the
                tokenizer was set to, which is not to. It also removes blanks that were meant.
            output_offsets: return the text together with its stretches and their times.
            time_precision: seconds per timestamp step.
            decode_with_timestamps: write timestamps as `<|1.08|>`, later windows continuing the
                times of earlier ones; otherwise they are left out.
            normalize: apply the English normaliser; no effect together with timestamps.
            basic_normalize: apply the normaliser for any language instead.
            remove_diacritics: let `basic_normalize` turn letters into plain ones.

        Returns:
            A text, or `{"text": ..., "offsets": [{"text": ..., "timestamp": (start_s, end_s)}]}`
            where offsets are asked for; a list of these for several sequences.

        Raises:
            ValueError: an id is negative, such as a label's padding.
            TypeError: these are no ids.
        """
        found = id_lists(token_ids)
        options: dict[str, Any] = {
            "skip_special_tokens": skip_special_tokens,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "output_offsets": output_offsets,
            "time_precision": time_precision,
            "decode_with_timestamps": decode_with_timestamps,
            "normalize": normalize,
            "basic_normalize": basic_normalize,
            "remove_diacritics": remove_diacritics,
        }
        if found and isinstance(found[0], list):
            return [self.decode(row, **options) for row in found]
        kept = self.without_previous(found) if skip_special_tokens else found
        clean = clean_up_tokenization_spaces
        if clean is None:
            clean = self.clean_up_tokenization_spaces
        if decode_with_timestamps:
            text = self._with_timestamps(kept, time_precision, skip_special_tokens, clean)
        else:
            text = self._plain_text(kept, skip_special_tokens, clean)
            if normalize:
                text = self.normalize(text)
            elif basic_normalize:
                text = self.basic_normalize(text, remove_diacritics)
            text = without_timestamps(text)
        if output_offsets:
            return {"text": text, "offsets": self._offsets(found, time_precision)}
        return text

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return what was said: control tokens and timestamps left out, wherever they stand."""
        return self._bpe.decode([i for i in token_ids if i < self.eot])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens as the vocabulary spells them to text."""
        return self._bpe.join(tokens)

    def split_timestamps(self, token_ids: Iterable[int]) -> tuple[TimedTokens, ...]:
        """Cut what the decoder wrote for one window at its timestamps, losing no text token."""
        return split_timestamps(token_ids, end=self.eot, timestamp_begin=self.timestamp_begin)

    def normalize(self, text: str) -> str:
        """Normalise English text, with the checkpoint's list of spellings if it has one."""
        return EnglishTextNormalizer(self.english_spelling_normalizer)(text)

    @staticmethod
    def basic_normalize(text: str, remove_diacritics: bool = False) -> str:
        """Normalise text of any language."""
        return BasicTextNormalizer(remove_diacritics)(text)

    def _plain_text(self, ids: list[int], skip_special_tokens: bool, clean: bool) -> str:
        text = self._bpe.decode(ids, skip_special_tokens=skip_special_tokens, errors=self.errors)
        return self.clean_up_tokenization(text) if clean else text

    def _with_timestamps(
        self, ids: list[int], time_precision: float, skip_special_tokens: bool, clean: bool
    ) -> str:
        pieces = written_timestamps(
            ids, timestamp_begin=self.timestamp_begin, time_precision=time_precision
        )
        return "".join(
            piece if isinstance(piece, str) else self._plain_text(piece, skip_special_tokens, clean)
            for piece in pieces
        )

    def _offsets(self, ids: list[int], time_precision: float) -> list[dict[str, Any]]:
        clean = self.clean_up_tokenization_spaces
        return [
            {
                "text": without_timestamps(self._plain_text(list(stretch), False, clean)),
                "timestamp": times_s,
            }
            for stretch, times_s in timed_stretches(
                ids, timestamp_begin=self.timestamp_begin, time_precision=time_precision
            )
        ]

    def without_previous(self, ids: list[int]) -> list[int]:
        """Drop the previous text: everything before the start token, or all without one."""
        if not ids or ids[0] != self.start_of_prev:
            return ids
        return ids[ids.index(self.sot) :] if self.sot in ids else []
