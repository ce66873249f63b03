"""Base of tokenizers that use the tokenizers library: their files and common methods.

Files are validated before the library reads them: it ignores a vocabulary that is not an object
and panics, past `except Exception`, on a merge whose parts are not in the vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from corpus_asr.errors import CheckpointError
from corpus_asr.families.saved_files import checked, optional_object, read_json_object
from corpus_asr.families.tensors import BatchEncoding
from corpus_asr.families.tokenizer import (
    ADDED_NAME,
    OTHER_SPECIAL,
    SETTINGS_NAME,
    SPECIAL_NAME,
    VOCAB_NAME,
    PretrainedTokenizer,
    added_token,
)
from corpus_asr.families.truncation_padding import NO_LIMIT, EncodeOptions, text_pairs

_MAX_ID = 2**32 - 1  # limit of the library


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Load a file in the format of tokenizer.json; raises CheckpointError."""
    about = path.stat() if path.is_file() else None
    _check_tokenizer_file(path, about and (about.st_mtime_ns, about.st_size))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no specific exception
        raise CheckpointError(
            f"reading {path}: found no usable tokenizer ({error}); fetch the checkpoint again"
        ) from error
    # A file may enable truncation or padding; only calls decide that here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# A model's tokenizer is read before its weights are fetched and again with them; the check takes
# most of that time.
@lru_cache(maxsize=64)
def _check_tokenizer_file(path: Path, _version: tuple[int, int] | None) -> None:
    model = read_json_object(path).get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise CheckpointError(
            f"reading {path}: found a model of type {kind!r}, expected 'BPE'; choose a checkpoint "
            f"with a BPE tokenizer"
        )
    merges = model.get("merges")
    if isinstance(merges, list):
        # Older files have pairs as one string.
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    check_vocabulary(model.get("vocab"), merges, path=path, merges_path=path)


def check_vocabulary(vocab: object, merges: object, *, path: Path, merges_path: Path) -> None:
    """Raise CheckpointError for a vocabulary or merges on which the library would fail."""
    # Not `isinstance` for IDs: true is an int in Python, but no ID.
    if not isinstance(vocab, dict) or not all(
        type(i) is int and 0 <= i <= _MAX_ID for i in vocab.values()
    ):
        raise CheckpointError(
            f"reading {path}: found no vocabulary, expected an object of tokens and their ids, "
            f"whole numbers of 0 to {_MAX_ID:,}; fetch the checkpoint again"
        )
    if not isinstance(merges, list):
        raise CheckpointError(
            f"reading {merges_path}: found no merges, expected a list of pairs; "
            f"fetch the checkpoint again"
        )
    tokens = vocab.keys()  # strings, as keys of JSON
    for number, pair in enumerate(merges):
        first, second = pair if type(pair) is list and len(pair) == 2 else (None, None)
        if not (
            type(first) is str
            and type(second) is str
            and first in tokens
            and second in tokens
            and first + second in tokens
        ):
            raise CheckpointError(
                f"reading {merges_path}: merge {number} is {str(pair)[:60]}, expected two tokens "
                f"of {path.name} that form a third; fetch the checkpoint again"
            )


