"""Base class of the tokenizers: settings, special tokens, rows of IDs, files."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Encoding, Tokenizer

from corpus_asr.families.library_tokenizer import (
    OTHER_SPECIAL,
    SETTINGS_NAME,
    SPECIAL_NAME,
    added_token,
    encoding_of,
    fitting_tokenizer,
)
from corpus_asr.families.saved_files import (
    Uploads,
    finish_saving,
    made_folder,
    optional_object,
    take_source,
    typed_values,
    write_json_object,
)
from corpus_asr.families.tensors import BatchFeature
from corpus_asr.families.truncation_padding import (
    EncodeOptions,
    Lengths,
    check_side,
    collate,
    id_lists,
    pad_batch,
    text_pairs,
)
from corpus_asr.storage.model_files import fetch_checkpoint

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Settings that name a token."""

# Files often enable the clean-up, which would lose text: only the caller can enable it. Token
# objects are read together with their descriptions.
_NOT_IN_FILE = ("clean_up_tokenization_spaces", "additional_special_tokens")

# In this order: each pair applies to the result of the previous ones.
# Source: transformers 5.23, `PreTrainedTokenizerBase.clean_up_tokenization`.
_TIGHT = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'",
    " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve", " 're": "'re",
}  # fmt: skip

_IDLE_LENGTH = "max_length has no effect with padding=True"
_PAD_TO_IT = ": pass padding='max_length' to pad to it"


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


def token_text(token: Any) -> Any:
    """Return the text of a token object of tokenizers or transformers, or of each in a list."""
    if isinstance(token, list | tuple):
        return [token_text(entry) for entry in token]
    return token if isinstance(token, str) else getattr(token, "content", token)


