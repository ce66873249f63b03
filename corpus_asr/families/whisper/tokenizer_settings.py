"""What a Whisper tokenizer is set to beside its vocabulary: roles of tokens, labels, lengths.

In: tokenizer_config.json and special_tokens_map.json of a checkpoint folder. Out: checked values,
and the files again. Knows no vocabulary: whether a token exists is its user's business.
"""

import codecs
from dataclasses import dataclass

from corpus_asr.families.token_settings import TokenSettings

END = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings(TokenSettings):
    """Settings of a tokenizer, with the defaults of the reference.

    Raises:
        ValueError: a side is neither left nor right, or there is no such way with errors.
    """

    bos_token: str | None = END
    eos_token: str | None = END
    unk_token: str | None = END
    language: str | None = None
    """Code or name of the language in labels; None leaves its token out."""
    task: str | None = None
    """`transcribe` or `translate` in labels; None leaves its token out."""
    predict_timestamps: bool = False
    """Whether labels hold timestamps, so `<|notimestamps|>` is left out."""
    add_prefix_space: bool | None = None
    """Whether texts are encoded as if a blank came first; None as the vocabulary's file says."""
    errors: str = "replace"
    """What becomes of bytes that are no UTF-8, as `bytes.decode` has it."""

    def __post_init__(self) -> None:
        # By name: a class with slots is made twice, and super() would mean the first.
        TokenSettings.__post_init__(self)
        try:
            codecs.lookup_error(self.errors)
        except LookupError as error:
            raise ValueError(
                f"setting up a tokenizer: found errors={self.errors!r}, expected a way that "
                f"bytes.decode knows, such as 'replace'; correct it"
            ) from error
