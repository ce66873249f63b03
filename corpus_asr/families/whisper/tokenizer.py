"""Whisper's tokenizer: text to ids and back, with the control tokens and their order.

Method and parameter names, defaults and results are those of `transformers.WhisperTokenizer`,
version 5.23. Ids come from the vocabulary: their layout differs between the English-only,
multilingual and large-v3 checkpoints.
"""

import codecs
import importlib
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from corpus_asr.errors import CheckpointError
from corpus_asr.families.library_tokenizer import (
    ADDED_NAME,
    MERGES_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    added_token,
    read_tokenizer_file,
)
from corpus_asr.families.saved_files import (
    optional_object,
    read_json_object,
    vocabulary_paths,
    write_json_object,
)
from corpus_asr.families.tensors import as_tensors
from corpus_asr.families.tokenizer import ROLES, PretrainedTokenizer
from corpus_asr.families.truncation_padding import NO_LIMIT, decode_each
from corpus_asr.families.whisper.timestamps import (
    timed_chunks,
    timed_segments,
    without_timestamps,
    written_timestamps,
)
from corpus_asr.families.whisper.vocabulary import (
    build_vocabulary,
    load_vocabulary,
    token_bytes,
    write_vocabulary,
)
from corpus_asr.languages import LANGUAGES, resolve_language
from corpus_asr.units import TIMESTAMP_STEP_S

NORMALIZER_NAME = "normalizer.json"
TASKS = ("transcribe", "translate")

_END = "<|endoftext|>"
# Checkpoints up to large-v2 call the same token by its older name.
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
# The English-only models kept GPT-2's vocabulary, which ends here; all others have one token more.
_ENGLISH_ONLY_END = 50256