def add_saved_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that a folder's files have beside the vocabulary, at the IDs they name.

    Raises:
        CheckpointError: a file is broken, or an ID does not follow the vocabulary's without gaps.
    """
    settings = optional_object(folder / SETTINGS_NAME)
    roles = (optional_object(folder / SPECIAL_NAME), settings)
    special = dict.fromkeys(token for content in roles for token in _special_tokens(content))
    # Role files name special tokens without IDs; a separate file has the IDs.
    path = folder / ADDED_NAME
    ids: dict[str, int | None] = dict.fromkeys(special)
    ids.update(checked(dict[str, int], optional_object(path), "", path=path))
    # tokenizer_config.json takes precedence over the older files.
    described = _described_tokens(settings, folder / SETTINGS_NAME)
    ids.update({token: token_id for token, (token_id, _) in described.items()})
    # Tokens with IDs by ID, then the others in order, as the library assigns IDs in sequence.
    for token in sorted(ids, key=lambda token: (ids[token] is None, ids[token] or 0)):
        flags = described[token][1] if token in described else {}
        is_special = token in special or flags.get("special", False)
        flags = {"normalized": not is_special, **flags, "special": is_special}
        tokenizer.add_tokens([AddedToken(token, **flags)])
        actual_id = tokenizer.token_to_id(token)
        if ids[token] not in (None, actual_id):
            raise CheckpointError(
                f"loading a tokenizer from {folder}: {token} got id {actual_id}, expected "
                f"{ids[token]}, without gaps after {VOCAB_NAME}; fetch the checkpoint again"
            )


def _described_tokens(
    settings: Mapping[str, Any], path: Path
) -> dict[str, tuple[int, dict[str, bool]]]:
    try:
        return {
            str(described["content"]): (
                int(token_id),
                {name: flag for name, flag in described.items() if isinstance(flag, bool)},
            )
            for token_id, described in settings.get("added_tokens_decoder", {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"reading {path}: found an unusable added_tokens_decoder ({error!r}), expected an "
            f"object of ids and descriptions; fetch the checkpoint again"
        ) from error


def _special_tokens(content: Mapping[str, Any]) -> Iterator[str]:
    # Files name role tokens under keys `..._token`, as text or with flags.
    for key, value in content.items():
        if key in OTHER_SPECIAL or key.endswith("_token"):
            for entry in value if isinstance(value, list) else [value]:
                token = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(token, str) and token:
                    yield token


def fitting_tokenizer(
    options: EncodeOptions, *, around: tuple[Sequence[int], int] | None, truncation_side: str
) -> Tokenizer:
    """Return a tokenizer that only truncates encodings and adds special tokens around them.

    `around` has the IDs before a text and the one after it.

    Raises:
        ValueError: the stride does not fit the length.
    """
    # Truncation set on the vocabulary's own tokenizer would affect threads that encode with it
    # concurrently; creating this one takes 25 us.
    fitting = Tokenizer(BPE())
    if around is not None:
        prefix, end = around
        prefix_tokens = [f"{token}:0" for token in prefix]
        fitting.post_processor = TemplateProcessing(
            single=[*prefix_tokens, "$A:0", f"{end}:0"],
            pair=[*prefix_tokens, "$A:0", "$B:1", f"{end}:1"],
            special_tokens=[(str(token), token) for token in {*prefix, end}],
        )
    lengths = options.lengths
    if lengths.limit == NO_LIMIT:
        return fitting
    try:
        fitting.enable_truncation(
            lengths.limit,
            stride=options.stride,
            strategy=lengths.truncation,
            direction=truncation_side,
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"encoding texts: found stride={options.stride} and max_length={lengths.limit} "
            f"({error}), expected a stride from 0 and below the text tokens of a row; change one "
            "of them"
        ) from error
    return fitting


def encoding_of(tokenizer: Tokenizer, text: Any, *, words: bool) -> Encoding:
    """Encode a text, or a list of words, without special tokens.

    Raises:
        ValueError: the input has another type, or is not valid Unicode.
    """
    of_words = isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
    if not (of_words if words else isinstance(text, str)):
        expected = "a list of words" if words else "a text"
        raise ValueError(
            f"encoding texts: found {str(text)[:40]!r} of type {type(text).__name__}, expected "
            f"{expected}; correct it or is_split_into_words"
        )
    try:
        return tokenizer.encode(
            list(text) if words else text, is_pretokenized=words, add_special_tokens=False
        )
    except TypeError as error:
        raise ValueError(
            f"encoding {text[:40]!r}: found {type(text).__name__} that is not valid Unicode; "
            "decode it with errors='replace' first"
        ) from error


class LibraryTokenizer(PretrainedTokenizer):
    """A tokenizer whose vocabulary is a library object; a family adds its files and decoding."""

    is_fast = True
    backend = "tokenizers"
    _tokenizer: Tokenizer
    # Cached, since listing the added tokens copies some 1,600 of Whisper's.
    _special_ids: tuple[int, ...] | None = None

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

    def _text_ids(self, text: str) -> list[int]:
        return list(encoding_of(self._tokenizer, text, words=False).ids)

    def _batch(self, text: Any, pair: Any, options: EncodeOptions) -> BatchEncoding:
        several, pairs = text_pairs(text, pair, words=options.words)
        self._text_limit(options)
        around = None
        if options.special and self._end is not None:
            around = self.prefix_tokens, self._end
        fitting = fitting_tokenizer(options, around=around, truncation_side=self.truncation_side)
        encoded = partial(encoding_of, self._tokenizer, words=options.words)
        rows, sources, kept = [], [], []
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
            kept += encodings
        batch = self._padded(rows, options)
        if "length" in batch:
            batch["length"] = [len(row) for row in batch["input_ids"]]
        if options.overflow:
            batch["overflow_to_sample_mapping"] = sources
        if not several and options.tensors is None and not options.overflow:
            batch = BatchEncoding({k: v if k == "length" else v[0] for k, v in batch.items()})
        batch.encodings = kept
        return batch.convert_to_tensors(options.tensors)


def _row(encoding: Encoding) -> dict[str, Any]:
    return {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "special_tokens_mask": encoding.special_tokens_mask,
        "offset_mapping": encoding.offsets,
        "length": len(encoding),
    }
