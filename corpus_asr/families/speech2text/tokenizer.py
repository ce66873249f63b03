"""Speech2Text's tokenizer: converts between text and IDs, with target languages.

Method and parameter names, defaults and results are those of `transformers.Speech2TextTokenizer`,
version 5.23, and of its documents since 4.34. IDs are those of vocab.json, not those of the
SentencePiece model.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import (
    optional_object,
    read_json_object,
    vocabulary_paths,
    write_json_object,
)
from corpus_asr.families.speech2text.vocabulary import (
    AddedTokens,
    SentencePieces,
    described_token,
    token_flags,
)
from corpus_asr.families.tensors import BatchEncoding
from corpus_asr.families.tokenizer import (
    ADDED_NAME,
    OTHER_SPECIAL,
    ROLES,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
    PretrainedTokenizer,
    added_token,
)
from corpus_asr.families.truncation_padding import NO_LIMIT, EncodeOptions, decode_each, text_pairs

SPM_NAME = "sentencepiece.bpe.model"

LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mustc": ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")}
)
"""Target languages by the name of the training data of multilingual models.

Source: MuST-C; transformers 5.23, tokenization_speech_to_text.py."""

_OVERFLOW = ("overflowing_tokens", "num_truncated_tokens")


class Speech2TextTokenizer(PretrainedTokenizer):
    """SentencePiece with the IDs of vocab.json, control tokens and target languages.

    Args:
        do_upper_case: convert decoded text to upper case.
        do_lower_case: convert text to lower case before encoding, except control tokens in it. The
            reference documents this and did it until version 4; 5.23 no longer does.
        tgt_lang: code of the labels' language; None for the first one.
        lang_codes: set of target languages: `mustc`, or None for a single language.
        sp_model_kwargs: keywords of `sentencepiece.SentencePieceProcessor`.

    Raises:
        CheckpointError: a file is missing or broken, or the vocabulary lacks the unknown token.
        ValueError: the language does not exist, or a setting has an invalid value.
        TypeError: `sp_model_kwargs` has an unknown keyword.
    """

    is_fast = False
    backend = "sentencepiece"
    do_upper_case: bool
    do_lower_case: bool
    lang_codes: str | None
    sp_model_kwargs: dict[str, Any]
    encoder: dict[str, int]
    """IDs by piece, as in vocab.json."""
    decoder: dict[int, str]
    """Pieces by id."""
    lang_code_to_id: dict[str, int]
    """Token of each target language; empty for a single-language model."""

    def __init__(
        self,
        vocab_file: str | PathLike[str],
        spm_file: str | PathLike[str],
        bos_token: str | None = "<s>",
        eos_token: str | None = "</s>",
        pad_token: str | None = "<pad>",
        unk_token: str | None = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | None = None,
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        sp_model_kwargs: dict[str, bool | int | float | str | None] | None = None,
        *,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int = NO_LIMIT,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        arguments = locals()
        settings = {name: arguments[name] for name in self._defaults()}
        self._set_up(_vocabulary(Path(vocab_file)), Path(spm_file), settings, {})

    def _set_up(
        self,
        vocabulary: dict[str, int],
        spm_file: Path,
        settings: dict[str, Any],
        saved: Mapping[int, AddedToken],
    ) -> None:
        if settings["unk_token"] is None or settings["unk_token"] not in vocabulary:
            raise CheckpointError(
                f"loading a Speech2Text tokenizer: found no {settings['unk_token']} among "
                f"{len(vocabulary)} tokens of vocab.json, expected what stands for unknown ones; "
                f"fetch the checkpoint again or give unk_token"
            )
        self.sp_model_kwargs = dict(settings.pop("sp_model_kwargs") or {})
        additional_tokens = settings.pop("additional_special_tokens") or ()
        language = settings.pop("tgt_lang")
        self._pieces = SentencePieces.from_file(spm_file, self.sp_model_kwargs)
        self.encoder = vocabulary
        self.decoder = {token_id: piece for piece, token_id in vocabulary.items()}
        self._added = AddedTokens()
        self._others: list[str] = []
        for token_id, token in saved.items():
            self._added.put(token_id, token)
        self._take_settings(settings)
        self._set_languages(language)
        # Control tokens are added tokens: texts are split at them before SentencePiece.
        roles = [token for role in ROLES if (token := settings[role]) is not None]
        self.add_tokens([*roles, *self.lang_tokens, *additional_tokens], special_tokens=True)

    def _check_setting(self, name: str, value: Any) -> None:
        super()._check_setting(name, value)
        if name == "lang_codes" and value is not None and value not in LANGUAGES:
            raise ValueError(
                f"setting up a tokenizer: found lang_codes={value!r}, expected one of "
                f"{', '.join(LANGUAGES)}, or None; correct it"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, tgt_lang={self.tgt_lang!r})"

    # The vocabulary

    def __len__(self) -> int:
        return len(self.get_vocab())

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added; `len()` counts all."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Return the ID of every token."""
        return {**self.encoder, **self._added.ids}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Control tokens and added ones by ID, with their flags."""
        return dict(sorted(self._added.tokens.items()))

    @property
    def all_special_tokens(self) -> list[str]:
        """The control tokens: those with a role first."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._others]))

    @property
    def all_special_ids(self) -> list[int]:
        """IDs of the control tokens."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    @property
    def additional_special_tokens(self) -> list[str]:
        """The control tokens without a named role, including those of languages."""
        return list(self._others)

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Iterable[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens after the last ID; return the number of new ones.

        An existing token keeps its ID and is no longer split. A model needs a row per token: resize
        its embeddings to `len()` of this tokenizer afterwards.
        """
        if isinstance(new_tokens, str | AddedToken):
            new_tokens = [new_tokens]
        count = 0
        for new in new_tokens:
            named = set(self.special_tokens_map.values())
            token = added_token(new, special=special_tokens or str(new) in named)
            content = token.content
            if special_tokens and content not in {*named, *self._others}:
                self._others.append(content)
            # An existing token keeps its ID: the model has a row for it.
            if not content or content in self._added.ids:
                continue
            if self.do_lower_case and token.normalized and not token.special:
                content = content.lower()
                token = AddedToken(**{**token_flags(token), "content": content})
            token_id = self.encoder.get(content)
            self._added.put(len(self) if token_id is None else token_id, token)
            count += token_id is None
        return count

    def _token_id(self, token: str) -> int | None:
        token_id = self._added.ids.get(token)
        return self.encoder.get(token) if token_id is None else token_id

    def _id_token(self, token_id: int) -> str | None:
        token = self._added.tokens.get(token_id)
        return self.decoder.get(token_id) if token is None else token.content

    def _unknown(self) -> str | None:
        return self.unk_token

    # Target languages

    @property
    def langs(self) -> list[str]:
        """The codes of the target languages."""
        return list(self.lang_code_to_id)

    @property
    def lang_tokens(self) -> list[str]:
        """The tokens of the target languages."""
        return [f"<lang:{code}>" for code in self.lang_code_to_id]

    @property
    def tgt_lang(self) -> str | None:
        """Code of the labels' language; None for a single-language model."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, new_tgt_lang: str) -> None:
        self.set_tgt_lang_special_tokens(new_tgt_lang)
        self._tgt_lang: str | None = new_tgt_lang

    def set_tgt_lang_special_tokens(self, tgt_lang: str) -> None:
        """Set the language token at the start of labels."""
        unknown = self._pieces.unknown_id
        codes = [code for code, token in self.lang_code_to_id.items() if token != unknown]
        if tgt_lang not in codes:
            expected = f"one of {', '.join(codes)}" if codes else "none: this model writes one"
            raise ValueError(
                f"choosing the target language {tgt_lang!r}: expected {expected}; correct it"
            )
        self.prefix_tokens = [self.lang_code_to_id[tgt_lang]]

    @property
    def prefix_tokens(self) -> list[int]:
        """IDs at the start of labels: the target language, if there are several."""
        return list(self._prefix)

    @prefix_tokens.setter
    def prefix_tokens(self, token_ids: list[int]) -> None:
        self._prefix = list(token_ids)

    def _set_languages(self, tgt_lang: str | None) -> None:
        codes = LANGUAGES[self.lang_codes] if self.lang_codes is not None else ()
        # As in the reference, these are the SentencePiece model's own IDs, which equal vocab.json's
        # in every published checkpoint.
        self.lang_code_to_id = {code: self._pieces.piece_id(f"<lang:{code}>") for code in codes}
        if tgt_lang is not None and codes:
            self.tgt_lang = tgt_lang
            return
        # The model may lack the first language: labels must set another one.
        self.prefix_tokens = [self.lang_code_to_id[code] for code in codes[:1]]
        self._tgt_lang = codes[0] if codes else None

    # Texts to IDs

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text as the vocabulary spells them."""
        if self.do_lower_case:
            text = self._added.lower(text)
        tokens: list[str] = []
        for part in self._added.split(text):
            tokens += [part] if part in self._added.ids else self._pieces.pieces(part)
        return tokens

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for every ID of the first label and 1 for those added by a second text."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        return [0] * first + [1] * len(token_ids_1 or [])

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self.convert_tokens_to_ids(self.tokenize(text))
        return ids

    @property
    def _end(self) -> int:
        if self.eos_token_id is None:
            raise ValueError(
                "encoding texts: found no eos_token, expected one to end labels with; set it, or "
                "pass add_special_tokens=False"
            )
        return self.eos_token_id

    def _batch(self, text: Any, pair: Any, options: EncodeOptions) -> BatchEncoding:
        if "offset_mapping" in options.outputs:
            raise ValueError(
                "encoding texts: found return_offsets_mapping=True, expected it for tokenizers "
                "that keep the text as it is only; leave it out"
            )
        several, pairs = text_pairs(text, pair, words=options.words)
        rows = [self._cut_row(*both, options) for both in pairs]
        batch = self._padded(rows, options)
        is_cut = any(row["overflowing_tokens"] for row in rows)
        if options.overflow and options.tensors is None and is_cut:
            batch |= {name: [row[name] for row in rows] for name in _OVERFLOW}
        if several or options.tensors is not None:
            return batch.convert_to_tensors(options.tensors)
        single = BatchEncoding({name: values[0] for name, values in batch.items()})
        if "length" in single:
            single["length"] = len(single["input_ids"])
        return single

    def _cut_row(self, text: Any, pair: Any, options: EncodeOptions) -> dict[str, Any]:
        ids = self._ids(text, words=options.words)
        second = None if pair is None else self._ids(pair, words=options.words)
        excess = max(0, len(ids) + len(second or []) - self._text_limit(options))
        overflowing: list[int] = []
        if excess:
            ids, second, overflowing = self.truncate_sequences(
                ids, second, excess, options.lengths.truncation, options.stride
            )
        row = [*ids, *(second or [])]
        mask = types = [0] * len(row)
        if options.special:
            row = self.build_inputs_with_special_tokens(ids, second)
            mask = self.get_special_tokens_mask(ids, second)
            types = self.create_token_type_ids_from_sequences(ids, second)
        return {
            "input_ids": row,
            "attention_mask": [1] * len(row),
            "special_tokens_mask": mask,
            "length": len(row),
            "token_type_ids": types,
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
        """Truncate IDs, or a pair of ID lists, on the tokenizer's truncation side.

        Returns both and the removed IDs with the `stride` kept ones next to them; none are returned
        if a pair is truncated `longest_first`. The reference's tokenizers in Python, which this
        follows, treat pairs differently from those in Rust.
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
        # The longer text is first cut to the length of the other, then both equally.
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
            # IDs instead of texts, as in the reference's tokenizers in Python.
            if text and all(isinstance(token, int) for token in text):
                return list(text)
            if words and all(isinstance(word, str) for word in text):
                return [token for word in text for token in self._text_ids(word)]
        expected = "a list of words" if words else "a text or ids"
        raise ValueError(
            f"encoding texts: found {str(text)[:40]!r} of type {type(text).__name__}, expected "
            f"{expected}; correct it or is_split_into_words"
        )

    # IDs to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Decode one sequence of IDs to text, or several to a list of texts.

        An ID outside the vocabulary gives the unknown token; a non-integer raises TypeError.
        """

        def decode_one(ids: list[int]) -> str:
            tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
            text = self.convert_tokens_to_string([token for token in tokens if token is not None])
            clean = self._clean(clean_up_tokenization_spaces)
            return self.clean_up_tokenization(text) if clean else text

        return decode_each(token_ids, decode_one)

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return the text without any control tokens."""
        text: str = self.decode(list(token_ids), skip_special_tokens=True)
        return text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text, with spaces around control tokens."""
        special = set(self.all_special_tokens)
        text, pending = "", list[str]()
        for token in tokens:
            if token in special:
                text += f"{self._joined(pending)}{token} "
                pending = []
            else:
                pending.append(token)
        return (text + self._joined(pending)).strip()

    def _joined(self, pieces: list[str]) -> str:
        text = self._pieces.join(pieces)
        return text.upper() if self.do_upper_case else text

    # Files

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        saved, other_tokens = _saved_tokens(folder)
        more = given.pop("additional_special_tokens", ())
        settings = self._defaults() | self._saved_settings(folder, given)
        settings["additional_special_tokens"] = (*other_tokens, *more)
        self._set_up(_vocabulary(folder / VOCAB_NAME), folder / SPM_NAME, settings, saved)

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        added = self.added_tokens_decoder
        self._save_settings(
            folder,
            special_tokens=self.additional_special_tokens,
            added_tokens_decoder={str(i): token_flags(token) for i, token in added.items()},
            clean_up_tokenization_spaces=self.clean_up_tokenization_spaces,
        )
        beside = {token.content: i for i, token in added.items() if i >= self.vocab_size}
        write_json_object(folder / ADDED_NAME, beside)
        vocabulary = self.save_vocabulary(folder, filename_prefix)
        names = (SETTINGS_NAME, SPECIAL_NAME, ADDED_NAME)
        return (*(str(folder / name) for name in names), *vocabulary)

    def save_vocabulary(
        self, save_directory: str | PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str]:
        """Write vocab.json and the SentencePiece model into a folder; returns their paths."""
        vocab, model = vocabulary_paths(save_directory, filename_prefix, VOCAB_NAME, SPM_NAME)
        write_json_object(vocab, self.encoder)
        model.write_bytes(self._pieces.model)
        return str(vocab), str(model)


def _vocabulary(path: Path) -> dict[str, int]:
    content = read_json_object(path)
    ids = content.values()
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(content):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected tokens and their ids, each once; fetch "
            f"the checkpoint again"
        )
    # In the order of the IDs, as in the reference; files are written in another order.
    return dict(sorted(content.items(), key=lambda pair: pair[1]))


def _saved_tokens(folder: Path) -> tuple[dict[int, AddedToken], list[AddedToken]]:
    # Tokens by ID, if files have IDs, and control tokens without a role.
    settings = optional_object(folder / SETTINGS_NAME)
    special = optional_object(folder / SPECIAL_NAME)
    try:
        # Either file may list them, under the older or the newer key.
        other_tokens = [
            described_token(entry)
            for content in (settings, special)
            for name in OTHER_SPECIAL
            for entry in content.get(name) or []
        ]
        if "added_tokens_decoder" in settings:
            described = settings["added_tokens_decoder"].items()
            return {int(i): described_token(flags) for i, flags in described}, other_tokens
        special_texts = {token.content for token in other_tokens}
        ids = {
            int(i): described_token({"content": token, "special": token in special_texts})
            for token, i in optional_object(folder / ADDED_NAME).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"reading the added tokens of {folder}: found what cannot be used ({error}), expected "
            f"tokens and their ids; fetch the checkpoint's tokenizer files again"
        ) from error
    return ids, other_tokens
