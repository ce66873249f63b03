"""What a Whisper checkpoint says of decoding: generation_config.json.

In: a checkpoint folder. Out: a frozen, typed value with every token id that decoding needs. Files
written before 2023, and by tools that know nothing of Whisper, lack some or all of it: token ids
are then taken from the tokenizer, suppressed tokens from config.json. Knows no weights and no
search. Names are those of the file.
"""

from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Self

from corpus_asr.models.config_file import (
    plain_values,
    read_json_object,
    typed_values,
    write_json_object,
)
from corpus_asr.models.whisper.config import CONFIG_NAME
from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
from corpus_asr.units import FRAMES_PER_POSITION, FRAMES_PER_SECOND

GENERATION_NAME = "generation_config.json"

_POSITIONS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_POSITION  # 50

# Without them a transcript can be neither prompted nor read; None and absence are the same here.
_NEEDED = (
    "decoder_start_token_id",
    "eos_token_id",
    "is_multilingual",
    "no_timestamps_token_id",
    "prev_sot_token_id",
)
_NEEDED_MULTILINGUAL = ("lang_to_id", "task_to_id")

# Early checkpoints kept these in config.json.
_FROM_CONFIG = ("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids", "max_length")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Token ids and limits of decoding."""

    decoder_start_token_id: int
    """The token that starts a transcript."""
    eos_token_id: int
    """The token that ends it."""
    no_timestamps_token_id: int
    """The token that asks for text without timestamps; timestamps follow it in the vocabulary."""
    prev_sot_token_id: int
    """The token before the text of earlier windows."""
    is_multilingual: bool
    """Whether prompts name language and task."""
    lang_to_id: dict[str, int] | None = field(default=None, hash=False)
    """Token of each language by its spelling, `<|en|>`; None for an English-only model."""
    task_to_id: dict[str, int] | None = field(default=None, hash=False)
    """Token of `transcribe` and `translate`; None for an English-only model."""
    suppress_tokens: tuple[int, ...] | None = None
    """Tokens never sampled."""
    begin_suppress_tokens: tuple[int, ...] | None = None
    """Tokens not sampled first."""
    forced_decoder_ids: tuple[tuple[int, int | None], ...] | None = None
    """Tokens forced at positions, in old files; language and task replace them."""
    max_initial_timestamp_index: int | None = _POSITIONS_PER_SECOND
    """Largest first timestamp in steps of 0.02 s; null means no bound. A file without the key
    gets 1 s, as in openai-whisper; transformers sets no bound then."""
    alignment_heads: tuple[tuple[int, int], ...] | None = None
    """Decoder layers and heads whose cross-attention follows the words in time."""
    max_length: int = 448
    """Longest token sequence, prompt included."""
    return_timestamps: bool = False
    """Whether `generate` predicts timestamps unless told otherwise."""
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    extra: dict[str, Any] = field(
        default_factory=dict, hash=False, repr=False, metadata={"in_file": False}
    )
    """Keys of the file that this class does not know, kept for saving."""

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read generation_config.json, and take what it lacks from the tokenizer and config.json.

        Raises:
            CheckpointError: a file is broken, a key holds a value of the wrong type, or something
                is missing here and from the tokenizer.
        """
        folder = Path(folder)
        path = folder / GENERATION_NAME
        content = read_json_object(path) if path.is_file() else {}
        if not path.is_file() and (folder / CONFIG_NAME).is_file():
            config = read_json_object(folder / CONFIG_NAME)
            path = folder / CONFIG_NAME
            content = {key: config[key] for key in _FROM_CONFIG if key in config}
        derived = _from_tokenizer(folder) if _lacks_ids(content) else {}
        given = {k: v for k, v in content.items() if not (v is None and k in derived)}
        known, unknown = typed_values(cls, derived | given, path=path)
        return cls(**known, extra=unknown)

    def to_dict(self) -> dict[str, Any]:
        """Return what generation_config.json holds, unknown keys included."""
        own = {f.name: plain_values(getattr(self, f.name)) for f in fields(self)}
        extra = own.pop("extra")
        return {**extra, **own}

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write generation_config.json into `folder`, which is made if needed."""
        write_json_object(Path(folder) / GENERATION_NAME, self.to_dict())


def _lacks_ids(content: dict[str, Any]) -> bool:
    needed = _NEEDED if content.get("is_multilingual") is False else _NEEDED + _NEEDED_MULTILINGUAL
    return any(content.get(key) is None for key in needed)


def _from_tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    ids: dict[str, Any] = {
        "decoder_start_token_id": tokenizer.sot,
        "eos_token_id": tokenizer.eot,
        "is_multilingual": tokenizer.is_multilingual,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.start_of_prev,
    }
    if tokenizer.is_multilingual:
        ids["lang_to_id"] = {f"<|{code}|>": i for code, i in tokenizer.language_ids.items()}
        ids["task_to_id"] = {
            "transcribe": tokenizer.transcribe,
            "translate": tokenizer.translate,
        }
    return ids
