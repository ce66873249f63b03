"""Tokens and what they are for: ids by token, tokens by id, and those that play a role.

In: a vocabulary, which a family brings, and settings. Out: lookups, and settings that can be read
and changed as attributes. Knows no text and no file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, overload

from corpus_asr.families.token_settings import ROLES, TokenSettings

T = TypeVar("T")

_OTHERS = ("additional_special_tokens", "extra_special_tokens")


class Setting(Generic[T]):
    """A setting of a tokenizer, to read and to change."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tokenizer: "TokenRoles", owner: type | None = None) -> T:
        value: T = getattr(tokenizer._settings, self._name)
        return value

    def __set__(self, tokenizer: "TokenRoles", value: T) -> None:
        tokenizer._change({self._name: value})


class _RoleId:
    """The id of the token that plays a role; None where none does."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, tokenizer: "TokenRoles", owner: type | None = None) -> int | None:
        token: str | None = getattr(tokenizer._settings, self._name)
        return None if token is None else tokenizer._token_id(token)

    def __set__(self, tokenizer: "TokenRoles", token_id: int) -> None:
        token = tokenizer._id_token(token_id)
        if token is None:
            raise ValueError(
                f"setting {self._name}_id: found no token {token_id} among {len(tokenizer)}; "
                f"choose the id of one, or add it first"
            )
        tokenizer._change({self._name: token})


class TokenRoles(ABC):
    """What a tokenizer of any family says of its tokens."""

    bos_token = Setting[str | None]()
    eos_token = Setting[str | None]()
    unk_token = Setting[str | None]()
    pad_token = Setting[str | None]()
    bos_token_id = _RoleId()
    eos_token_id = _RoleId()
    unk_token_id = _RoleId()
    pad_token_id = _RoleId()
    padding_side = Setting[str]()
    truncation_side = Setting[str]()
    model_max_length = Setting[int]()
    clean_up_tokenization_spaces = Setting[bool]()

    model_input_names = ("input_ids", "attention_mask")
    """What a model takes of the result of a call."""
    pad_token_type_id = 0

    _settings: TokenSettings

    @abstractmethod
    def __len__(self) -> int: ...

    def __bool__(self) -> bool:
        """Be true, though a tokenizer has a length."""
        return True

    @property
    @abstractmethod
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens."""

    @abstractmethod
    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens after the last id; returns how many were new."""

    @abstractmethod
    def _token_id(self, token: str) -> int | None:
        """Return the id of a token, None where there is none."""

    @abstractmethod
    def _id_token(self, token_id: int) -> str | None:
        """Return the token of an id, None where there is none."""

    def _unknown(self) -> str | None:
        """Return what is said in place of a token that there is none of."""
        return None

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Tokens by their roles."""
        tokens = {role: getattr(self._settings, role) for role in ROLES}
        return {role: token for role, token in tokens.items() if token is not None}

    def add_special_tokens(self, special_tokens_dict: Mapping[str, str | list[str]]) -> int:
        """Add control tokens by role, and let them play it; returns how many were new.

        Args:
            special_tokens_dict: such as `{"pad_token": "<|pad|>"}`; tokens without a role under
                `additional_special_tokens`.

        Raises:
            ValueError: there is no such role.
        """
        count = 0
        for role, value in special_tokens_dict.items():
            if role not in (*ROLES, *_OTHERS) or isinstance(value, str) != (role in ROLES):
                raise ValueError(
                    f"adding special tokens: found {role}={value!r}, expected a token for one of "
                    f"{', '.join(ROLES)}, or a list for {_OTHERS[0]}; correct it"
                )
            count += self.add_tokens(value, special_tokens=True)
            if isinstance(value, str):
                self._change({role: value})
        return count

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
        found = self._token_id(tokens)
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
        """Look up tokens as the vocabulary spells them.

        An id without a token gives what stands for unknown ones when text is made of tokens: None
        where nothing does.
        """
        if isinstance(ids, int):
            return self._spelt(ids)
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._spelt(int(i)) for i in ids if int(i) not in skip]

    def _spelt(self, token_id: int) -> str | None:
        token = self._id_token(token_id)
        return self._unknown() if token is None else token

    def _change(self, settings: Mapping[str, Any]) -> None:
        """Change settings by name, all or none.

        Raises:
            ValueError: a token is not in the vocabulary, or a value is not among those allowed.
        """
        for role in settings.keys() & set(ROLES):
            token = settings[role]
            if token is not None and self._token_id(token) is None:
                raise ValueError(
                    f"setting {role}: found no token {token!r} among {len(self)}; choose one of "
                    f"the vocabulary, or add it by add_special_tokens"
                )
        self._settings = replace(self._settings, **settings)
