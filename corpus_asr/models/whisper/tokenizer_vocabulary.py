"""Whisper's tokens: which id stands for what, and the roles of special ones.

In: a vocabulary with its merges, and settings. Out: ids of control tokens, tokens by id and ids by
token. Ids come from the vocabulary: their layout differs between the English-only, multilingual
and large-v3 checkpoints. Knows no text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from corpus_asr.errors import CheckpointError
from corpus_asr.models.whisper.tokenizer_settings import END, ROLES, TokenizerSettings
from corpus_asr.text.bpe import BytePairEncoding
from corpus_asr.text.languages import LANGUAGES, resolve_language

_START = "<|startoftranscript|>"
_START_OF_PREV = "<|startofprev|>"
# Checkpoints up to large-v2 call the same token by its older name.
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")

# The English-only models kept GPT-2's vocabulary, which ends here; all others have one token more.
_ENGLISH_ONLY_END = 50256

T = TypeVar("T")

TASKS = ("transcribe", "translate")


class Setting(Generic[T]):
    """A setting of a tokenizer, to read and to change."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tokenizer: "WhisperVocabulary", owner: type | None = None) -> T:
        value: T = getattr(tokenizer._settings, self._name)
        return value

    def __set__(self, tokenizer: "WhisperVocabulary", value: T) -> None:
        tokenizer._change({self._name: value})


class _RoleId:
    """The id of the token that plays a role; None where none does."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, tokenizer: "WhisperVocabulary", owner: type | None = None) -> int | None:
        token: str | None = getattr(tokenizer._settings, self._name)
        return None if token is None else tokenizer._bpe.token_to_id(token)

    def __set__(self, tokenizer: "WhisperVocabulary", token_id: int) -> None:
        token = tokenizer._bpe.id_to_token(token_id)
        if token is None:
            raise ValueError(
                f"setting {self._name}_id: found no token {token_id} among {len(tokenizer)}; "
                f"choose the id of one, or add it first"
            )
        tokenizer._change({self._name: token})


class WhisperVocabulary:
    """The tokens of a Whisper checkpoint and what they are for."""

    bos_token = Setting[str | None]()
    eos_token = Setting[str | None]()
    unk_token = Setting[str | None]()
    pad_token = Setting[str | None]()
    bos_token_id = _RoleId()
    eos_token_id = _RoleId()
    unk_token_id = _RoleId()
    pad_token_id = _RoleId()
    language = Setting[str | None]()
    task = Setting[str | None]()
    predict_timestamps = Setting[bool]()
    errors = Setting[str]()
    padding_side = Setting[str]()
    truncation_side = Setting[str]()
    model_max_length = Setting[int]()
    clean_up_tokenization_spaces = Setting[bool]()

    model_input_names = ("input_ids", "attention_mask")
    """What a model takes of the result of a call."""
    pad_token_type_id = 0
    is_fast = True

    _bpe: BytePairEncoding
    _settings: TokenizerSettings

    def _set_up(
        self, bpe: BytePairEncoding, settings: TokenizerSettings, is_multilingual: bool | None
    ) -> None:
        """Look up the control tokens.

        Raises:
            CheckpointError: one is missing.
            ValueError: a role is played by a token that the vocabulary lacks.
        """
        self._bpe = bpe
        self._settings = settings
        self.eot = self._control(END)
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
        if settings.add_prefix_space is not None:
            bpe.set_prefix_space(settings.add_prefix_space)
        self._change({role: getattr(settings, role) for role in ROLES})

    def __len__(self) -> int:
        return len(self._bpe)

    def __bool__(self) -> bool:
        """Be true, though a tokenizer has a length."""
        return True

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added; `len()` counts all."""
        return self._bpe.vocab_size

    @property
    def vocab(self) -> dict[str, int]:
        """The id of every token."""
        return self._bpe.vocabulary()

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return self._bpe.vocabulary()

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of the tokens beside the vocabulary."""
        return {token.content: i for i, token in self._bpe.added_tokens.items()}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the tokens beside the vocabulary."""
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens beside the vocabulary by id, each with its flags."""
        return self._bpe.added_tokens

    # Special tokens

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens, ascending; timestamps are not among them."""
        return list(self._bpe.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The control tokens, in the order of their ids."""
        return [token for i in self.all_special_ids if (token := self._bpe.id_to_token(i))]

    @property
    def additional_special_tokens(self) -> list[str]:
        """The control tokens that play no named role, in the order of their ids."""
        named = set(self.special_tokens_map.values())
        return [token for token in self.all_special_tokens if token not in named]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Tokens by their roles."""
        tokens = {role: getattr(self._settings, role) for role in ROLES}
        return {role: token for role, token in tokens.items() if token is not None}

    def add_tokens(self, new_tokens: str | Iterable[str], special_tokens: bool = False) -> int:
        """Add tokens after the last id; returns how many were new.

        A model needs a row per token: resize its embeddings to `len()` of this afterwards.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str) else list(new_tokens)
        return self._bpe.add_tokens(tokens, special=special_tokens)

    def add_special_tokens(self, special_tokens_dict: Mapping[str, str | list[str]]) -> int:
        """Add control tokens by role, and let them play it; returns how many were new.

        Args:
            special_tokens_dict: such as `{"pad_token": "<|pad|>"}`; tokens without a role under
                `additional_special_tokens`.

        Raises:
            ValueError: there is no such role.
        """
        others = ("additional_special_tokens", "extra_special_tokens")
        count = 0
        for role, value in special_tokens_dict.items():
            if role not in (*ROLES, *others) or isinstance(value, str) != (role in ROLES):
                raise ValueError(
                    f"adding special tokens: found {role}={value!r}, expected a token for one of "
                    f"{', '.join(ROLES)}, or a list for {others[0]}; correct it"
                )
            count += self.add_tokens(value, special_tokens=True)
            if isinstance(value, str):
                self._change({role: value})
        return count

    # What labels start with

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
        given = {"language": language, "task": task, "predict_timestamps": predict_timestamps}
        self._change({name: value for name, value in given.items() if value is not None})

    @property
    def prefix_tokens(self) -> list[int]:
        """Ids that labels start with: start, language, task, no timestamps."""
        prefix = [self.sot]
        if self.language is not None:
            prefix.append(self._language_id(self.language))
        if self.task is not None:
            prefix.append(self._task_id(self.task))
        return prefix if self.predict_timestamps else [*prefix, self.no_timestamps]

    # Ids and tokens

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Look up ids; a token the vocabulary lacks gives the id of the unknown token.

        Raises:
            ValueError: it lacks one, and no token stands for unknown ones.
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._bpe.token_to_id(tokens)
        found = self.unk_token_id if found is None else found
        if found is None:
            raise ValueError(
                f"looking up the token {tokens!r}: found no such token among {len(self)}, and no "
                f"unk_token to stand for it; choose another token or set unk_token"
            )
        return found

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

    def _change(self, settings: Mapping[str, Any]) -> None:
        """Change settings by name, all or none.

        Raises:
            ValueError: a token is not in the vocabulary, or a value is not among those allowed.
        """
        for role in settings.keys() & set(ROLES):
            token = settings[role]
            if token is not None and self._bpe.token_to_id(token) is None:
                raise ValueError(
                    f"setting {role}: found no token {token!r} among {len(self)}; choose one of "
                    f"the vocabulary, or add it by add_special_tokens"
                )
        self._settings = replace(self._settings, **settings)

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
        if task not in TASKS:
            raise ValueError(
                f"choosing the task {task!r}: expected one of {', '.join(TASKS)}; correct it"
            )
        return self.translate if task == "translate" else self.transcribe