class PretrainedTokenizer(Uploads):
    """A tokenizer of any family; its settings are attributes, validated on assignment."""

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    bos_token_id: int | None = role_id("bos_token")
    eos_token_id: int | None = role_id("eos_token")
    unk_token_id: int | None = role_id("unk_token")
    pad_token_id: int | None = role_id("pad_token")
    padding_side: str
    truncation_side: str
    model_max_length: int
    clean_up_tokenization_spaces: bool

    model_input_names = ("input_ids", "attention_mask")
    """Fields of a call's result that models take."""
    pad_token_type_id = 0
    is_fast = True
    _without_effect: tuple[str, ...] = ()
    """Settings of other tokenizers that are accepted without effect."""
    name_or_path = ""
    """Folder, URI or hub ID that the tokenizer was loaded from."""
    _tokenizer: Tokenizer
    # Cached, since listing the added tokens copies some 1,600 of Whisper's.
    _special_ids: tuple[int, ...] | None = None

    # Defined by each family

    @property
    @abstractmethod
    def prefix_tokens(self) -> list[int]:
        """IDs at the start of labels."""

    @property
    @abstractmethod
    def _end(self) -> int | None:
        """ID of the last token of labels; None without special tokens around labels."""

    decode: Callable[..., Any]
    """Decodes one sequence of IDs to text, or several to a list of texts."""
    _load: Callable[[Path, dict[str, Any]], None]
    """Initializes a new tokenizer from a folder; given settings take precedence."""
    _save: Callable[[Path, str | None], tuple[str, ...]]
    """Writes all files to a folder, with a prefix of their names, and returns their paths."""

    # Settings

    def __bool__(self) -> bool:
        # Otherwise a tokenizer with an empty vocabulary, of length 0, would be false.
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        value = token_text(value) if name in ROLES else value
        self._check_setting(name, value)
        super().__setattr__(name, value)

    def _check_setting(self, name: str, value: Any) -> None:
        if name in ("padding_side", "truncation_side"):
            check_side(name, value)
        if name in ROLES and value is not None and self._token_id(value) is None:
            raise ValueError(
                f"setting {name}: found no token {value!r} among {len(self)}; choose one of "
                f"the vocabulary, or add it by add_tokens"
            )

    def _clean(self, wanted: bool | None) -> bool:
        return self.clean_up_tokenization_spaces if wanted is None else wanted

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Return the class's arguments except files, which are its settings, by name."""
        parameters = inspect.signature(cls).parameters
        return {n: p.default for n, p in parameters.items() if not n.endswith("_file")}

    @classmethod
    def _saved_settings(cls, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """Read the settings in a folder's files; `given` ones take precedence."""
        path = folder / SETTINGS_NAME
        # Only roles are taken from special_tokens_map.json; tokenizer_config.json takes precedence.
        special = optional_object(folder / SPECIAL_NAME)
        content = {name: special[name] for name in ROLES if name in special}
        content |= optional_object(path)
        for name in content.keys() & set(ROLES):
            if isinstance(content[name], dict):  # a token object
                content[name] = content[name].get("content")
        # 1e30 as a float means no limit.
        if not isinstance(content.get("model_max_length", 0), int):
            del content["model_max_length"]
        names = cls._defaults().keys() - set(_NOT_IN_FILE)
        content = {name: value for name, value in content.items() if name in names}
        return {**typed_values(cls.__init__, content, path=path)[0], **given}

    def _take_settings(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            # Role tokens are not checked: they may yet be added to the vocabulary.
            if name not in ROLES:
                self._check_setting(name, value)
            self.__dict__[name] = value

    # Tokens and their roles

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens before any were added; `len()` counts all."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Return the ID of every token."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens added to the vocabulary by ID, ascending."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    @property
    def all_special_ids(self) -> list[int]:
        """IDs of the control tokens, ascending, without timestamps."""
        if self._special_ids is None:
            added = self.added_tokens_decoder.items()
            self._special_ids = tuple(i for i, token in added if token.special)
        return list(self._special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The control tokens, ordered by ID."""
        return [token for i in self.all_special_ids if (token := self._id_token(i))]

    @property
    def additional_special_tokens(self) -> list[str]:
        """The control tokens without a named role, ordered by ID."""
        named = set(self.special_tokens_map.values())
        return [token for token in self.all_special_tokens if token not in named]

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Iterable[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens after the last ID; return the number of new ones.

        A model needs a row per token: resize its embeddings to this tokenizer's `len()`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else new_tokens
        size = len(self)
        self._tokenizer.add_tokens([added_token(t, special=special_tokens) for t in tokens])
        self._special_ids = None
        return len(self) - size

    def _token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def _id_token(self, token_id: int) -> str | None:
        # The library's IDs are unsigned: a negative one would raise OverflowError.
        return self._tokenizer.id_to_token(token_id) if token_id >= 0 else None

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return 0 for every ID of the first sequence and 1 for every ID of the second."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or [])

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Tokens by role."""
        return {role: token for role in ROLES if (token := getattr(self, role)) is not None}

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return IDs; tokens outside the vocabulary have the unknown token's ID, if any."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self._token_id(tokens)
        token_id = self.unk_token_id if token_id is None else token_id
        if token_id is None:
            raise ValueError(
                f"looking up the token {tokens!r}: found no such token among {len(self)}, and no "
                "unk_token; choose another token, or set unk_token"
            )
        return token_id

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> Any:
        """Return tokens; an ID without one gives the unknown token, None in Whisper."""
        if isinstance(ids, int):
            token = self._id_token(ids)
            return self._unknown() if token is None else token
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in skip]

    def _unknown(self) -> str | None:
        return None

    # Texts to IDs

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchFeature:
        """Encode one text or several, or words with `is_split_into_words`, as labels.

        Options are those of transformers. Texts of `text_target` become `labels`. Rows are
        truncated if `truncation` is set, or if `max_length` is given without padding;
        `max_length` counts special tokens, and None means the tokenizer's own. A single text gives
        one row, unless tensors or overflowing rows are requested.
        """
        if text is None and text_target is None:
            raise ValueError(
                "encoding texts: found neither text nor text_target, expected one of them; pass it"
            )
        if padding is True and max_length is not None and not truncation and verbose:
            warnings.warn(f"{_IDLE_LENGTH} and no truncation{_PAD_TO_IT}", stacklevel=2)
        outputs = {
            "token_type_ids": return_token_type_ids,
            # None is the reference's default, which includes the mask.
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        options = EncodeOptions(
            words=is_split_into_words,
            special=add_special_tokens,
            lengths=Lengths.chosen(
                padding, truncation, max_length, pad_to_multiple_of, self.model_max_length
            ),
            stride=stride,
            overflow=return_overflowing_tokens,
            outputs=tuple(name for name, is_wanted in outputs.items() if is_wanted),
            padding_side=padding_side or self.padding_side,
            tensors=return_tensors,
        )
        if text is None:
            return self._batch(text_target, text_pair_target, options)
        batch = self._batch(text, text_pair, options)
        if text_target is not None:
            batch["labels"] = self._batch(text_target, text_pair_target, options)["input_ids"]
        return batch

    def encode(
        self,
        text: str | list[str],
        text_pair: str | list[str] | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """Encode one text as a label; `options` and errors are as in a call."""
        # Training calls this once per label: without options nothing is truncated or padded.
        if text_pair is None and not options and isinstance(text, str):
            ids = self._text_ids(text)
            return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchFeature:
        """Pad rows that calls returned: one, a list of them, or rows by name.

        Options are as in a call; `return_tensors` of None keeps the type of the input.
        """
        rows, kind = collate(encoded_inputs)
        if padding is True and max_length is not None and verbose:
            warnings.warn(_IDLE_LENGTH + _PAD_TO_IT, stacklevel=2)
        lengths = Lengths.chosen(
            padding, False, max_length, pad_to_multiple_of, self.model_max_length
        )
        ids = rows["input_ids"]
        if return_attention_mask is not False and "attention_mask" not in rows:
            nested = bool(ids) and isinstance(ids[0], list)
            rows["attention_mask"] = [[1] * len(row) for row in ids] if nested else [1] * len(ids)
        side, fillers = padding_side or self.padding_side, self._fillers()
        return pad_batch(rows, lengths, fillers, side=side).convert_to_tensors(
            return_tensors or kind
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Add the prefix before IDs, and the end token after them."""
        return [*self.prefix_tokens, *token_ids_0, *(token_ids_1 or []), *self._suffix_tokens]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for each special token and 0 for each other one of the row made of these IDs.

        With `already_has_special_tokens`, `token_ids_0` is that row, without a second text.
        """
        if not already_has_special_tokens:
            texts = [0] * (len(token_ids_0) + len(token_ids_1 or []))
            return [*([1] * len(self.prefix_tokens)), *texts, *([1] * len(self._suffix_tokens))]
        if token_ids_1 is not None:
            raise ValueError(
                "marking special tokens: found token_ids_1 with already_has_special_tokens, "
                "expected one list; pass the whole row as token_ids_0"
            )
        special = set(self.all_special_ids)
        return [int(int(token) in special) for token in token_ids_0]

    @property
    def _suffix_tokens(self) -> list[int]:
        return [] if self._end is None else [self._end]

    def _text_limit(self, options: EncodeOptions) -> int:
        """Return the maximum number of text tokens of a row."""
        special = len(self.build_inputs_with_special_tokens([])) if options.special else 0
        if options.lengths.limit < special:
            raise ValueError(
                f"encoding texts: found max_length={options.lengths.max_length}, expected room "
                f"for {special} special tokens at least; raise it, or pass "
                "add_special_tokens=False"
            )
        return options.lengths.limit - special

    def _text_ids(self, text: str) -> list[int]:
        return list(encoding_of(self._tokenizer, text, words=False).ids)

    def _batch(self, text: Any, pair: Any, options: EncodeOptions) -> BatchFeature:
        several, pairs = text_pairs(text, pair, words=options.words)
        self._text_limit(options)
        around = None
        if options.special and self._end is not None:
            around = self.prefix_tokens, self._end
        fitting = fitting_tokenizer(options, around=around, truncation_side=self.truncation_side)
        encoded = partial(encoding_of, self._tokenizer, words=options.words)
        rows, sources = [], []
        for number, (first, second) in enumerate(pairs):
            if options.overflow and second is not None:
                # The library does not track the text of an overflowing token.
                raise ValueError(
                    "encoding pairs: found return_overflowing_tokens=True, expected it for single "
                    "texts only; encode the texts one by one"
                )
            text = encoded(first)
            pair = None if second is None else encoded(second)
            try:
                whole = fitting.post_process(text, pair, options.special)
            except Exception as error:  # the library raises no specific exception
                raise ValueError(
                    f"truncating a pair of {len(text)} and {len(pair or ())} tokens to "
                    f"{options.lengths.max_length}: found too few to cut by "
                    f"truncation={options.lengths.truncation!r}; cut the other text, or allow more "
                    f"by max_length"
                ) from error
            encodings = [whole, *whole.overflowing] if options.overflow else [whole]
            rows += [_row(encoding) for encoding in encodings]
            sources += [number] * len(encodings)
        batch = self._padded(rows, options)
        if "length" in batch:
            batch["length"] = [len(row) for row in batch["input_ids"]]
        if options.overflow:
            batch["overflow_to_sample_mapping"] = sources
        if not several and options.tensors is None and not options.overflow:
            batch = BatchFeature({k: v if k == "length" else v[0] for k, v in batch.items()})
        return batch.convert_to_tensors(options.tensors)

    def _padded(self, rows: Sequence[dict[str, Any]], options: EncodeOptions) -> BatchFeature:
        names = ("input_ids", *options.outputs)
        batch = {name: [row[name] for row in rows] for name in names}
        fillers = self._fillers() | {"offset_mapping": (0, 0)}
        return pad_batch(batch, options.lengths, fillers, side=options.padding_side)

    def _fillers(self) -> dict[str, Any]:
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
        }

    # IDs to texts

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Decode each sequence as `decode` does; one sequence gives a list of one text."""
        rows = id_lists(sequences)
        if not rows:
            return []
        texts = self.decode(rows, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        return texts if isinstance(texts, list) else [texts]

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Remove spaces before punctuation and English endings."""
        for loose, tight in _TIGHT.items():
            text = text.replace(loose, tight)
        return text

    # Files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        **settings: Any,
    ) -> Self:
        """Load the tokenizer of a checkpoint: a folder, a URI such as s3://..., or a hub ID.

        `settings` are `SOURCE_OPTIONS`, and the class's arguments except files, which override
        tokenizer_config.json; a role token outside the vocabulary is added to it. Raises
        CheckpointError.
        """
        name = str(pretrained_model_name_or_path)
        folder = fetch_checkpoint(name, weights=False, expect=None, **take_source(settings))
        names = cls._defaults()
        unknown = sorted(settings.keys() - names.keys() - {*cls._without_effect})
        if methods := [name for name in unknown if callable(getattr(cls, name, None))]:
            raise AttributeError(
                f"loading a tokenizer from {folder}: found the setting {methods[0]}, expected "
                "another name than that of a method; remove it, and pass it to the calls"
            )
        if unknown:
            raise TypeError(
                f"loading a tokenizer from {folder}: found the settings {', '.join(unknown)}, "
                f"expected some of {', '.join(names)}; correct them"
            )
        tokenizer = cls.__new__(cls)
        # None means the file's value, as in the reference.
        overrides = {key: value for key, value in settings.items() if value is not None}
        overrides |= {
            key: token_text(overrides[key]) for key in overrides.keys() & {*ROLES, *OTHER_SPECIAL}
        }
        tokenizer._load(folder, overrides)
        tokenizer.name_or_path = name
        return tokenizer

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write all files of the tokenizer, also for older readers; return their paths.

        `filename_prefix` is prepended to the names of the vocabulary's files. `kwargs` and errors
        are those of `push_to_hub`.
        """
        folder = made_folder(save_directory)
        paths = self._save(folder, filename_prefix)
        names = [Path(path).relative_to(folder).as_posix() for path in paths]
        finish_saving(folder, names, push_to_hub=push_to_hub, **kwargs)
        return paths

    def _save_settings(self, folder: Path, *, special_tokens: list[str], **others: Any) -> None:
        """Write tokenizer_config.json including `others`, and special_tokens_map.json."""
        special = {**self.special_tokens_map, "additional_special_tokens": special_tokens}
        names = self._defaults().keys() - {*ROLES, *_NOT_IN_FILE}
        settings = {name: getattr(self, name) for name in names}
        content = {
            **special,
            **{name: value for name, value in settings.items() if value is not None},
            # Otherwise the reference's version 4 would remove spaces before punctuation.
            "clean_up_tokenization_spaces": False,
            **others,
            "tokenizer_class": type(self).__name__,
        }
        write_json_object(folder / SETTINGS_NAME, content)
        write_json_object(folder / SPECIAL_NAME, special)


def _row(encoding: Encoding) -> dict[str, Any]:
    return {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "special_tokens_mask": encoding.special_tokens_mask,
        "offset_mapping": encoding.offsets,
        "length": len(encoding),
    }
