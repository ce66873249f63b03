"""Whisper's tokenizer: text to ids and back, with the control tokens and their order.

In: a checkpoint folder. Out: ids for prompts and labels, text for what the decoder wrote. Ids come
from the folder's files: the layout differs between the English-only, multilingual and large-v3
vocabularies. Method and parameter names, defaults and results are those of
`transformers.WhisperTokenizer`, version 5.23; what is not built here is absent. Knows no network
and no audio.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, Self, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64

from corpus_asr.errors import CheckpointError
from corpus_asr.models.config_file import read_json_object, typed_values, write_json_object
from corpus_asr.models.whisper.timestamps import (
    TimedTokens,
    split_timestamps,
    without_timestamps,
    written_timestamps,
)
from corpus_asr.text.bpe import SETTINGS_NAME, BytePairEncoding
from corpus_asr.text.languages import LANGUAGES, resolve_language
from corpus_asr.units import TIMESTAMP_STEP_S

_END = "<|endoftext|>"
_START = "<|startoftranscript|>"
_START_OF_PREV = "<|startofprev|>"
# Checkpoints up to large-v2 call the same token by its older name.
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")

# The English-only models kept GPT-2's vocabulary, which ends here; all others have one token more.
_ENGLISH_ONLY_END = 50256

_TASKS = ("transcribe", "translate")


@runtime_checkable
class Listable(Protocol):
    """An array or tensor of ids, wherever it lives."""

    def tolist(self) -> Any:
        """Return the ids as nested lists of int."""


class TokenizedText(dict[str, Any]):
    """`input_ids` and `attention_mask` of one text or, as lists, of several."""

    @property
    def input_ids(self) -> Any:
        """Ids of the text, or a list of them per text."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        """1 for every id: nothing is padded."""
        return self["attention_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SavedSettings:
    """What a saved tokenizer_config.json says of labels."""

    language: str | None = None
    task: str | None = None
    predict_timestamps: bool = False


class WhisperTokenizer:
    """Whisper's byte-level BPE, control tokens and timestamps.

    Args:
        bpe: the vocabulary and merges.
        language: code or name of the language in labels; None leaves its token out.
        task: `transcribe` or `translate` in labels; None leaves its token out.
        predict_timestamps: whether labels hold timestamps, so `<|notimestamps|>` is left out.
        is_multilingual: whether the model takes language and task; None tells it from the ids.

    Raises:
        CheckpointError: a control token is missing from the vocabulary.
        ValueError: `language` or `task` is not known.
    """

    def __init__(
        self,
        bpe: BytePairEncoding,
        *,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool = False,
        is_multilingual: bool | None = None,
    ) -> None:
        self._bpe = bpe
        self.eot = self._control(_END)
        self.sot = self._control(_START)
        self.translate = self._control("<|translate|>")
        self.transcribe = self._control("<|transcribe|>")
        self.start_of_prev = self._control(_START_OF_PREV)
        self.no_speech = self._control(*_NO_SPEECH)
        self.no_timestamps = self._control("<|notimestamps|>")
        # Older tokenizer files end here: the 1,501 timestamps follow by position.
        self.timestamp_begin = self.no_timestamps + 1
        if is_multilingual is None:
            is_multilingual = self.eot != _ENGLISH_ONLY_END and bool(self._language_tokens())
        self.is_multilingual = is_multilingual
        self.language_ids = self._language_tokens() if is_multilingual else {}
        """Token of each language by its code; empty for an English-only model."""
        self.language: str | None = None
        self.task: str | None = None
        self.predict_timestamps = False
        self.set_prefix_tokens(language, task, predict_timestamps)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool | None = None,
    ) -> Self:
        """Load the tokenizer of a checkpoint folder.

        What is not given is taken from tokenizer_config.json, where a saved tokenizer says it.

        Raises:
            CheckpointError: files are missing or broken, or lack a control token.
            ValueError: `language` or `task` is not known.
        """
        folder = Path(folder)
        path = folder / SETTINGS_NAME
        saved = _SavedSettings(**typed_values(_SavedSettings, _optional(path), path=path)[0])
        if predict_timestamps is None:
            predict_timestamps = saved.predict_timestamps
        says = _optional(folder / "generation_config.json").get("is_multilingual")
        return cls(
            BytePairEncoding.from_folder(folder),
            language=language if language is not None else saved.language,
            task=task if task is not None else saved.task,
            predict_timestamps=predict_timestamps,
            is_multilingual=says if isinstance(says, bool) else None,
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, which is made if needed."""
        folder = Path(folder)
        settings = {
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _END),
            "additional_special_tokens": self.convert_ids_to_tokens(self.all_special_ids),
            "language": self.language,
            "predict_timestamps": self.predict_timestamps,
            "task": self.task,
            "tokenizer_class": "WhisperTokenizer",
        }
        write_json_object(folder / SETTINGS_NAME, settings)
        self._bpe.save(folder)

    def __len__(self) -> int:
        return len(self._bpe)

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added; `len()` counts all."""
        return self._bpe.vocab_size

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens, ascending; timestamps are not among them."""
        return list(self._bpe.special_ids)

    # Prompts and labels

    def set_prefix_tokens(
        self,
        language: str | None = None,
        task: str | None = None,
        predict_timestamps: bool | None = None,
    ) -> None:
        """Change what labels start with; None keeps what was set.

        Raises:
            ValueError: `language` or `task` is not known; nothing is changed then.
        """
        if language is not None:
            self._language_id(language)
        if task is not None:
            self._task_id(task)
        self.language = language if language is not None else self.language
        self.task = task if task is not None else self.task
        if predict_timestamps is not None:
            self.predict_timestamps = predict_timestamps

    @property
    def prefix_tokens(self) -> list[int]:
        """Ids that labels start with: start, language, task, no timestamps."""
        prefix = [self.sot]
        if self.language is not None:
            prefix.append(self._language_id(self.language))
        if self.task is not None:
            prefix.append(self._task_id(self.task))
        return prefix if self.predict_timestamps else [*prefix, self.no_timestamps]

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

    @overload
    def get_prompt_ids(
        self, text: str, return_tensors: Literal["np"] = ...
    ) -> Int64[np.ndarray, " token"]: ...
    @overload
    def get_prompt_ids(self, text: str, return_tensors: None) -> list[int]: ...
    def get_prompt_ids(
        self, text: str, return_tensors: Literal["np"] | None = "np"
    ) -> Int64[np.ndarray, " token"] | list[int]:
        """Encode text that stands before the transcript: earlier words, or names to expect.

        Raises:
            ValueError: `text` holds a control token or timestamp.
        """
        ids = self._bpe.encode(" " + text.strip())
        found = next((i for i in ids if i >= self.eot), None)
        if found is not None:
            raise ValueError(
                f"encoding a prompt: found the special token {self._bpe.id_to_token(found)} in "
                f"{text[:60]!r}, expected plain text; remove it"
            )
        ids = [self.start_of_prev, *ids]
        return np.array(ids, dtype=np.int64) if return_tensors == "np" else ids

    # Text to ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text as a label; `add_special_tokens=False` for the text alone.

        Raises:
            ValueError: `text` is no valid Unicode text.
        """
        ids = self._bpe.encode(text)
        return [*self.prefix_tokens, *ids, self.eot] if add_special_tokens else ids

    def __call__(self, text: str | Iterable[str], add_special_tokens: bool = True) -> TokenizedText:
        """Encode one text or several, unpadded; the result holds `input_ids` and a mask of ones."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return TokenizedText(input_ids=ids, attention_mask=[1] * len(ids))
        rows = [self.encode(one, add_special_tokens) for one in text]
        return TokenizedText(input_ids=rows, attention_mask=[[1] * len(row) for row in rows])

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Look up ids; a token the vocabulary lacks gives the end token, as in the reference."""
        if isinstance(tokens, str):
            found = self._bpe.token_to_id(tokens)
            return self.eot if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    # Ids to text

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = ...) -> str | None: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Iterable[int], skip_special_tokens: bool = ...
    ) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Look up tokens as the vocabulary spells them; None for an id it lacks."""
        if isinstance(ids, int):
            return self._bpe.id_to_token(ids)
        skip = set(self._bpe.special_ids) if skip_special_tokens else set()
        return [self._bpe.id_to_token(int(i)) for i in ids if int(i) not in skip]

    def decode_text(self, token_ids: Iterable[int]) -> str:
        """Return what was said: control tokens and timestamps left out, wherever they stand."""
        return self._bpe.decode([i for i in token_ids if i < self.eot])

    def decode(
        self,
        token_ids: int | Sequence[int] | Listable,
        skip_special_tokens: bool = False,
        *,
        time_precision: float = TIMESTAMP_STEP_S,
        decode_with_timestamps: bool = False,
    ) -> str:
        """Turn one sequence of ids into text; a character cut short by its end becomes U+FFFD.

        Args:
            token_ids: list, array or tensor of one dimension.
            skip_special_tokens: leave control tokens out, and the previous text before the start
                token with them.
            time_precision: seconds per timestamp step.
            decode_with_timestamps: write timestamps as `<|1.08|>`, later windows continuing the
                times of earlier ones; otherwise they are left out.

        Raises:
            ValueError: an id is negative.
        """
        ids = _as_list(token_ids)
        if skip_special_tokens:
            ids = self._without_previous(ids)
        if not decode_with_timestamps:
            text = self._bpe.decode(ids, skip_special_tokens=skip_special_tokens)
            return without_timestamps(text)
        pieces = written_timestamps(
            ids, timestamp_begin=self.timestamp_begin, time_precision=time_precision
        )
        return "".join(
            piece
            if isinstance(piece, str)
            else self._bpe.decode(piece, skip_special_tokens=skip_special_tokens)
            for piece in pieces
        )

    def batch_decode(
        self,
        sequences: Iterable[int | Sequence[int] | Listable],
        skip_special_tokens: bool = False,
        *,
        time_precision: float = TIMESTAMP_STEP_S,
        decode_with_timestamps: bool = False,
    ) -> list[str]:
        """Decode each sequence by itself, exactly as `decode` does."""
        return [
            self.decode(
                sequence,
                skip_special_tokens,
                time_precision=time_precision,
                decode_with_timestamps=decode_with_timestamps,
            )
            for sequence in sequences
        ]

    def split_timestamps(self, token_ids: Iterable[int]) -> tuple[TimedTokens, ...]:
        """Cut what the decoder wrote for one window at its timestamps, losing no text token."""
        return split_timestamps(token_ids, end=self.eot, timestamp_begin=self.timestamp_begin)

    def _control(self, *names: str) -> int:
        """Return the id of a control token that goes by one of `names`."""
        found = next((i for i in map(self._bpe.token_to_id, names) if i is not None), None)
        if found is None:
            raise CheckpointError(
                f"loading a Whisper tokenizer: found no {names[0]} among {len(self._bpe)} tokens, "
                f"expected Whisper's control tokens; fetch the checkpoint's added_tokens.json and "
                f"special_tokens_map.json, or its tokenizer.json"
            )
        return found

    def _language_tokens(self) -> dict[str, int]:
        tokens = {code: self._bpe.token_to_id(f"<|{code}|>") for code in LANGUAGES}
        return {code: token for code, token in tokens.items() if token is not None}

    def _language_id(self, language: str) -> int:
        tokens = self._language_tokens()
        return tokens[resolve_language(language, known=tokens.keys())]

    def _task_id(self, task: str) -> int:
        if task not in _TASKS:
            raise ValueError(
                f"choosing the task {task!r}: expected one of {', '.join(_TASKS)}; correct it"
            )
        return self.translate if task == "translate" else self.transcribe

    def _without_previous(self, ids: list[int]) -> list[int]:
        """Drop the previous text: everything before the start token, or all without one."""
        if not ids or ids[0] != self.start_of_prev:
            return ids
        return ids[ids.index(self.sot) :] if self.sot in ids else []


def _as_list(token_ids: int | Sequence[int] | Listable) -> list[int]:
    values: Any = token_ids.tolist() if isinstance(token_ids, Listable) else token_ids
    return [values] if isinstance(values, int) else [int(i) for i in values]


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
