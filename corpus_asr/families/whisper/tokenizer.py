"""Whisper's tokenizer: text to ids and back, with the control tokens and their order.

In: a checkpoint, or its vocabulary's files. Out: ids for prompts and labels, text for what the
decoder wrote. Method and parameter names, defaults and results are those of
`transformers.WhisperTokenizer`, version 5.23. Knows no audio. Its parts lie beside it: settings,
the vocabulary, encoding, decoding, and the merging of chunks.
"""

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corpus_asr.families.config_file import read_json_object, write_json_object
from corpus_asr.families.pretrained_tokenizer import PretrainedTokenizer, vocabulary_paths
from corpus_asr.families.tensors import as_tensors
from corpus_asr.families.token_settings import NO_LIMIT, TokenSettings
from corpus_asr.families.whisper.chunk_merging import merged_chunks
from corpus_asr.families.whisper.tokenizer_decoding import WhisperTextDecoding
from corpus_asr.families.whisper.tokenizer_encoding import WhisperTextEncoding
from corpus_asr.families.whisper.tokenizer_settings import END, TokenizerSettings
from corpus_asr.languages import resolve_language
from corpus_asr.text.added_tokens import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
)
from corpus_asr.text.bpe import BytePairEncoding
from corpus_asr.text.normalize import american_spellings

NORMALIZER_NAME = "normalizer.json"