class WhisperTokenizer(PretrainedTokenizer):
    """Whisper's byte-level BPE, control tokens and timestamps.

    Args:
        vocab_file: vocab.json; the other JSON files in its folder give the control tokens.
        normalizer_file: normalizer.json, American spellings by British ones; None for the own list.
        tokenizer_file: tokenizer.json, instead of vocab.json and merges.txt.
        bos_token: named by the reference; labels start with `<|startoftranscript|>` whatever it is.
        language: code or name of the language in labels; None leaves its token out.
        task: `transcribe` or `translate` in labels; None leaves its token out.
        predict_timestamps: whether labels hold timestamps, and no `<|notimestamps|>`.
        errors: handling of bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        CheckpointError: a file is missing or broken, or the vocabulary lacks a control token.
        ValueError: `language` or `task` is not known, or the vocabulary lacks a named token.
    """

    _without_effect = ("do_lower_case",)
    language: str | None
    task: str | None
    predict_timestamps: bool
    add_prefix_space: bool | None  # None as the vocabulary's file says
    errors: str
    is_multilingual: bool
    language_ids: dict[str, int]
    """Token of each language by its code; empty for an English-only model."""
    english_spelling_normalizer: Mapping[str, str] | None
    """American spellings by British ones, of the checkpoint's normalizer.json; None where it has
    none and Whisper's own list is taken."""

    def __init__(
        self,
        vocab_file: str | PathLike[str] | None = None,
        merges_file: str | PathLike[str] | None = None,
        normalizer_file: str | PathLike[str] | None = None,
        unk_token: str | None = _END,
        bos_token: str | None = _END,
        eos_token: str | None = _END,
        add_prefix_space: bool = False,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool = False,
        *,
        tokenizer_file: str | PathLike[str] | None = None,
        pad_token: str | None = None,
        errors: str = "replace",
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int = NO_LIMIT,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        # Before other local names are bound: all settings by name.
        arguments = locals()
        if tokenizer_file is not None:
            tokenizer = read_tokenizer_file(Path(tokenizer_file))
        elif vocab_file is not None and merges_file is not None:
            tokenizer = build_vocabulary(Path(vocab_file), Path(merges_file))
        else:
            raise ValueError(
                f"making a tokenizer: found vocab_file={vocab_file!r} and "
                f"merges_file={merges_file!r}, expected both, or tokenizer_file; pass them, or "
                "use from_pretrained"
            )
        settings = {name: arguments[name] for name in self._defaults()}
        self._set_up(
            tokenizer, settings, None if normalizer_file is None else Path(normalizer_file)
        )

    def _set_up(
        self,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        normalizer: str | PathLike[str] | None,
        is_multilingual: bool | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._special_ids = None
        self.eot = self._control(_END)
        self.sot = self._control("<|startoftranscript|>")
        self.translate = self._control("<|translate|>")
        self.transcribe = self._control("<|transcribe|>")
        self.start_of_prev = self._control("<|startofprev|>")
        self.no_speech = self._control(*_NO_SPEECH)
        self.no_timestamps = self._control("<|notimestamps|>")
        # Older tokenizer files end here: the 1,501 timestamps follow by position.
        self.timestamp_begin = self.no_timestamps + 1
        languages = self._language_tokens()
        if is_multilingual is None:
            is_multilingual = self.eot != _ENGLISH_ONLY_END and bool(languages)
        self.is_multilingual = is_multilingual
        self.language_ids = languages if is_multilingual else {}
        self._take_settings(settings)
        if self.add_prefix_space is not None:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=self.add_prefix_space
            )
        for role in ROLES:
            self._check_setting(role, settings[role])
        self.set_prefix_tokens(self.language, self.task)
        self.english_spelling_normalizer = None
        if normalizer is not None:
            self.english_spelling_normalizer = read_json_object(Path(normalizer))

    def _check_setting(self, name: str, value: Any) -> None:
        super()._check_setting(name, value)
        if name != "errors":
            return
        try:
            codecs.lookup_error(value)
        except LookupError as error:
            raise ValueError(
                f"setting up a tokenizer: found errors={value!r}, expected one of bytes.decode, "
                "such as 'replace'; correct it"
            ) from error

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} tokens, language={self.language!r}, "
            f"task={self.task!r}, predict_timestamps={self.predict_timestamps})"
        )

    # Prompts and labels

    def set_prefix_tokens(
        self,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool | None = None,
    ) -> None:
        """Set the start of labels; None keeps a value, and a ValueError changes nothing."""
        if language is not None:
            self._language_id(language)
        if task is not None:
            self._task_id(task)
        self.language = self.language if language is None else language
        self.task = self.task if task is None else task
        if predict_timestamps is not None:
            self.predict_timestamps = predict_timestamps

    @property
    def prefix_tokens(self) -> list[int]:
        """IDs at the start of labels: start, language, task, no timestamps."""
        prefix = [self.sot]
        if self.language is not None:
            prefix.append(self._language_id(self.language))
        if self.task is not None:
            prefix.append(self._task_id(self.task))
        return prefix if self.predict_timestamps else [*prefix, self.no_timestamps]

    def prompt(self, language: str | None, task: str, timestamps: bool) -> tuple[int, ...]:
        """Return the prompt for a transcript; `language` is None only for an English-only model."""
        end = () if timestamps else (self.no_timestamps,)
        if self.is_multilingual:
            if language is None:
                raise ValueError(
                    "prompting a multilingual Whisper model: found no language, expected one of "
                    f"its {len(self.language_ids)}; pass it, or detect it first"
                )
            return (self.sot, self._language_id(language), self._task_id(task), *end)
        if task != "transcribe" or (language is not None and resolve_language(language) != "en"):
            raise ValueError(
                f"prompting an English-only Whisper model: found language {language!r} and task "
                f"{task!r}, expected English and 'transcribe'; choose a multilingual checkpoint"
            )
        return (self.sot, *end)

    def get_prompt_ids(self, text: str, return_tensors: str | None = "np") -> Any:
        """Encode plain text before the transcript: earlier words, or names to expect."""
        # As within a text, where words start with a space.
        ids = self._text_ids(" " + text.strip())
        special = next((i for i in ids if i >= self.eot), None)
        if special is not None:
            # It would end the prompt, or be mistaken for the start of the transcript.
            raise ValueError(
                f"encoding a prompt: found the special token {self._id_token(special)} in "
                f"{text[:60]!r}, expected plain text; remove it"
            )
        return as_tensors([self.start_of_prev, *ids], return_tensors)

    def _control(self, *names: str) -> int:
        token_id = next((i for i in map(self._token_id, names) if i is not None), None)
        if token_id is None:
            raise CheckpointError(
                f"loading a Whisper tokenizer: found no {names[0]} among {len(self)} tokens, "
                "expected Whisper's; fetch its added_tokens.json and special_tokens_map.json, or "
                "its tokenizer.json"
            )
        return token_id

    def _language_tokens(self) -> dict[str, int]:
        tokens = {code: self._token_id(f"<|{code}|>") for code in LANGUAGES}
        return {code: token for code, token in tokens.items() if token is not None}

    def _language_id(self, language: str) -> int:
        tokens = self._language_tokens()
        return tokens[resolve_language(language, known=tokens.keys())]

    def _task_id(self, task: str) -> int:
        if task not in TASKS:
            raise ValueError(
                f"choosing the task {task!r}: expected one of {', '.join(TASKS)}; correct it"
            )
        return self.translate if task == "translate" else self.transcribe

    @property
    def _end(self) -> int:
        return self.eot if self.eos_token_id is None else self.eos_token_id

    # Ids to text

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
        """Decode one sequence of IDs to text, or several to a list of texts.

        An incomplete character at the end of a sequence becomes U+FFFD.

        Args:
            skip_special_tokens: omit control tokens, and the text of earlier windows in the
                prompt.
            clean_up_tokenization_spaces: remove spaces before punctuation, including intended
                ones; None for the tokenizer's setting.
            output_offsets: return `{"text": ..., "offsets": [{"text": ..., "timestamp": (start_s,
                end_s)}]}` with the segments between timestamps.
            decode_with_timestamps: write timestamps as `<|1.08|>`, continuing the times of
                earlier windows; otherwise they are omitted, and `normalize` may apply.

        Raises:
            ValueError: an ID is negative, such as a label's padding.
            TypeError: the input is not a sequence of IDs.
        """
        clean = self._clean(clean_up_tokenization_spaces)

        def decode_one(ids: list[int]) -> Any:
            kept = self._strip_prompt(ids) if skip_special_tokens else ids
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
                return {"text": text, "offsets": self._offsets(ids, time_precision)}
            return text

        return decode_each(token_ids, decode_one)

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return the text without any control tokens and timestamps."""
        # From the end token on there are only control tokens and timestamps.
        return self._tokenizer.decode([i for i in token_ids if i < self.eot])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text."""
        return b"".join(map(token_bytes, tokens)).decode("utf-8", "replace")

    def normalize(self, text: str) -> str:
        """Normalize English text, with the checkpoint's list of spellings if it has one."""
        from corpus_asr.text.normalize import EnglishTextNormalizer

        return EnglishTextNormalizer(self.english_spelling_normalizer)(text)

    @staticmethod
    def basic_normalize(text: str, remove_diacritics: bool = False) -> str:
        """Normalize text of any language."""
        from corpus_asr.text.normalize import BasicTextNormalizer

        return BasicTextNormalizer(remove_diacritics)(text)

    def _plain_text(self, ids: list[int], skip_special_tokens: bool, clean: bool) -> str:
        if min(ids, default=0) < 0:
            raise ValueError(
                f"decoding {len(ids)} token ids: found {min(ids)}, expected ids from 0; replace "
                f"the padding of labels by the end token first"
            )
        # The library always replaces invalid bytes.
        if self.errors == "replace":
            text = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        else:
            tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
            text = b"".join(map(token_bytes, filter(None, tokens))).decode("utf-8", self.errors)
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
                "text": without_timestamps(self._plain_text(list(segment), False, clean)),
                "timestamp": times_s,
            }
            for segment, times_s in timed_segments(
                ids, timestamp_begin=self.timestamp_begin, time_precision=time_precision
            )
        ]

    def _strip_prompt(self, ids: list[int], *_: int) -> list[int]:
        # The previous text: tokens before the start token, or all without one.
        if not ids or ids[0] != self.start_of_prev:
            return ids
        return ids[ids.index(self.sot) :] if self.sot in ids else []

    def _decode_asr(
        self,
        model_outputs: Any,
        *,
        return_timestamps: bool | str | None,
        return_language: bool | None,
        time_precision: float,
    ) -> tuple[str, dict[str, Any]]:
        outputs = list(model_outputs)
        if len(outputs) == 1 and not return_language and "stride" not in outputs[0]:
            return timed_chunks(
                self,
                outputs[0],
                return_timestamps=return_timestamps,
                time_precision=time_precision,
            )
        # Only transformers' own pipeline asks for more.
        module = importlib.import_module("transformers.models.whisper.tokenization_whisper")
        merged: tuple[str, dict[str, Any]] = module._decode_asr(
            self,
            outputs,
            return_timestamps=return_timestamps,
            return_language=return_language,
            time_precision=time_precision,
        )
        return merged

    # Files

    def _load(self, folder: Path, given: dict[str, Any]) -> None:
        # The vocabulary does not tell: that of English-only models may have language tokens.
        stated = optional_object(folder / "generation_config.json").get("is_multilingual")
        normalizer = folder / NORMALIZER_NAME
        # Without a prefix space setting, the one of the vocabulary's file applies.
        defaults = self._defaults() | {"add_prefix_space": None}
        tokenizer = load_vocabulary(folder)
        # The caller's role tokens are added if they are new; those of files must exist.
        tokens = [given[role] for role in ROLES if role in given]
        new = [token for token in tokens if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens([added_token(token, special=True) for token in new])
        self._set_up(
            tokenizer,
            defaults | self._saved_settings(folder, given),
            normalizer if normalizer.is_file() else None,
            is_multilingual=stated if isinstance(stated, bool) else None,
        )

    def _save(self, folder: Path, filename_prefix: str | None) -> tuple[str, ...]:
        self._save_settings(folder, special_tokens=self.all_special_tokens)
        self._tokenizer.save(str(folder / TOKENIZER_NAME))
        vocabulary = self.save_vocabulary(folder, filename_prefix)
        base = self._tokenizer.get_vocab(with_added_tokens=False)
        # Added tokens that the vocabulary already has keep their IDs.
        added = self.added_tokens_decoder.items()
        beside = {token.content: i for i, token in added if token.content not in base}
        write_json_object(folder / ADDED_NAME, beside)
        names = (SETTINGS_NAME, SPECIAL_NAME, TOKENIZER_NAME, ADDED_NAME)
        return (*(str(folder / name) for name in names), *vocabulary)

    def save_vocabulary(
        self, save_directory: str | PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str, str]:
        """Write vocab.json, merges.txt and normalizer.json into a folder; returns their paths."""
        from corpus_asr.text.normalize import american_spellings

        vocab, merges, normalizer = vocabulary_paths(
            save_directory, filename_prefix, VOCAB_NAME, MERGES_NAME, NORMALIZER_NAME
        )
        write_vocabulary(self._tokenizer, vocab, merges)
        spellings = self.english_spelling_normalizer
        write_json_object(
            normalizer, dict(american_spellings() if spellings is None else spellings)
        )
        return str(vocab), str(merges), str(normalizer)


WhisperTokenizerFast = WhisperTokenizer
"""The other name that transformers has for it: there is one class here, and it is fast."""
