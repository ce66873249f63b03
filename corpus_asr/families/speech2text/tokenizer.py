"""Speech2Text's tokenizer: converts between text and IDs, with target languages.

Method and parameter names and defaults are those of `transformers.Speech2TextTokenizer`, version
5.23, and of its documents since 4.34; rows are truncated and padded as by its tokenizers in Rust.
IDs are those of vocab.json, not those of the SentencePiece model.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken

from corpus_asr.errors import CheckpointError
from corpus_asr.families.library_tokenizer import (
    ADDED_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
    add_saved_tokens,
)
from corpus_asr.families.saved_files import read_saved_bytes, vocabulary_paths, write_json_object
from corpus_asr.families.speech2text.vocabulary import BLANK, piece_tokenizer, read_vocabulary
from corpus_asr.families.tokenizer import ROLES, PretrainedTokenizer
from corpus_asr.families.truncation_padding import NO_LIMIT, decode_each

SPM_NAME = "sentencepiece.bpe.model"

LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mustc": ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")}
)
"""Target languages by the name of the training data of multilingual models.

Source: MuST-C; transformers 5.23, tokenization_speech_to_text.py."""


class Speech2TextTokenizer(PretrainedTokenizer):
    """SentencePiece's unigrams with the IDs of vocab.json, control tokens and target languages.

    Args:
        do_upper_case: convert decoded text to upper case.
        do_lower_case: convert text to lower case before encoding, except control tokens in it. The
            reference documents this and did it until version 4; 5.23 no longer does.
        tgt_lang: code of the labels' language; None for the first one.
        lang_codes: set of target languages: `mustc`, or None for a single language.
        sp_model_kwargs: empty or None: pieces are always the most probable ones.

    Raises:
        CheckpointError: a file is missing or broken, or the vocabulary lacks the unknown token.
        ValueError: the language does not exist, or a setting has an invalid value.
    """

    do_upper_case: bool
    do_lower_case: bool
    tgt_lang: str | None
    lang_codes: str | None
    sp_model_kwargs: dict[str, Any] | None
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
        self._set_up(Path(vocab_file), Path(spm_file), settings)

    def _set_up(
        self,
        vocab_file: Path,
        spm_file: Path,
        settings: dict[str, Any],
        saved_in: Path | None = None,
    ) -> None:
        vocabulary = read_vocabulary(vocab_file)
        if settings["unk_token"] is None or settings["unk_token"] not in vocabulary:
            raise CheckpointError(
                f"loading a Speech2Text tokenizer: found no {settings['unk_token']} among "
                f"{len(vocabulary)} tokens of vocab.json, expected that unknown token; fetch the "
                "checkpoint again, or pass unk_token"
            )
        try:
            self._model = read_saved_bytes(spm_file)
            self._tokenizer = piece_tokenizer(
                self._model,
                vocabulary,
                unknown=settings["unk_token"],
                lower=settings["do_lower_case"],
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"reading {spm_file}: found no SentencePiece model ({error}); fetch the "
                f"checkpoint's {spm_file.name} again"
            ) from error
        if saved_in is not None:
            add_saved_tokens(self._tokenizer, saved_in)
        codes = LANGUAGES.get(settings["lang_codes"], ())
        tokens = {code: self._token_id(f"<lang:{code}>") for code in codes}
        unknown_id = vocabulary[settings["unk_token"]]
        self.lang_code_to_id = {c: unknown_id if i is None else i for c, i in tokens.items()}
        additional_tokens = settings.pop("additional_special_tokens") or ()
        language = settings.pop("tgt_lang")
        self._take_settings(settings)
        # The model may lack the first language: labels must set another one.
        self.__dict__["tgt_lang"] = next(iter(codes), None)
        if codes and language is not None:
            self.tgt_lang = language
        # Control tokens are added tokens: texts are split at them before the vocabulary's.
        roles = [token for role in ROLES if (token := settings[role]) is not None]
        languages = [f"<lang:{code}>" for code in codes]
        self.add_tokens([*roles, *languages, *additional_tokens], special_tokens=True)

    def _check_setting(self, name: str, value: Any) -> None:
        super()._check_setting(name, value)
        if name == "lang_codes" and value is not None and value not in LANGUAGES:
            raise ValueError(
                f"setting up a tokenizer: found lang_codes={value!r}, expected one of "
                f"{', '.join(LANGUAGES)}, or None; correct it"
            )
        if name == "sp_model_kwargs" and value:
            raise ValueError(
                f"setting up a tokenizer: found sp_model_kwargs={value!r}, expected none: pieces "
                "are not sampled; pass sp_model_kwargs={}"
            )
        if name == "tgt_lang":
            codes = [c for c, i in self.lang_code_to_id.items() if i != self.unk_token_id]
            if value not in codes:
                expected = f"one of {', '.join(codes)}" if codes else "none: this model writes one"
                raise ValueError(
                    f"choosing the target language {value!r}: expected {expected}; correct it"
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, tgt_lang={self.tgt_lang!r})"

    @property
    def prefix_tokens(self) -> list[int]:
        """IDs at the start of labels: the target language, if there are several."""
        return [] if self.tgt_lang is None else [self.lang_code_to_id[self.tgt_lang]]

    @property
    def _end(self) -> int:
        if self.eos_token_id is None:
            raise ValueError(
                "encoding texts: found no eos_token, expected one to end labels; set it, or pass "
                "add_special_tokens=False"
            )
        return self.eos_token_id

    def _unknown(self) -> str | None:
        return self.unk_token

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
        text = "".join(pieces).replace(BLANK, " ").lstrip(" ")
        return text.upper() if self.do_upper_case else text

    # Files

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        settings = self._defaults() | self._saved_settings(folder, given)
        self._set_up(folder / VOCAB_NAME, folder / SPM_NAME, settings, saved_in=folder)

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        added = self.added_tokens_decoder
        self._save_settings(
            folder,
            special_tokens=self.additional_special_tokens,
            added_tokens_decoder={str(i): token.__getstate__() for i, token in added.items()},
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
        write_json_object(vocab, self._tokenizer.get_vocab(with_added_tokens=False))
        model.write_bytes(self._model)
        return str(vocab), str(model)