class WhisperTokenizer(WhisperTextEncoding, WhisperTextDecoding, PretrainedTokenizer):
    """Whisper's byte-level BPE, control tokens and timestamps.

    Args:
        vocab_file: vocab.json; its neighbours added_tokens.json, special_tokens_map.json and
            tokenizer_config.json give the control tokens.
        merges_file: merges.txt.
        normalizer_file: normalizer.json, American spellings by British ones; None for the own list.
        tokenizer_file: tokenizer.json, instead of the first two.
        unk_token: what stands for tokens that the vocabulary lacks.
        bos_token: named by the reference; labels start with `<|startoftranscript|>` whatever it is.
        eos_token: what labels end with.
        add_prefix_space: encode every text as if a blank came first.
        language: code or name of the language in labels; None leaves its token out.
        task: `transcribe` or `translate` in labels; None leaves its token out.
        predict_timestamps: whether labels hold timestamps, so `<|notimestamps|>` is left out.
        pad_token: what fills rows up; None until it is set.
        errors: what becomes of bytes that are no UTF-8, as `bytes.decode` has it.
        padding_side: `right` or `left`.
        truncation_side: `right` or `left`.
        model_max_length: tokens per text that are kept where no length is given.
        clean_up_tokenization_spaces: remove blanks before punctuation when decoding.

    Raises:
        CheckpointError: a file is missing or broken, or the vocabulary lacks a control token.
        ValueError: `language` or `task` is not known, or the vocabulary lacks a named token.
    """

    _settings_class: ClassVar[type[TokenSettings]] = TokenizerSettings

    def __init__(
        self,
        vocab_file: str | PathLike[str] | None = None,
        merges_file: str | PathLike[str] | None = None,
        normalizer_file: str | PathLike[str] | None = None,
        tokenizer_file: str | PathLike[str] | None = None,
        unk_token: str | None = END,
        bos_token: str | None = END,
        eos_token: str | None = END,
        add_prefix_space: bool = False,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool = False,
        *,
        pad_token: str | None = None,
        errors: str = "replace",
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int = NO_LIMIT,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        if tokenizer_file is not None:
            bpe = BytePairEncoding.from_tokenizer_file(Path(tokenizer_file))
        elif vocab_file is not None and merges_file is not None:
            bpe = BytePairEncoding.from_files(Path(vocab_file), Path(merges_file))
        else:
            raise ValueError(
                f"making a tokenizer: found vocab_file={vocab_file!r} and "
                f"merges_file={merges_file!r}, expected both, or tokenizer_file; pass them, or "
                f"load a folder by from_pretrained"
            )
        settings = TokenizerSettings(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            language=language,
            task=task,
            predict_timestamps=predict_timestamps,
            add_prefix_space=add_prefix_space,
            errors=errors,
            padding_side=padding_side,
            truncation_side=truncation_side,
            model_max_length=model_max_length,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )
        self._finish(bpe, settings, None if normalizer_file is None else Path(normalizer_file))

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        path = folder / "generation_config.json"
        says = read_json_object(path).get("is_multilingual") if path.is_file() else None
        normalizer = folder / NORMALIZER_NAME
        self._finish(
            BytePairEncoding.from_folder(folder),
            TokenizerSettings.from_folder(folder, **given),
            normalizer if normalizer.is_file() else None,
            is_multilingual=says if isinstance(says, bool) else None,
        )

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        self._settings.save(
            folder, tokenizer_class="WhisperTokenizer", special_tokens=self.all_special_tokens
        )
        self._bpe.save(folder)
        vocabulary = self.save_vocabulary(folder, filename_prefix)
        write_json_object(folder / ADDED_NAME, self._tokens_beside_vocabulary())
        others = (SETTINGS_NAME, SPECIAL_NAME, TOKENIZER_NAME, ADDED_NAME)
        return (*(str(folder / name) for name in others), *vocabulary)

    def save_vocabulary(
        self, save_directory: str | PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str, str]:
        """Write vocab.json, merges.txt and normalizer.json into a folder that is there.

        Args:
            save_directory: the folder.
            filename_prefix: put before each name, with a dash between.

        Returns:
            The paths of the three files.

        Raises:
            NotADirectoryError: there is no such folder.
        """
        vocab, merges, normalizer = vocabulary_paths(
            save_directory, filename_prefix, VOCAB_NAME, MERGES_NAME, NORMALIZER_NAME
        )
        write_json_object(vocab, self._bpe.vocabulary(with_added=False))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self._bpe.merges())]
        merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
        spellings = self.english_spelling_normalizer
        write_json_object(
            normalizer, dict(american_spellings() if spellings is None else spellings)
        )
        return str(vocab), str(merges), str(normalizer)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} tokens, language={self.language!r}, "
            f"task={self.task!r}, predict_timestamps={self.predict_timestamps})"
        )

    # Prompts and labels

    def prompt(self, language: str | None, task: str, timestamps: bool) -> tuple[int, ...]:
        """Return the tokens that ask a model of this kind for a transcript.

        Args:
            language: code, name or token; None only for an English-only model.
            task: `transcribe` or `translate`.
            timestamps: whether timestamps are wanted.

        Raises:
            ValueError: the model cannot do this: no such language or task, or an English-only
                model asked for another language or a translation.
        """
        end = () if timestamps else (self.no_timestamps,)
        if self.is_multilingual:
            if language is None:
                raise ValueError(
                    "prompting a multilingual Whisper model: found no language, expected one of "
                    f"its {len(self.language_ids)}; give it or detect it first"
                )
            return (self.sot, self._language_id(language), self._task_id(task), *end)
        if task != "transcribe" or (language is not None and resolve_language(language) != "en"):
            raise ValueError(
                f"prompting an English-only Whisper model: found language {language!r} and task "
                f"{task!r}, expected English and 'transcribe'; choose a multilingual checkpoint"
            )
        return (self.sot, *end)

    def get_decoder_prompt_ids(
        self,
        task: str | None = None,
        language: str | None = None,
        no_timestamps: bool = True,
    ) -> list[tuple[int, int]]:
        """Set the prefix and return its tokens after the first, each with its position.

        Raises:
            ValueError: `language` or `task` is not known.
        """
        self.set_prefix_tokens(language, task, predict_timestamps=not no_timestamps)
        return list(enumerate(self.prefix_tokens))[1:]

    def get_prompt_ids(self, text: str, return_tensors: str | None = "np") -> Any:
        """Encode text that stands before the transcript: earlier words, or names to expect.

        Args:
            text: the text.
            return_tensors: `np`, `pt` or None for a list.

        Raises:
            ValueError: `text` holds a control token or timestamp, or there are no such tensors.
        """
        ids = self._bpe.encode(" " + text.strip())
        found = next((i for i in ids if i >= self.eot), None)
        if found is not None:
            raise ValueError(
                f"encoding a prompt: found the special token {self._bpe.id_to_token(found)} in "
                f"{text[:60]!r}, expected plain text; remove it"
            )
        return as_tensors([self.start_of_prev, *ids], return_tensors)

    def _decode_asr(
        self,
        model_outputs: Any,
        *,
        return_timestamps: bool | str | None,
        return_language: bool | None,
        time_precision: float,
    ) -> tuple[str, dict[str, Any]]:
        """Merge the transcripts of overlapping chunks; see `merged_chunks`."""
        return merged_chunks(
            self,
            model_outputs,
            return_timestamps=return_timestamps,
            return_language=return_language,
            time_precision=time_precision,
        )

    def _finish(
        self,
        bpe: BytePairEncoding,
        settings: TokenizerSettings,
        normalizer: Path | None,
        is_multilingual: bool | None = None,
    ) -> None:
        self._set_up(bpe, settings, is_multilingual)
        self.set_prefix_tokens(settings.language, settings.task)
        self.english_spelling_normalizer = None
        if normalizer is not None:
            self.english_spelling_normalizer = read_json_object(normalizer)

    def _tokens_beside_vocabulary(self) -> dict[str, int]:
        base = self._bpe.vocabulary(with_added=False)
        return {token: i for token, i in self.get_added_vocab().items() if token not in base}
