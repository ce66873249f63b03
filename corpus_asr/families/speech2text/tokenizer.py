"""Speech2Text's tokenizer: text to ids and back, with target languages.

In: a checkpoint, or its vocab.json and SentencePiece model. Out: ids for labels, text for what the
decoder wrote. Method and parameter names, defaults and results are those of
`transformers.Speech2TextTokenizer`, version 5.23, and of its documents since 4.34. Knows no audio.
Its parts lie beside it: settings, the vocabulary, and encoding.
"""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.errors import CheckpointError
from corpus_asr.families.config_file import read_json_object, write_json_object
from corpus_asr.families.pretrained_tokenizer import PretrainedTokenizer, vocabulary_paths
from corpus_asr.families.speech2text.tokenizer_encoding import Speech2TextTextEncoding
from corpus_asr.families.speech2text.tokenizer_settings import TokenizerSettings, saved_tokens
from corpus_asr.families.text_decoding import TextDecoding, id_lists
from corpus_asr.families.token_settings import NO_LIMIT, TokenSettings
from corpus_asr.text.added_tokens import (
    ADDED_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
    AddedToken,
    token_flags,
)
from corpus_asr.text.sentencepiece import SentencePieces

SPM_NAME = "sentencepiece.bpe.model"


class Speech2TextTokenizer(Speech2TextTextEncoding, TextDecoding, PretrainedTokenizer):
    """SentencePiece with the ids of vocab.json, control tokens and target languages.

    Args:
        vocab_file: vocab.json.
        spm_file: the SentencePiece model.
        bos_token: what starts sequences; labels do not hold it.
        eos_token: what labels end with.
        pad_token: what fills rows up.
        unk_token: what stands for tokens that the vocabulary lacks.
        do_upper_case: turn text into upper case when decoding.
        do_lower_case: turn text into lower case before encoding, but for control tokens written
            out in it. The reference documents this and did it until version 4; 5.23 no longer does.
        tgt_lang: code of the language that labels are in; None for the first one.
        lang_codes: which target languages there are: `mustc`, or None for one language alone.
        additional_special_tokens: control tokens beside these.
        sp_model_kwargs: keywords of `sentencepiece.SentencePieceProcessor`.
        padding_side: `right` or `left`.
        truncation_side: `right` or `left`.
        model_max_length: tokens per text that are kept where no length is given.
        clean_up_tokenization_spaces: remove blanks before punctuation when decoding.

    Raises:
        CheckpointError: a file is missing or broken, or the vocabulary lacks the unknown token.
        ValueError: there is no such language, or a setting has a value that cannot be used.
        TypeError: `sp_model_kwargs` are not known.
    """

    _settings_class: ClassVar[type[TokenSettings]] = TokenizerSettings

    def __init__(
        self,
        vocab_file: str | PathLike[str],
        spm_file: str | PathLike[str],
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | None = None,
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        *,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int = NO_LIMIT,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        settings = TokenizerSettings(
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            do_upper_case=do_upper_case,
            do_lower_case=do_lower_case,
            tgt_lang=tgt_lang,
            lang_codes=lang_codes,
            additional_special_tokens=tuple(additional_special_tokens or ()),
            sp_model_kwargs=sp_model_kwargs,
            padding_side=padding_side,
            truncation_side=truncation_side,
            model_max_length=model_max_length,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        pieces = SentencePieces.from_file(Path(spm_file), settings.sp_model_kwargs)
        self._set_up(_vocabulary(Path(vocab_file)), pieces, settings, {})

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        saved, others = saved_tokens(folder)
        more = given.pop("additional_special_tokens", ())
        settings = TokenizerSettings.from_folder(
            folder, **given, additional_special_tokens=(*others, *more)
        )
        pieces = SentencePieces.from_file(folder / SPM_NAME, settings.sp_model_kwargs)
        self._set_up(_vocabulary(folder / VOCAB_NAME), pieces, settings, saved)

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        added = self.added_tokens_decoder
        self._settings.save(
            folder,
            tokenizer_class=type(self).__name__,
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
        """Write vocab.json and the SentencePiece model into a folder that is there.

        Args:
            save_directory: the folder.
            filename_prefix: put before each name, with a dash between.

        Returns:
            The paths of the two files.

        Raises:
            NotADirectoryError: there is no such folder.
        """
        vocab, model = vocabulary_paths(save_directory, filename_prefix, VOCAB_NAME, SPM_NAME)
        write_json_object(vocab, self.encoder)
        model.write_bytes(self._pieces.model)
        return str(vocab), str(model)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Turn one sequence of ids into text, or several into a list of texts.

        An id that the vocabulary lacks becomes the unknown token.

        Args:
            token_ids: one id, or a list, array or tensor of one dimension, or of two for several.
            skip_special_tokens: leave control tokens out, those of languages among them.
            clean_up_tokenization_spaces: remove blanks before punctuation; None for what the
                tokenizer was set to, which is not to. It also removes blanks that were meant.

        Raises:
            TypeError: these are no ids.
        """
        found = id_lists(token_ids)
        if found and isinstance(found[0], list):
            return [
                self.decode(r, skip_special_tokens, clean_up_tokenization_spaces) for r in found
            ]
        clean = clean_up_tokenization_spaces
        if clean is None:
            clean = self.clean_up_tokenization_spaces
        tokens = self.convert_ids_to_tokens(found, skip_special_tokens)
        text = self.convert_tokens_to_string([token for token in tokens if token is not None])
        return self.clean_up_tokenization(text) if clean else text

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return what was said: control tokens left out, wherever they stand."""
        text: str = self.decode(list(token_ids), skip_special_tokens=True)
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, tgt_lang={self.tgt_lang!r})"


def _vocabulary(path: Path) -> dict[str, int]:
    content = read_json_object(path)
    ids = content.values()
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(content):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected tokens and their ids, each once; fetch "
            f"the checkpoint again"
        )
    return content
