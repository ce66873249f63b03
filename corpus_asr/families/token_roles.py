"""Token roles, and the attributes of tokenizers that programs for transformers read."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Settings that name a token."""
UNUSED_ROLES = ("sep_token", "cls_token", "mask_token")
"""Roles of other tokenizers, unused here; None until set."""


def role_id(role: str) -> Any:
    """Return a property for the ID of a role's token; None without such a token."""

    def get(tokenizer: Any) -> int | None:
        token = getattr(tokenizer, role)
        return None if token is None else tokenizer._token_id(token)

    def set_(tokenizer: Any, token_id: int | None) -> None:
        token = None if token_id is None else tokenizer._id_token(token_id)
        if token is None and token_id is not None:
            raise ValueError(
                f"setting {role}_id: found no token {token_id} among {len(tokenizer)}; "
                f"choose the id of one, or add it first"
            )
        setattr(tokenizer, role, token)

    return property(get, set_)


class TokenRoles:
    """The role tokens of a tokenizer, and the settings it was created with."""

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    sep_token: str | None = None
    cls_token: str | None = None
    mask_token: str | None = None
    bos_token_id: int | None = role_id("bos_token")
    eos_token_id: int | None = role_id("eos_token")
    unk_token_id: int | None = role_id("unk_token")
    pad_token_id: int | None = role_id("pad_token")
    sep_token_id: int | None = role_id("sep_token")
    cls_token_id: int | None = role_id("cls_token")
    mask_token_id: int | None = role_id("mask_token")

    backend: ClassVar[str]
    """Name of the library with the vocabulary."""
    init_inputs: tuple[Any, ...] = ()
    """Always empty: settings are given by name."""
    convert_tokens_to_ids: Callable[[Any], Any]
    convert_ids_to_tokens: Callable[..., Any]
    _named_extra: list[str] | None = None

    @property
    @abstractmethod
    def additional_special_tokens(self) -> list[str]:
        """The control tokens without a role."""

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The current arguments of the class by name; None for file names."""
        names = [*inspect.signature(type(self)).parameters, "name_or_path"]
        return {name: getattr(self, name, None) for name in names}

    @property
    def extra_special_tokens(self) -> list[str]:
        """The control tokens without a role, or the subset named as such."""
        named = self._named_extra
        return list(self.additional_special_tokens if named is None else named)

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Iterable[str]) -> None:
        self._named_extra = list(tokens)

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """IDs of the extra special tokens."""
        ids: list[int] = self.convert_tokens_to_ids(self.extra_special_tokens)
        return ids

    @extra_special_tokens_ids.setter
    def extra_special_tokens_ids(self, ids: Iterable[int]) -> None:
        self._named_extra = self.convert_ids_to_tokens(list(ids))
