"""Manifests of labelled audio: a manifest in, utterances of recordings out.

A manifest (.jsonl, .csv or .parquet) names a recording by `uri`, `path` or `audio_filepath`, with
`text` for the whole of it, or for the region from `start_s` (NeMo: `offset`) to `end_s`, or as
long as `duration_s` (`duration`); or with `segments`, objects of `start_s`, `end_s` and `text`.
`language` and `speaker` may be there. Knows nothing of samples or tokens.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from corpus_asr.errors import ConfigError
from corpus_asr.languages import resolve_language
from corpus_asr.storage.listing import manifest_rows
from corpus_asr.storage.stores.filesystem import StoreOptions
from corpus_asr.storage.stores.uri import redact_uri

_URI_NAMES = ("uri", "path", "audio_filepath")
# An hour of segments with their times.
_MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A part of a recording and its text."""

    uri: str
    text: str
    start_s: float = 0.0
    end_s: float | None = None
    """None: the end of the recording."""
    language: str | None = None
    channel: int | None = None
    """Of the recording; None: all of them mixed."""
    row: int | None = None
    """Of a Parquet file with audio in it, where that is the recording."""
    previous: str = ""
    """Preceding text, where no utterance of the same recording has it."""
    speaker: str | None = None

    @property
    def recording(self) -> "Recording":
        """Return what it is a region of."""
        return Recording(self.uri, self.row, self.channel)


class Recording(NamedTuple):
    """Audio that utterances lie in."""

    uri: str
    row: int | None = None
    channel: int | None = None


def read_utterances(
    manifest: str, *, endpoint_url: str | None = None, language: str | None = None
) -> Iterator[Utterance]:
    """Yield the utterances of a manifest in its order.

    Args:
        manifest: its address.
        endpoint_url: the S3 endpoint, where it is not Amazon's.
        language: of rows that say none.

    Raises:
        ConfigError: a row has no text, times that are none or run backwards, or an unknown
            language; or what `manifest_rows` refuses.
        FetchError: the manifest cannot be read.
    """
    chunks = manifest_rows(
        manifest,
        StoreOptions(endpoint_url=endpoint_url),
        uri_names=_URI_NAMES,
        max_metadata_characters=_MAX_CHARACTERS,
    )
    for uris, rows in chunks:
        for uri, row in zip(uris, rows, strict=True):
            yield from _utterances(manifest, uri, json.loads(row or "{}"), language)


def _utterances(
    manifest: str, uri: str, row: Mapping[str, Any], usual: str | None
) -> Iterator[Utterance]:
    segments = row.get("segments")
    code = row.get("language") or usual
    try:
        if isinstance(segments, str):  # in CSV
            segments = json.loads(segments)
        language = None if code is None else resolve_language(str(code))
        for region in [row] if segments is None else segments:
            start_s, end_s = _times(region)
            text = region["text"]
            if not isinstance(text, str):
                raise TypeError(f"text {text!r}")
            yield Utterance(
                uri=uri,
                text=text,
                start_s=start_s,
                end_s=end_s,
                language=language,
                speaker=_speaker(region) or _speaker(row),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reading the manifest {redact_uri(manifest)}: found {error} at {redact_uri(uri)}, "
            "expected a text, times in seconds that run forward, and a language that Whisper "
            "knows; correct the manifest"
        ) from error


def _speaker(region: Mapping[str, Any]) -> str | None:
    found = _first(region, "speaker", "speaker_id")
    return None if found is None else str(found)


def _times(region: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return from when to when, in seconds of the recording."""
    start_s = float(_first(region, "start_s", "start", "offset") or 0.0)
    end = _first(region, "end_s", "end")
    length = _first(region, "duration_s", "duration")
    if end is None and length is not None:
        end = start_s + float(length)
    end_s = None if end is None else float(end)
    if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or start_s < end_s < 1e9)):
        raise ValueError(f"the times {start_s} to {end_s}")
    return start_s, end_s


def _first(region: Mapping[str, Any], *names: str) -> Any:
    return next((region[name] for name in names if region.get(name) not in (None, "")), None)
