"""What was really said: a manifest of references in, references by recording out.

A manifest (.jsonl, .csv or .parquet) names recordings by `uri`, or `path`, with their `text`;
`language`, `set` and `words` (objects of `word`, `start_s` and `end_s`, or `start` and `end`) may
be there, other columns are ignored. All of it is held in memory: a test set, not a corpus. Knows
nothing of what was heard.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language
from corpus_asr.storage.listing import manifest_rows
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import public, recording_id, redact_uri

_URI_NAMES = ("uri", "path")
# Ten hours of words with their times.
_MAX_CHARACTERS = 16_000_000


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word, from when to when it is said."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What is known of a recording."""

    uri: str
    """Without what gives access."""
    text: str
    language: str | None = None
    set: str | None = None
    """The part of the test set it belongs to."""
    words: tuple[TimedWord, ...] | None = None


def read_references(
    manifest: str, *, endpoint_url: str | None = None, language: str | None = None
) -> dict[str, Reference]:
    """Return references by recording_id.

    Args:
        manifest: its address.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        language: of references that say none.

    Raises:
        ConfigError: the manifest cannot be used: no text, a recording named twice, words without
            times, or what `manifest_rows` refuses.
        FetchError: it cannot be read.
    """
    found: dict[str, Reference] = {}
    usual = language_code(language)
    chunks = manifest_rows(
        manifest,
        StoreOptions(endpoint_url=endpoint_url),
        allow_local_files=True,  # only names are compared: nothing is opened
        uri_names=_URI_NAMES,
        max_metadata_characters=_MAX_CHARACTERS,
    )
    for uris, rows in chunks:
        for uri, row in zip(uris, rows, strict=True):
            identity = recording_id(uri)
            if identity in found:
                raise _unusable(manifest, uri, "it twice", "each recording once")
            found[identity] = _reference(uri, json.loads(row or "{}"), manifest, usual)
    return found


def language_code(language: str | None) -> str | None:
    """Return the code of a language by any of its names; what is not known stays as it is."""
    if not language or not language.strip():
        return None
    try:
        return resolve_language(language)
    except ValueError:
        # Test sets have more languages than Whisper, and `en_us` beside `en`.
        return language.strip().lower()


def _reference(uri: str, row: Mapping[str, Any], manifest: str, language: str | None) -> Reference:
    text, own = row.get("text"), row.get("language")
    if text is None and "text" in row:
        text = ""  # how CSV writes it
    if not isinstance(text, str):
        columns = ", ".join(row) or "no other columns"
        raise _unusable(manifest, uri, columns, "a column text with what is said")
    return Reference(
        uri=public(uri),
        text=text,
        language=language_code(str(own)) if own else language,
        set=None if row.get("set") is None else str(row["set"]),
        words=_words(row.get("words"), manifest, uri),
    )


def _words(value: Any, manifest: str, uri: str) -> tuple[TimedWord, ...] | None:
    if isinstance(value, str):  # in CSV
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _unusable(manifest, uri, f"words that are no JSON ({error})", "a list") from error
    if value is None:
        return None
    try:
        return tuple(
            TimedWord(
                str(each["word"]),
                float(each["start_s"] if "start_s" in each else each["start"]),
                float(each["end_s"] if "end_s" in each else each["end"]),
            )
            for each in value
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(
            manifest, uri, f"words without {error}", "a list of objects of word, start_s and end_s"
        ) from error


def _unusable(manifest: str, uri: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"reading the references {redact_uri(manifest)}: found {found} at {redact_uri(uri)}, "
        f"expected {expected}; correct the manifest"
    )
