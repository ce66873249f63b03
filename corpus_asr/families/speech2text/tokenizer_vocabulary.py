"""Speech2Text's tokens: pieces of words with their ids, control tokens, target languages.

In: vocab.json, a SentencePiece model, and settings. Out: ids by token and tokens by id, texts as
tokens, and what labels start with. The ids are vocab.json's; those of the SentencePiece model are
its own. Knows no rows and no files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from corpus_asr.errors import CheckpointError
from corpus_asr.families.speech2text.tokenizer_settings import LANGUAGES, TokenizerSettings
from corpus_asr.families.token_roles import Setting, TokenRoles
from corpus_asr.families.token_settings import ROLES
from corpus_asr.text.added_tokens import AddedToken, AddedTokens, added_token, token_flags
from corpus_asr.text.sentencepiece import SentencePieces


class Speech2TextVocabulary(TokenRoles):
    """The tokens of a Speech2Text checkpoint and what they are for."""

    do_upper_case = Setting[bool]()
    do_lower_case = Setting[bool]()
    is_fast = False

    encoder: dict[str, int]
    """Ids by piece, as vocab.json has them."""
    decoder: dict[int, str]
    """Pieces by id."""
    lang_code_to_id: dict[str, int]
    """Token of each target language; empty for a model of one language."""

    _settings: TokenizerSettings
    _pieces: SentencePieces

    def _set_up(
        self,
        vocabulary: dict[str, int],
        pieces: SentencePieces,
        settings: TokenizerSettings,
        saved: Mapping[int, AddedToken],
    ) -> None:
        """Join a vocabulary with its control tokens and languages.

        Raises:
            CheckpointError: the vocabulary lacks the unknown token.
            ValueError: there is no such target language.
        """
        if settings.unk_token is None or settings.unk_token not in vocabulary:
            raise CheckpointError(
                f"loading a Speech2Text tokenizer: found no {settings.unk_token} among "
                f"{len(vocabulary)} tokens of vocab.json, expected what stands for unknown ones; "
                f"fetch the checkpoint again or give unk_token"
            )
        self.encoder = vocabulary
        self.decoder = {token_id: piece for piece, token_id in vocabulary.items()}
        self._pieces = pieces
        self._added = AddedTokens()
        self._others: list[str] = []
        for token_id, token in saved.items():
            self._added.put(token_id, token)
        given = settings.additional_special_tokens or ()
        self._settings = replace(settings, additional_special_tokens=None)
        self._set_languages(settings.tgt_lang)
        roles = [token for role in ROLES if (token := getattr(settings, role)) is not None]
        self.add_tokens([*roles, *self.lang_tokens, *given], special_tokens=True)

    def __len__(self) -> int:
        return len(self.get_vocab())

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added; `len()` counts all."""
        return len(self.encoder)

    @property
    def vocab(self) -> dict[str, int]:
        """The id of every token."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return {**self.encoder, **self._added.ids}

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of control tokens and of tokens that were added."""
        return {token.content: token_id for token_id, token in self._added.tokens.items()}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of control tokens and of tokens that were added."""
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Control tokens and added ones by id, each with its flags."""
        return self._added.tokens

    @property
    def sp_model_kwargs(self) -> dict[str, Any]:
        """Keywords that the SentencePiece model was loaded with."""
        return dict(self._settings.sp_model_kwargs or {})

    # Special tokens

    @property
    def all_special_tokens(self) -> list[str]:
        """The control tokens: those that play a role, then the others."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._others]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def additional_special_tokens(self) -> list[str]:
        """The control tokens that play no named role, those of languages among them."""
        return list(self._others)

    @property
    def extra_special_tokens(self) -> list[str]:
        """The same, as version 5 of the reference calls them."""
        return list(self._others)

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Iterable[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens after the last id; returns how many were new.

        One that the vocabulary has keeps its id, and is no longer cut in pieces. A model needs a
        row per token: resize its embeddings to `len()` of this afterwards.
        """
        if isinstance(new_tokens, str | AddedToken):
            new_tokens = [new_tokens]
        count = 0
        for one in new_tokens:
            named = set(self.special_tokens_map.values())
            token = added_token(one, special=special_tokens or str(one) in named)
            content = token.content
            if special_tokens and content not in {*named, *self._others}:
                self._others.append(content)
            if not content or content in self._added:
                continue
            if self.do_lower_case and token.normalized and not token.special:
                content = content.lower()
                token = AddedToken(**{**token_flags(token), "content": content})
            known = self.encoder.get(content)
            self._added.put(len(self) if known is None else known, token)
            count += known is None
        return count

    # Target languages

    @property
    def lang_codes(self) -> str | None:
        """Which target languages there are: `mustc`, or None for one language alone."""
        return self._settings.lang_codes

    @property
    def langs(self) -> list[str]:
        """The codes of the target languages."""
        return list(self.lang_code_to_id)

    @property
    def lang_tokens(self) -> list[str]:
        """The tokens of the target languages."""
        return [f"<lang:{code}>" for code in self.lang_code_to_id]

    @property
    def tgt_lang(self) -> str | None:
        """Code of the language that labels are in; None for a model of one language."""
        return self._settings.tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, new_tgt_lang: str) -> None:
        self.set_tgt_lang_special_tokens(new_tgt_lang)
        self._change({"tgt_lang": new_tgt_lang})

    def set_tgt_lang_special_tokens(self, tgt_lang: str) -> None:
        """Let labels start with the token of a language.

        Raises:
            ValueError: the checkpoint has no such language.
        """
        unknown = self._pieces.unknown_id
        known = [code for code, token in self.lang_code_to_id.items() if token != unknown]
        if tgt_lang not in known:
            expected = f"one of {', '.join(known)}" if known else "none: this model writes one"
            raise ValueError(
                f"choosing the target language {tgt_lang!r}: expected {expected}; correct it"
            )
        self.prefix_tokens = [self.lang_code_to_id[tgt_lang]]

    @property
    def prefix_tokens(self) -> list[int]:
        """Ids that labels start with: the target language, if there are several."""
        return list(self._prefix)

    @prefix_tokens.setter
    def prefix_tokens(self, token_ids: list[int]) -> None:
        self._prefix = list(token_ids)

    def _set_languages(self, tgt_lang: str | None) -> None:
        codes = LANGUAGES[self.lang_codes] if self.lang_codes is not None else ()
        # As in the reference, these are the SentencePiece model's own ids, which vocab.json of
        # every published checkpoint repeats.
        own = {code: self._pieces.piece_id(f"<lang:{code}>") for code in codes}
        unknown = self._pieces.unknown_id
        self.lang_code_to_id = {
            code: unknown if token is None else token for code, token in own.items()
        }
        self.prefix_tokens = []
        if tgt_lang is not None and codes:
            self.set_tgt_lang_special_tokens(tgt_lang)
            return
        # The first language may be one that this model lacks: labels have to choose another then.
        self.prefix_tokens = [self.lang_code_to_id[code] for code in codes[:1]]
        self._settings = replace(self._settings, tgt_lang=codes[0] if codes else None)

    # Texts, ids and tokens

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text as the vocabulary spells them.

        Raises:
            ValueError: `text` is no valid Unicode text.
        """
        if self.do_lower_case:
            text = self._added.lower(text)
        found: list[str] = []
        for part in self._added.split(text):
            found += [part] if part in self._added else self._pieces.pieces(part)
        return found

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens as the vocabulary spells them to text, control tokens between blanks."""
        special = set(self.all_special_tokens)
        text, pending = "", list[str]()
        for token in tokens:
            if token in special:
                text += f"{self._joined(pending)}{token} "
                pending = []
            else:
                pending.append(token)
        return (text + self._joined(pending)).strip()

    def _joined(self, pieces: list[str]) -> str:
        text = self._pieces.join(pieces)
        return text.upper() if self.do_upper_case else text

    def _token_id(self, token: str) -> int | None:
        found = self._added.ids.get(token)
        return self.encoder.get(token) if found is None else found

    def _id_token(self, token_id: int) -> str | None:
        found = self._added.content(token_id)
        return self.decoder.get(token_id) if found is None else found

    def _unknown(self) -> str | None:
        return self.unk_token
