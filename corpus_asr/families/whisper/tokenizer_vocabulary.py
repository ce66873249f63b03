"""Whisper's tokens: which id stands for what, and the roles of special ones.

In: a vocabulary with its merges, and settings. Out: ids of control tokens, tokens by id and ids by
token. Ids come from the vocabulary: their layout differs between the English-only, multilingual
and large-v3 checkpoints. Knows no text.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from corpus_asr.errors import CheckpointError
from corpus_asr.families.token_roles import Setting, TokenRoles
from corpus_asr.families.token_settings import ROLES
from corpus_asr.families.whisper.tokenizer_settings import END, TokenizerSettings
from corpus_asr.languages import LANGUAGES, resolve_language
from corpus_asr.text.bpe import BytePairEncoding

_START = "<|startoftranscript|>"
_START_OF_PREV = "<|startofprev|>"
# Checkpoints up to large-v2 call the same token by its older name.
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")

# The English-only models kept GPT-2's vocabulary, which ends here; all others have one token more.
_ENGLISH_ONLY_END = 50256

TASKS = ("transcribe", "translate")


class WhisperVocabulary(TokenRoles):
    """The tokens of a Whisper checkpoint and what they are for."""

    language = Setting[str | None]()
    task = Setting[str | None]()
    predict_timestamps = Setting[bool]()
    errors = Setting[str]()
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

    def add_tokens(self, new_tokens: str | Iterable[str], special_tokens: bool = False) -> int:
        """Add tokens after the last id; returns how many were new.

        A model needs a row per token: resize its embeddings to `len()` of this afterwards.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str) else list(new_tokens)
        return self._bpe.add_tokens(tokens, special=special_tokens)

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

    def _token_id(self, token: str) -> int | None:
        return self._bpe.token_to_id(token)

    def _id_token(self, token_id: int) -> str | None:
        return self._bpe.id_to_token(token_id)

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
