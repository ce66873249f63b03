"""What a Speech2Text tokenizer is set to beside its vocabulary: roles, case, target language.

In: tokenizer_config.json and special_tokens_map.json of a checkpoint folder. Out: checked values,
and the files again. Knows no vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from corpus_asr.errors import CheckpointError
from corpus_asr.families.token_settings import TokenSettings, optional_object
from corpus_asr.text.added_tokens import (
    ADDED_NAME,
    SETTINGS_NAME,
    SPECIAL_NAME,
    AddedToken,
    described_token,
)

LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mustc": ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")}
)
"""Target languages by the name of the data that multilingual models were trained on.

Source: MuST-C; transformers 5.23, tokenization_speech_to_text.py.
"""

_OTHERS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings(TokenSettings):
    """Settings of a tokenizer, with the defaults of the reference.

    Raises:
        ValueError: a side is neither left nor right, or there are no such language codes.
    """

    bos_token: str | None = "<s>"
    eos_token: str | None = "</s>"
    unk_token: str | None = "<unk>"
    pad_token: str | None = "<pad>"
    do_upper_case: bool = False
    """Whether text is turned into upper case when decoding."""
    do_lower_case: bool = False
    """Whether text is turned into lower case before encoding."""
    tgt_lang: str | None = None
    """Code of the language that labels are in."""
    lang_codes: str | None = None
    """Which target languages there are: `mustc`, or None for one language alone."""
    sp_model_kwargs: dict[str, bool | int | float | str | None] | None = None
    """Keywords of `sentencepiece.SentencePieceProcessor`; None for none."""
    clean_up_tokenization_spaces: bool = False
    """Whether blanks before punctuation are removed."""
    additional_special_tokens: tuple[str | AddedToken, ...] | None = field(
        default=None, metadata={"in_file": False}
    )
    """Control tokens beside the roles and languages, until the vocabulary has them."""

    def __post_init__(self) -> None:
        # By name: a class with slots is made twice, and super() would mean the first.
        TokenSettings.__post_init__(self)
        if self.lang_codes is not None and self.lang_codes not in LANGUAGES:
            raise ValueError(
                f"setting up a tokenizer: found lang_codes={self.lang_codes!r}, expected one of "
                f"{', '.join(LANGUAGES)}, or None; correct it"
            )


def saved_tokens(folder: Path) -> tuple[dict[int, AddedToken], list[AddedToken]]:
    """Read the tokens that a folder names beside its vocabulary.

    Returns:
        Tokens by id, as far as files say ids; and control tokens that play no role.

    Raises:
        CheckpointError: a file is broken.
    """
    settings = optional_object(folder / SETTINGS_NAME)
    special = optional_object(folder / SPECIAL_NAME)
    try:
        others = [
            described_token(entry)
            for content in (settings, special)
            for name in _OTHERS
            for entry in content.get(name) or []
        ]
        if "added_tokens_decoder" in settings:
            described = settings["added_tokens_decoder"].items()
            return {int(i): described_token(flags) for i, flags in described}, others
        known = {token.content for token in others}
        ids = {
            int(i): described_token({"content": token, "special": token in known})
            for token, i in optional_object(folder / ADDED_NAME).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"reading the added tokens of {folder}: found what cannot be used ({error}), expected "
            f"tokens and their ids; fetch the checkpoint's tokenizer files again"
        ) from error
    return ids, others
