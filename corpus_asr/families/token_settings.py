"""What a tokenizer of any family is set to beside its vocabulary: roles of tokens, and lengths.

In: tokenizer_config.json and special_tokens_map.json of a checkpoint folder. Out: checked values,
and the files again. A family adds settings of its own. Knows no vocabulary: whether a token exists
is its user's business.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from corpus_asr.families.config_file import read_json_object, typed_values, write_json_object
from corpus_asr.text.added_tokens import SETTINGS_NAME, SPECIAL_NAME

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Settings that name a token."""

NO_LIMIT = int(1e30)
"""What files say where texts may have any length."""

_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """Settings of a tokenizer, with the defaults of the reference.

    Raises:
        ValueError: a side is neither left nor right.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    model_max_length: int = NO_LIMIT
    """Tokens per text that are kept where no length is given."""
    clean_up_tokenization_spaces: bool = field(default=False, metadata={"in_file": False})
    """Whether blanks before punctuation are removed. Files often say so, and would lose text by
    it: only who loads the tokenizer can ask for it."""

    def __post_init__(self) -> None:
        for name in ("padding_side", "truncation_side"):
            check_side(name, getattr(self, name))

    @classmethod
    def from_folder(cls, folder: Path, **given: Any) -> Self:
        """Read what a folder says, the defaults where it says nothing.

        Args:
            folder: the checkpoint's.
            given: settings by name that win over what the folder says.

        Raises:
            CheckpointError: a file is broken or holds a value of another type.
            ValueError: a value is not among those allowed.
        """
        path = folder / SETTINGS_NAME
        special = _plain_tokens(optional_object(folder / SPECIAL_NAME))
        content = {name: special[name] for name in ROLES if name in special}
        content |= _plain_tokens(optional_object(path))
        if not isinstance(content.get("model_max_length", 0), int):
            # Written as 1e30 it is a float, and means no limit.
            del content["model_max_length"]
        return cls(**(typed_values(cls, content, path=path)[0] | given))

    def save(
        self, folder: Path, *, tokenizer_class: str, special_tokens: list[str], **others: Any
    ) -> None:
        """Write tokenizer_config.json and special_tokens_map.json into `folder`.

        Args:
            folder: where to.
            tokenizer_class: the name that leads `transformers` to the right class.
            special_tokens: those beside the roles, or all.
            others: what else tokenizer_config.json shall say.
        """
        settings = {k: v for k, v in asdict(self).items() if k != "clean_up_tokenization_spaces"}
        roles = {name: settings[name] for name in ROLES if settings[name] is not None}
        special = {**roles, "additional_special_tokens": special_tokens}
        kept = {k: v for k, v in settings.items() if k not in ROLES and v is not None}
        content = {**special, **kept, **others, "tokenizer_class": tokenizer_class}
        # Without this line the reference's version 4 would remove blanks before punctuation.
        content.setdefault("clean_up_tokenization_spaces", False)
        write_json_object(folder / SETTINGS_NAME, content)
        write_json_object(folder / SPECIAL_NAME, special)


def check_side(name: str, side: str) -> None:
    """Make sure that `side` is left or right.

    Raises:
        ValueError: it is not.
    """
    if side not in _SIDES:
        raise ValueError(f"choosing {name}: found {side!r}, expected 'left' or 'right'; correct it")


def optional_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object and need not be there.

    Raises:
        CheckpointError: it is broken.
    """
    return read_json_object(path) if path.is_file() else {}


def _plain_tokens(content: dict[str, Any]) -> dict[str, Any]:
    """Take the text of tokens that a file describes at length."""
    return {
        name: value.get("content") if name in ROLES and isinstance(value, dict) else value
        for name, value in content.items()
    }
